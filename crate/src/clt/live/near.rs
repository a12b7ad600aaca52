//! Encoding where few entries are kept: rounded products say which may be, and these alone are computed
//! in f32 ([`Screen`]). What is kept does not depend on where the search began.

use super::scratch::{token_block, Block, LayerScratch, Part, Scratch};
use super::LiveLayer;
use crate::clt::activation::Rule;
use crate::clt::kernels::{keep_top, trim_top};
use crate::model::fast::{exact_row, screens, Found, Grain, Screen, CHUNK};
use rayon::prelude::*;

pub(crate) use crate::model::fast::Rounded;

/// Share of entries that may be looked at in vain before the finer rounding is cheaper: an exact product costs some
/// 25 times what bytes save on a rounded one.
const VAIN: f32 = 0.03;

/// Share of entries up to which looking twice is cheaper.
const FEW: f32 = 0.06;

/// What is kept from step to step.
#[derive(Default)]
pub(crate) struct Near {
    screen: Screen,
    /// Bytes were too coarse for these inputs and weights.
    fine: bool,
    chunks: Vec<Found>,
    /// What each token's entries have to exceed to be looked at.
    floors: Vec<f32>,
    /// TopK: the floor in units of ‖x‖, below nearly all cuts of the last step.
    reach: f32,
    /// Candidates token by token: where each token's begin, features, values.
    offsets: Vec<u32>,
    features: Vec<u32>,
    values: Vec<f32>,
    ratios: Vec<f32>,
}

/// Whether rounded products are worth it. The answer follows from what checkpoints hold, so that a
/// resumed run gets the same bits.
pub(super) fn pays(rule: Rule<'_>, density: f32, d: usize, f: usize) -> bool {
    let few = match rule {
        Rule::Top(k) => k as f32 <= FEW * f as f32,
        Rule::Above(floor) => floor > 0.0 && density <= FEW,
        Rule::AboveEach(_) => density <= FEW,
    };
    few && screens(d)
}

/// Fills `work.parts` with what `rule` keeps.
pub(super) fn keep(rule: Rule<'_>, layer: &LiveLayer, work: &mut LayerScratch, x: &[f32], (tokens, d, f): (usize, usize, usize), scratch: &Scratch) {
    let LayerScratch { near, parts, .. } = work;
    let (w, bias) = (&layer.encoder.w, &layer.encoder_bias.w);
    let grain = if near.fine { Grain::Bf16 } else { Grain::coarsest() };
    near.screen.fill(x, d, grain);
    near.floors.clear();
    near.floors.resize(near.screen.padded(), 0.0);
    let mut each: &[f32] = &[];
    match rule {
        Rule::Top(k) => {
            if near.reach == 0.0 {
                near.reach = first_reach(near.screen.norms(), x, w, bias, k, &mut scratch.block().h);
            }
            let reach = near.reach;
            near.floors.iter_mut().zip(near.screen.norms()).for_each(|(floor, norm)| *floor = reach * norm);
        }
        Rule::Above(floor) => near.floors.fill(floor),
        Rule::AboveEach(thresholds) => each = thresholds,
    }
    let Near { screen, fine, chunks, floors, reach, offsets, features, values, ratios } = near;
    chunks.resize_with(f.div_ceil(CHUNK), Found::default);
    chunks.par_iter_mut().enumerate().for_each(|(chunk, found)| {
        let range = chunk * CHUNK..((chunk + 1) * CHUNK).min(f);
        let own = if each.is_empty() { each } else { &each[range.clone()] };
        screen.chunk(x, &w[range.start * d..range.end * d], &bias[range], (floors, own), &mut scratch.block().rounded, found);
    });
    let vain: usize = chunks.iter().map(|found| found.looked - found.tokens.len()).sum();
    *fine |= vain as f32 > VAIN * (tokens * f) as f32;
    by_token(chunks, tokens, offsets, features, values);
    let size = token_block(d);
    parts.par_iter_mut().enumerate().for_each(|(block, part)| {
        let Part { features: kept, values: kept_values, ends, select, .. } = part;
        kept.clear();
        kept_values.clear();
        ends.clear();
        for p in block * size..((block + 1) * size).min(tokens) {
            let range = offsets[p] as usize..offsets[p + 1] as usize;
            let start = kept.len();
            match rule {
                Rule::Top(k) if range.len() < k && floors[p] > 0.0 => {
                    let Block { h, .. } = &mut *scratch.block();
                    h.resize(h.len().max(f), 0.0);
                    exact_row(&x[p * d..(p + 1) * d], w, bias, &mut h[..f]);
                    select.clear();
                    keep_top(&h[..f], k, kept, kept_values, select);
                }
                _ => {
                    kept.extend_from_slice(&features[range.clone()]);
                    kept_values.extend_from_slice(&values[range]);
                    if let Rule::Top(k) = rule {
                        trim_top(start, k, kept, kept_values, select);
                    }
                }
            }
            ends.push(kept.len() as u32);
        }
    });
    if let Rule::Top(k) = rule {
        ratios.clear();
        let kept = parts.iter().flat_map(|part| part.ends.iter().scan(0, |start, &end| Some(&part.values[std::mem::replace(start, end as usize)..end as usize])));
        ratios.extend(kept.zip(screen.norms()).map(|(values, norm)| if values.len() < k { 0.0 } else { values.iter().copied().fold(f32::INFINITY, f32::min) / norm.max(f32::MIN_POSITIVE) }));
        *reach = 0.97 * low(ratios);
    }
}

/// A number below all but a fiftieth of `values`, 0 or more.
fn low(values: &mut [f32]) -> f32 {
    let at = values.len() / 50;
    if values.is_empty() { 0.0 } else { values.select_nth_unstable_by(at, f32::total_cmp).1.max(0.0) }
}

/// TopK's floor in units of ‖x‖ from a few tokens' exact rows.
fn first_reach(norms: &[f32], x: &[f32], w: &[f32], bias: &[f32], k: usize, h: &mut Vec<f32>) -> f32 {
    let (d, f) = (x.len() / norms.len().max(1), bias.len());
    h.resize(h.len().max(f), 0.0);
    let mut ratios = Vec::new();
    for p in (0..norms.len()).step_by(norms.len().div_ceil(16).max(1)) {
        exact_row(&x[p * d..(p + 1) * d], w, bias, &mut h[..f]);
        let (_, cut, _) = h[..f].select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        ratios.push(*cut / norms[p].max(f32::MIN_POSITIVE));
    }
    0.9 * low(&mut ratios)
}

/// Entries by feature to entries by token; features ascend.
fn by_token(chunks: &[Found], tokens: usize, offsets: &mut Vec<u32>, features: &mut Vec<u32>, values: &mut Vec<f32>) {
    offsets.clear();
    offsets.resize(tokens + 2, 0);
    chunks.iter().for_each(|found| found.tokens.iter().for_each(|&p| offsets[p as usize + 2] += 1));
    for p in 2..tokens + 2 {
        offsets[p] += offsets[p - 1];
    }
    let all = offsets[tokens + 1] as usize;
    features.resize(all, 0);
    values.resize(all, 0.0);
    for (chunk, found) in chunks.iter().enumerate() {
        let mut from = 0;
        for (out, &end) in found.ends.iter().enumerate() {
            for entry in from..end as usize {
                let at = &mut offsets[found.tokens[entry] as usize + 1];
                features[*at as usize] = (chunk * CHUNK + out) as u32;
                values[*at as usize] = found.values[entry];
                *at += 1;
            }
            from = end as usize;
        }
    }
}
