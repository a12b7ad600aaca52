//! Replacement: the model with its MLPs explained by a CLT.
//!
//! In: a [`Model`] and the [`Clt`] made for it. Out: the replacement model ([`Replacement::run`],
//! every MLP output replaced by the reconstruction), and for one prompt the *local* replacement
//! model ([`LocalReplacement`]), in which error terms make up for what the CLT lacks, so that its
//! outputs are the model's own (*Circuit Tracing*, sections on the replacement models). Evaluation,
//! attribution and interventions all start here. Cost: a forward pass and an encoding.

mod feature;
mod linear;
mod local;

pub use feature::FeatureNode;
#[doc(hidden)]
pub use linear::{FrozenModel, Site};
pub(crate) use local::{last_logits, last_uncapped};
pub use local::{LocalConfig, LocalReplacement};

use crate::clt::{Clt, LayerCode};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Capture, Freeze, Front, MlpSite, Model, Run};
use crate::text::Prompt;
use candle_core::Tensor;

/// A model and a CLT that belong together. Cheap to clone.
///
/// ```no_run
/// # use cltlab::{clt::Clt, replacement::Replacement, Model};
/// let model = Model::load("gpt2", &Default::default())?;
/// let clt = Clt::load("runs/gpt2-24k", &Default::default())?;
/// let replacement = Replacement::new(&model, &clt)?;
/// let local = replacement.local("The capital of France is", &Default::default())?;
/// println!("{} active features", local.active().len());
/// # Ok::<(), cltlab::Error>(())
/// ```
#[derive(Clone)]
pub struct Replacement {
    model: Model,
    clt: Clt,
}

impl Replacement {
    /// Puts model and CLT together. A CLT without a fingerprint (made by another tool) is checked
    /// by its shape only.
    ///
    /// # Errors
    /// `Mismatch` when layers, width, fingerprint or device differ.
    pub fn new(model: &Model, clt: &Clt) -> Result<Self> {
        let config = clt.config();
        for (field, got, expected) in [("layers", config.layers, model.layers()), ("width", config.width, model.width())] {
            if got != expected {
                return Err(Error::expected(ErrorKind::Mismatch, format_args!("CLT for {}: {field}", model.name()), got, expected)
                    .help("use the CLT with the model it was trained on"));
            }
        }
        let print = &config.model_fingerprint;
        if !print.is_empty() && print != model.fingerprint() {
            return Err(Error::expected(
                ErrorKind::Mismatch,
                format_args!("CLT for {}: model fingerprint", model.name()),
                format_args!("{print} ({})", config.model_name),
                model.fingerprint(),
            )
            .help("the shapes agree but the weights do not: use the CLT with the model it was trained on"));
        }
        if !clt.device().same_device(model.device()) {
            return Err(Error::expected(ErrorKind::Mismatch, "CLT: device", format_args!("{:?}", clt.device()), format_args!("{:?}", model.device()))
                .help("load both to the same device"));
        }
        Ok(Replacement { model: model.at(config.output), clt: clt.clone() })
    }

    /// The model, its MLPs' outputs taken where the CLT writes.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The CLT.
    pub fn clt(&self) -> &Clt {
        &self.clt
    }

    /// Ids of a prompt as the replacement's verbs see it: as [`Model::tokens`], and a text with a special token in front
    /// where it begins with none: that of the beginning of text, else padding's, else that of the end, as in
    /// circuit-tracer. See [`Prompt`].
    ///
    /// # Errors
    /// As [`Model::tokens`].
    pub fn tokens(&self, prompt: impl Into<Prompt>) -> Result<Vec<u32>> {
        self.model.ids(prompt.into(), Front::Special)
    }

    /// Runs the replacement model: at each layer the features are computed on the replaced stream
    /// and the MLP's output becomes the reconstruction. Position 0, on which CLTs are not trained,
    /// keeps its MLP.
    ///
    /// # Errors
    /// As [`Replacement::tokens`]; `NotFinite` when the stream overflows.
    pub fn run(&self, prompt: impl Into<Prompt>, capture: &Capture) -> Result<Run> {
        let mut codes: Vec<LayerCode> = Vec::with_capacity(self.model.layers());
        self.model.run_spliced(self.tokens(prompt)?, capture, Freeze::none(), &mut |layer, site| {
            let read = self.read(site)?;
            codes.push(self.clt.encode_layer(layer, &read)?);
            let written = self.clt.decode_target(&codes, layer, Some(&read))?;
            let count = written.dim(0)?;
            let first = site.mlp_out.narrow(0, 0, 1)?;
            Ok(Some(if count == 1 { first } else { Tensor::cat(&[&first, &written.narrow(0, 1, count - 1)?], 0)? }))
        })
    }

    /// Logits of the replacement model, `[T, V]`.
    ///
    /// # Errors
    /// As [`Replacement::run`].
    pub fn logits(&self, prompt: impl Into<Prompt>) -> Result<Tensor> {
        self.run(prompt, &Capture::logits())?.logits.ok_or_else(|| Error::new(ErrorKind::Tensor, "Replacement::logits: the pass made no logits"))
    }

    /// What the encoders read of a site, `[T, d]`.
    pub(crate) fn read(&self, site: &MlpSite<'_>) -> Result<Tensor> {
        self.clt.config().input.of(site)
    }
}

impl std::fmt::Debug for Replacement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Replacement of {} by {}", self.model.name(), self.clt)
    }
}
