//! Where a ranking goes over a batch, or over layers: which of the candidates stay.
//!
//! In: entries that each layer found, more than are wanted. Out: the same entries less those below
//! the cut, and the cut. Of equal values the lower layer, token and feature stay.

use super::scratch::{LayerScratch, Part};
use crate::clt::activation::CutOff;
use rayon::prelude::*;

/// Drops all but the `wanted` largest entries of these layers; returns the least that stays, 0 where there are fewer.
pub(super) fn cut_batch(layers: &mut [LayerScratch], wanted: usize) -> f32 {
    let Some(first) = layers.first_mut() else { return 0.0 };
    let mut candidates = std::mem::take(&mut first.candidates);
    candidates.clear();
    layers.iter().flat_map(|work| &work.parts).for_each(|part| candidates.extend_from_slice(&part.values));
    let cut = if candidates.len() < wanted {
        0.0
    } else {
        let mut cut = CutOff::of(&mut candidates, wanted);
        layers.iter_mut().flat_map(|work| &mut work.parts).for_each(|part| keep_if(part, |_, value| cut.keeps(value)));
        cut.value
    };
    layers[0].candidates = candidates;
    cut
}

/// Drops all but the `wanted` largest entries of each token over these layers, and notes the least
/// that stays in each layer's `cuts`, 0 where there are fewer.
pub(super) fn cut_tokens(layers: &mut [LayerScratch], wanted: usize) {
    let Some((first, rest)) = layers.split_first_mut() else { return };
    let mut cut_offs = std::mem::take(&mut first.cut_offs);
    cut_offs.resize(first.cuts.len(), CutOff::NONE);
    let size = first.parts.first().map_or(1, |part| part.ends.len()).max(1);
    // The first layer's parts lend their buffers.
    first.parts.par_iter_mut().zip(cut_offs.par_chunks_mut(size)).enumerate().for_each(|(block, (part, cut_offs))| {
        let mut candidates = std::mem::take(&mut part.candidates);
        for (p, cut) in cut_offs.iter_mut().enumerate() {
            candidates.clear();
            candidates.extend_from_slice(part.token(p));
            rest.iter().for_each(|work| candidates.extend_from_slice(work.parts[block].token(p)));
            *cut = if candidates.len() < wanted { CutOff::NONE } else { CutOff::of(&mut candidates, wanted) };
        }
        part.candidates = candidates;
    });
    for work in layers.iter_mut() {
        work.cuts.iter_mut().zip(&cut_offs).for_each(|(cut, found)| *cut = found.value);
        work.parts.par_iter_mut().zip(cut_offs.par_chunks_mut(size)).for_each(|(part, cut_offs)| keep_if(part, |p, value| cut_offs[p].keeps(value)));
    }
    layers[0].cut_offs = cut_offs;
}

/// Drops the entries of which `keep` (token in the part, value) says no.
fn keep_if(part: &mut Part, mut keep: impl FnMut(usize, f32) -> bool) {
    let (mut to, mut from) = (0, 0);
    for (p, end) in part.ends.iter_mut().enumerate() {
        while from < *end as usize {
            let value = part.values[from];
            if keep(p, value) {
                part.features[to] = part.features[from];
                part.values[to] = value;
                to += 1;
            }
            from += 1;
        }
        *end = to as u32;
    }
    part.features.truncate(to);
    part.values.truncate(to);
}
