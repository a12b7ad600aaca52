//! Agreement: how well predicted and measured changes go together, in two numbers.

use serde::{Deserialize, Serialize};

/// Correlation of two lists of changes; `None` where one does not vary.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// Of the numbers (Pearson): large changes count most.
    pub pearson: Option<f64>,
    /// Of their ranks (Spearman): all count the same.
    pub spearman: Option<f64>,
}

impl Agreement {
    pub(super) fn of(pairs: Vec<(f64, f64)>) -> Self {
        let (x, y) = (ranks(pairs.iter().map(|pair| pair.0)), ranks(pairs.iter().map(|pair| pair.1)));
        Agreement { spearman: correlation(x.into_iter().zip(y)), pearson: correlation(pairs.into_iter()) }
    }
}

impl std::fmt::Display for Agreement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rounded = |r: Option<f64>| r.map_or_else(|| "–".to_string(), |r| format!("{r:.3}"));
        write!(f, "r = {} (ranks {})", rounded(self.pearson), rounded(self.spearman))
    }
}

/// The rank of each value; equal values share the mean of theirs.
fn ranks(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let values: Vec<f64> = values.collect();
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    for equal in order.chunk_by(|a, b| values[*a] == values[*b]) {
        let mean = first as f64 + 0.5 * (equal.len() - 1) as f64;
        equal.iter().for_each(|place| ranks[*place] = mean);
        first += equal.len();
    }
    ranks
}

/// Correlation (Pearson) of pairs; `None` when either side does not vary.
pub(crate) fn correlation(pairs: impl Iterator<Item = (f64, f64)>) -> Option<f64> {
    let pairs: Vec<(f64, f64)> = pairs.collect();
    let n = pairs.len() as f64;
    let (x, y) = (pairs.iter().map(|pair| pair.0).sum::<f64>() / n, pairs.iter().map(|pair| pair.1).sum::<f64>() / n);
    let (mut both, mut xx, mut yy) = (0.0, 0.0, 0.0);
    for (a, b) in pairs {
        both += (a - x) * (b - y);
        xx += (a - x).powi(2);
        yy += (b - y).powi(2);
    }
    (xx > 0.0 && yy > 0.0).then(|| both / (xx * yy).sqrt())
}
