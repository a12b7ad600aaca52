//! Evaluation while a CLT is trained.

use super::{evaluate, EvalConfig, Report};
use crate::error::{Error, ErrorKind, Result};
use crate::model::Model;
use crate::progress::{EvalSample, FidelitySample};
use crate::text::Corpus;
use crate::train::Trainer;

impl Trainer {
    /// Evaluates on `corpus`, text that is not trained on, every
    /// [`TrainConfig::eval_every`](crate::TrainConfig::eval_every) steps: FVU, L0, dead features, and how well the model predicts
    /// with its MLPs replaced. Found in [`History::evals`](crate::train::History::evals), in the file of
    /// metrics, and sent as [`Event::Eval`](crate::progress::Event::Eval). Resuming forgets it: give the text
    /// again. Cost: a copy of the weights, and what [`evaluate`] costs, each time.
    ///
    /// # Errors
    /// `BadConfig` naming the field; `Mismatch` when the trainer's activations are of another model;
    /// `BadInput` for text shorter than one context.
    ///
    /// ```no_run
    /// use cltlab::prelude::*;
    /// let model = Model::load("gpt2", &LoadConfig::default())?;
    /// let (train, test) = Corpus::load("stories.txt", &TextConfig::default())?.split(0.95)?;
    /// let config = TrainConfig { eval_every: 200, ..TrainConfig::default() };
    /// let activations = Activations::stream(&model, &train, &StreamConfig::default())?;
    /// let trainer = Trainer::new(&activations, &CltConfig::for_model(&model), &config)?;
    /// let history = trainer.held_out(&model, &test, &EvalConfig::default())?.run()?;
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    pub fn held_out(mut self, model: &Model, corpus: &Corpus, config: &EvalConfig) -> Result<Self> {
        config.validate(model.context())?;
        config.fits(&self.clt_config().activation)?;
        let own = self.activations().model_fingerprint();
        if !own.is_empty() && own != model.fingerprint() {
            return Err(Error::expected(ErrorKind::Mismatch, "Trainer::held_out: model", model.fingerprint(), format_args!("{own}, which the activations come from")));
        }
        corpus.blocks(model.tokenizer()?, model.special_token(), config.context, Some(config.context))?;
        let (model, corpus, config) = (model.clone(), corpus.clone(), config.clone());
        self.set_examiner(Box::new(move |clt| {
            let found = match evaluate(&model, clt, &corpus, &config) {
                // The replacement's stream can overflow early in a training; the rest is still worth knowing.
                Err(error) if error.kind() == ErrorKind::NotFinite && config.fidelity_tokens > 0 => {
                    evaluate(&model, clt, &corpus, &EvalConfig { fidelity_tokens: 0, ..config.clone() })
                }
                found => found,
            };
            match found {
                Err(error) if error.kind() == ErrorKind::Interrupted => Ok(None),
                found => found.map(|report| Some(sample(&report))),
            }
        }));
        Ok(self)
    }
}

fn sample(report: &Report) -> EvalSample {
    let fidelity = FidelitySample {
        cross_entropy: report.cross_entropy,
        replacement_cross_entropy: report.replacement_cross_entropy,
        kl: report.kl,
        top1: report.top1,
    };
    let finite = fidelity.kl.is_finite() && fidelity.replacement_cross_entropy.is_finite();
    EvalSample {
        step: 0,
        tokens: report.tokens,
        fvu: report.fvu(),
        l0: report.l0(),
        dead: report.dead(),
        fidelity: (report.fidelity_tokens > 0 && finite).then_some(fidelity),
    }
}
