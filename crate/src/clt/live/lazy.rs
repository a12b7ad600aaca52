//! Decoder rows whose feature does not fire get no gradient, only what their moments still push.
//! With g = 0 Adam's steps are a geometric series: m and v shrink by β₁ and β₂ a step, so the
//! weight moves by `m / √v` times a sum that depends on the steps alone. It is added up for each
//! step at which a row may have rested from, and a row is brought up to date in one pass when its
//! feature fires again: the same weights as if Adam had been run on every row each step (to
//! rounding, and to ε beside √v), for the memory traffic of the rows that fire.

use super::param::Param;
use super::scratch::Scratch;
use super::{LiveClt, LiveLayer, StepOptions};
use crate::clt::kernels::{rest_row, AdamStep, Rest};
use rayon::prelude::*;

/// For each past step (counted from 0, before the first) how far a row that rested since has drifted,
/// in units of `m / √v`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Pending(pub Vec<f32>);

impl Pending {
    /// Takes in the step that `adam` makes; to be called once a step, after all rows.
    pub fn advance(&mut self, adam: &AdamStep) {
        self.0.push(0.0);
        let ratio = f64::from(adam.beta1) / f64::from(adam.beta2).sqrt();
        let mut push = f64::from(adam.rate) / f64::from(adam.root);
        for drift in self.0.iter_mut().rev() {
            push *= ratio;
            // Nothing of it is left in an f32.
            if push < 1e-12 * f64::from(adam.rate) {
                break;
            }
            *drift += push as f32;
        }
    }

    /// What happened to a row since step `last`, if anything.
    pub fn since(&self, last: u32, now: u64, betas: (f64, f64), eps: f64) -> Option<Rest> {
        let steps = now.checked_sub(u64::from(last)).filter(|&steps| steps > 0)?;
        let power = |beta: f64| beta.powf(steps as f64) as f32;
        Some(Rest { drift: *self.0.get(last as usize)?, decay1: power(betas.0), decay2: power(betas.1), eps: eps as f32 })
    }
}

impl LiveClt {
    /// Brings the decoder rows up to date whose feature fires in this step or is dead.
    pub(super) fn settle(&mut self, scratch: &Scratch, options: &StepOptions) {
        let dead = options.dead > 0.0;
        self.settle_rows(options.betas, options.eps, |l, f, idle| scratch.layers[l].has(f) || (dead && idle >= options.dead_window));
    }

    /// Brings all decoder rows up to date, for a step that knows no rest.
    #[cfg(feature = "cuda")]
    pub fn settle_all(&mut self, betas: (f64, f64), eps: f64) {
        self.settle_rows(betas, eps, |_, _, _| true);
    }

    /// Brings the rows up to date that `wanted` (layer, feature, tokens since it fired) names.
    fn settle_rows(&mut self, betas: (f64, f64), eps: f64, wanted: impl Fn(usize, usize, u32) -> bool + Sync) {
        let (pending, now) = (&self.pending, self.steps);
        self.layers.par_iter_mut().enumerate().for_each(|(l, layer)| {
            let LiveLayer { decoder, last, squares, idle, .. } = layer;
            let (mut rest, blocks) = (decoder.cutter(), 64);
            let pieces: Vec<_> = (0..last.len()).step_by(blocks).map(|first| (first, rest.take(blocks.min(last.len() - first)))).collect();
            let counters = last.par_chunks_mut(blocks).zip(squares.par_chunks_mut(blocks));
            pieces.into_par_iter().zip(counters).for_each(|((first, mut piece), (last, squares))| {
                for (i, last) in last.iter_mut().enumerate() {
                    let f = first + i;
                    if !wanted(l, f, idle[f]) {
                        continue;
                    }
                    if let Some(rest) = pending.since(*last, now, betas, eps) {
                        let d = piece.row;
                        squares[i] = rest_row(&mut piece.rows(i, 0, d), rest, now as u32);
                        *last = now as u32;
                    }
                }
            });
        });
    }

    /// The decoder of `layer` as it would be if no row had rested.
    pub(super) fn settled(&self, layer: &LiveLayer, eps: f64) -> Vec<f32> {
        let Param { w, row, .. } = &layer.decoder;
        let mut all = w.clone();
        all.par_chunks_mut(*row).enumerate().for_each_init(
            || (vec![0.0; *row], vec![0.0; *row]),
            |(m, v), (f, w)| {
                let since = u64::from(layer.last[f]) < self.steps;
                if let Some(&drift) = self.pending.0.get(layer.last[f] as usize).filter(|_| since) {
                    layer.decoder.moments_of(f, m, v);
                    w.iter_mut().zip(m.iter().zip(v.iter())).for_each(|(w, (m, v))| *w -= drift * m / (v.sqrt() + eps as f32));
                }
            },
        );
        all
    }
}
