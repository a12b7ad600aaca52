//! From what the blocks of tokens kept to lists by feature, for the backward pass.

use super::scratch::LayerScratch;
use super::LiveLayer;
use crate::clt::Activation;

/// Sorts the kept entries by feature and counts who fired; for a dense layer applies the
/// activation in place.
pub(super) fn sort_entries(activation: &Activation, layer: &LiveLayer, work: &mut LayerScratch, tokens: usize, f: usize) {
    work.fired.fill(0);
    if work.dense {
        return activate_dense(activation, layer, work, f);
    }
    if let Activation::TopK { k } = *activation {
        let ends = work.parts.iter().flat_map(|part| {
            part.ends.iter().scan(0, |start, &end| {
                let row = &part.values[std::mem::replace(start, end as usize)..end as usize];
                Some(if row.len() < k { 0.0 } else { row.iter().copied().fold(f32::INFINITY, f32::min) })
            })
        });
        work.cuts.iter_mut().zip(ends).for_each(|(cut, least)| *cut = least);
    }
    let thresholds: Vec<f32> = layer.log_threshold.iter().flat_map(|log| log.w.iter().map(|t| t.exp())).collect();
    let jumps = !thresholds.is_empty();
    let lists = &mut work.lists;
    let found = work.parts.iter().map(|part| part.features.len()).sum();
    lists.offsets.clear();
    lists.offsets.resize(f + 2, 0);
    for part in &work.parts {
        part.features.iter().for_each(|&feature| lists.offsets[feature as usize + 2] += 1);
    }
    for index in 2..f + 2 {
        lists.offsets[index] += lists.offsets[index - 1];
    }
    lists.tokens.resize(found, 0);
    lists.values.resize(found, 0.0);
    work.pre.resize(if jumps { found } else { 0 }, 0.0);
    let code = &mut work.code;
    code.tokens = tokens;
    for values in [&mut code.features, &mut code.offsets] {
        values.clear();
    }
    code.values.clear();
    code.offsets.push(0);
    let (mut token, mut active) = (0u32, 0);
    for part in &work.parts {
        let mut from = 0;
        for &end in &part.ends {
            for entry in from..end as usize {
                let (feature, h) = (part.features[entry] as usize, part.values[entry]);
                let at = lists.offsets[feature + 1] as usize;
                lists.offsets[feature + 1] += 1;
                let fires = !jumps || h > thresholds[feature];
                lists.tokens[at] = token;
                lists.values[at] = if fires { h } else { 0.0 };
                if jumps {
                    work.pre[at] = h;
                }
                if fires {
                    code.features.push(feature as u32);
                    code.values.push(h);
                    work.fired[feature] += 1;
                    active += 1;
                }
            }
            code.offsets.push(code.features.len() as u32);
            from = end as usize;
            token += 1;
        }
    }
    debug_assert_eq!(token as usize, tokens);
    lists.offsets.truncate(f + 1);
    work.active = active;
    work.kept = found;
}

fn activate_dense(activation: &Activation, layer: &LiveLayer, work: &mut LayerScratch, f: usize) {
    let LayerScratch { activations, pre_dense, fired, .. } = work;
    match (&layer.log_threshold, activation) {
        (Some(log), Activation::JumpRelu { bandwidth, .. }) => {
            let thresholds: Vec<f32> = log.w.iter().map(|t| t.exp()).collect();
            let reach = 0.5 * *bandwidth as f32;
            work.kept = 0;
            for (row, pre) in activations.chunks_exact_mut(f).zip(pre_dense.chunks_exact(f)) {
                for i in 0..f {
                    let fires = pre[i] > thresholds[i];
                    row[i] = if fires { pre[i] } else { 0.0 };
                    fired[i] += u32::from(fires);
                    work.kept += usize::from(pre[i] > thresholds[i] - reach);
                }
            }
        }
        _ => {
            for row in activations.chunks_exact_mut(f) {
                for (a, fired) in row.iter_mut().zip(fired.iter_mut()) {
                    let fires = *a > 0.0;
                    *a = if fires { *a } else { 0.0 };
                    *fired += u32::from(fires);
                }
            }
        }
    }
    work.active = fired.iter().map(|&n| n as usize).sum();
    if layer.log_threshold.is_none() {
        work.kept = work.active;
    }
}
