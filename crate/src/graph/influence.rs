//! Influence: how much of the logits goes through each node.
//!
//! With `M = |A|`, each row divided by its sum, and `w` the logits' probabilities, influence is
//! `I = w M + w M² + …` (*Circuit Tracing*, appendix on pruning; circuit-tracer's
//! `compute_node_influence`, equal to 1e-5). Targets come before their sources in one fixed order,
//! so the series is one pass over the edges: O(edges), f64 sums, no powers.

use super::edges::Edges;

/// circuit-tracer's floor under row sums of a whole graph.
pub(crate) const ROW_FLOOR: f64 = 1e-10;
/// The same for graphs whose rows are still being chosen.
pub(crate) const PARTIAL_FLOOR: f64 = 1e-8;

/// Influence of each node on the outputs, where `weights[node]` is the output's weight (probability
/// of a logit, else 0). Targets without a row stop the flow.
pub fn node_influence(edges: &Edges, weights: &[f64]) -> Vec<f64> {
    influence(edges, weights, ROW_FLOOR)
}

/// As [`node_influence`] with another floor; rows may be in any order.
pub(crate) fn influence(edges: &Edges, weights: &[f64], floor: f64) -> Vec<f64> {
    let mut order: Vec<u32> = (0..edges.rows().len() as u32).collect();
    order.sort_by_key(|&r| std::cmp::Reverse(edges.row(r as usize).target));
    let mut total = weights.to_vec();
    for r in order {
        let row = edges.row(r as usize);
        let share = total[row.target as usize] / row.norm(floor);
        if share != 0.0 {
            for (source, weight) in row.sources.iter().zip(row.weights) {
                total[*source as usize] += share * f64::from(weight.abs());
            }
        }
    }
    total.iter_mut().zip(weights).for_each(|(total, weight)| *total -= weight);
    total
}

/// Influence of each edge, in storage order: `M[t, s] · (I[t] + w[t])`.
pub fn edge_influence(edges: &Edges, weights: &[f64]) -> Vec<f32> {
    let nodes = node_influence(edges, weights);
    let mut scores = Vec::with_capacity(edges.len());
    for row in edges.rows() {
        let t = row.target as usize;
        let share = (nodes[t] + weights[t]) / row.norm(ROW_FLOOR);
        scores.extend(row.weights.iter().map(|weight| (share * f64::from(weight.abs())) as f32));
    }
    scores
}

/// The score at which the scores above and at it first hold `fraction` of the sum, largest first.
/// Scores must not be negative.
///
/// Linear in the number of scores: the bits of non-negative floats sort as integers, so three
/// histograms of mass narrow the value down; nothing is sorted.
pub(crate) fn mass_threshold(scores: &[f32], fraction: f64) -> f32 {
    let total: f64 = scores.iter().map(|score| f64::from(*score)).sum();
    let wanted = fraction * total;
    let (mut above, mut prefix, mut known) = (0.0, 0_u32, 0_u32);
    for bits in [11_u32, 11, 10] {
        let shift = 32 - known - bits;
        let mut mass = vec![0.0_f64; 1 << bits];
        let mut count = vec![0_usize; 1 << bits];
        for score in scores {
            let word = score.to_bits();
            if known == 0 || word >> (32 - known) == prefix {
                let bucket = (word >> shift) as usize & ((1 << bits) - 1);
                mass[bucket] += f64::from(*score);
                count[bucket] += 1;
            }
        }
        let (mut chosen, mut sum) = (0, above);
        for bucket in (0..1 << bits).rev().filter(|&bucket| count[bucket] > 0) {
            (chosen, above) = (bucket, sum);
            sum += mass[bucket];
            if sum >= wanted {
                break;
            }
        }
        prefix = prefix << bits | chosen as u32;
        known += bits;
    }
    f32::from_bits(prefix)
}

/// For each score its cumulative share of the sum in descending order: small means important.
pub(crate) fn cumulative(scores: &[f32]) -> Vec<f32> {
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    order.sort_by(|a, b| scores[*b as usize].total_cmp(&scores[*a as usize]));
    let total: f64 = scores.iter().map(|score| f64::from(*score)).sum::<f64>().max(f64::MIN_POSITIVE);
    let mut shares = vec![0.0; scores.len()];
    let mut sum = 0.0;
    for node in order {
        sum += f64::from(scores[node as usize]);
        shares[node as usize] = (sum / total) as f32;
    }
    shares
}
