//! Training towards an L0: λ rises until enough features are silent, and the end is moved there.
//!
//! CLT-Forge stops at that step, with the rate at its height. Merely holding λ while the rate falls goes
//! too far: at λ's final value the L0 would be lower still, and on planted features it fell from 6 to 2.7
//! in the 300 steps after. So λ is steered: a little down while L0 is below the aim, a little up (to its
//! full value) while above.

use super::{TrainConfig, Trainer};
use crate::clt::CltConfig;
use crate::error::{Error, ErrorKind, Result};

/// Steps whose mean L0 counts.
const WINDOW: usize = 20;

/// Power of L0 / aim by which λ changes each step.
const GAIN: f64 = 0.05;

/// What is kept once the aim is reached.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Reached {
    /// When.
    step: usize,
    /// The share of λ that applies.
    share: f64,
}

/// Refuses a target that nothing pulls towards.
pub(super) fn check(clt: &CltConfig, config: &TrainConfig) -> Result<()> {
    let Some(l0) = config.target_l0 else { return Ok(()) };
    let bad = |expected: String| Err(Error::expected(ErrorKind::BadConfig, "TrainConfig::target_l0", l0, expected));
    if clt.activation.is_ranked() {
        return bad(format!("none, because {} has the L0 that its k says", clt.activation.label()));
    }
    if config.sparsity_for(&clt.activation) == 0.0 {
        return bad("none, because TrainConfig::sparsity is 0".into());
    }
    if l0 >= clt.features as f64 {
        return bad(format!("less than {}, the features per layer", clt.features));
    }
    Ok(())
}

impl Trainer {
    /// The step at which [`TrainConfig::target_l0`] was reached, if it was.
    pub fn reached_l0(&self) -> Option<usize> {
        self.reached.map(|reached| reached.step)
    }

    /// The share of λ in step `step`.
    pub(super) fn share_at(&self, step: usize) -> f64 {
        self.reached.map_or_else(|| self.config.ramp_at(step), |reached| reached.share)
    }

    /// Whether the steps that were aimed at are done: [`TrainConfig::steps`], or fewer once the L0
    /// was reached. [`run`](Trainer::run) goes on all the same, for as many steps more.
    pub fn is_done(&self) -> bool {
        self.steps() >= self.target
    }

    /// After a step: the L0 aimed at, once reached, ends the rise of λ and soon the run.
    pub(super) fn look_at_l0(&mut self) {
        let samples = &self.history.samples;
        let (Some(aim), true) = (self.config.target_l0, samples.len() >= WINDOW) else { return };
        // Whole numbers: a history from a file may lack a sample's last bit, and the weights follow from this.
        let tokens = (self.live.config.layers * self.config.batch_tokens) as f64;
        let active: f64 = samples[samples.len() - WINDOW..].iter().map(|sample| (sample.l0 * tokens).round()).sum();
        let mean = active / (tokens * WINDOW as f64);
        if let Some(reached) = &mut self.reached {
            reached.share = (reached.share * (mean / aim).powf(GAIN)).min(1.0);
        } else if mean <= aim {
            let step = self.steps();
            self.reached = Some(Reached { step, share: self.config.ramp_at(step) });
            let fall = (self.config.decay * self.config.steps as f64).ceil() as usize;
            self.target = self.target.min(step + fall);
        }
    }
}
