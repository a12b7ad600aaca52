//! Evaluation between steps. What is measured belongs to a later room of the walk (`eval`, which
//! gives [`Trainer::held_out`]); here is only when it is asked and what becomes of its answer.

use super::Trainer;
use crate::clt::Clt;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{emit, stop_requested, EvalSample, Event};

/// Evaluates a CLT; `None` when it was stopped before there was a result.
pub(crate) type Examiner = Box<dyn Fn(&Clt) -> Result<Option<EvalSample>> + Send + Sync>;

impl Trainer {
    pub(crate) fn set_examiner(&mut self, examiner: Examiner) {
        self.examiner = Some(examiner);
    }

    /// Refuses a training that is to be evaluated without a text, before its first step.
    pub(super) fn can_examine(&self) -> Result<()> {
        match (&self.examiner, self.config.eval_every) {
            (None, every) if every > 0 => Err(Error::expected(ErrorKind::BadConfig, "TrainConfig::eval_every", every, "0, because no held-out text was given")
                .help("give one: Trainer::new(..)?.held_out(&model, &text, &EvalConfig::default())?, also after a resume")),
            _ => Ok(()),
        }
    }

    /// Evaluates after this step when it is due. The weights and the data's order do not depend on it.
    pub(super) fn examine(&mut self) -> Result<()> {
        let (Some(examiner), every) = (&self.examiner, self.config.eval_every) else { return Ok(()) };
        if every == 0 || self.steps() % every != 0 {
            return Ok(());
        }
        let found = examiner(&self.clt()?).map_err(|error| error.context(format_args!("evaluation after step {}", self.steps())))?;
        // A stop cuts an evaluation short: figures of less text would not compare with the others.
        if let Some(sample) = found.filter(|_| !stop_requested()) {
            let sample = EvalSample { step: self.steps(), ..sample };
            emit(Event::Eval(sample.clone()));
            self.history.evals.push(sample);
        }
        Ok(())
    }
}
