//! The shape of a CLT: one plain struct, saved as JSON beside the weights.

use crate::activations::InputSite;
use crate::clt::Activation;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Model, OutputSite};

/// Which decoder rows of a CLT are trained as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Tied {
    /// None.
    #[default]
    No,
    /// A feature writes the same to all its targets: L·F·d decoder weights instead of some L/2 times
    /// as many. *Per source* in crosslayer-coding and clt-training.
    PerSource,
    /// All layers share one matrix for each target, so that a feature number has one direction there
    /// whichever layer it fired in: `ŷ_t = b_t + W_tᵀ Σ_{s ≤ t} a_s`, as many decoder weights as above.
    /// *Per target* in crosslayer-coding; clt-training's tied CLTs (`coalesce_topk=concat` without
    /// `topk_coalesced`). Both can scale and shift each feature at each target, which ours does not.
    PerTarget,
}

impl Tied {
    /// Its name in files: `no`, `per_source`, `per_target`.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Tied::No => "no",
            Tied::PerSource => "per_source",
            Tied::PerTarget => "per_target",
        }
    }

    fn is_no(&self) -> bool {
        *self == Tied::No
    }
}

/// What a CLT is: its shape, its activation and the model it belongs to.
///
/// ```
/// use cltlab::clt::{Activation, CltConfig};
/// let config = CltConfig { layers: 6, width: 256, features: 2048, ..CltConfig::default() };
/// assert_eq!(config.parameters(), 14_169_600);
/// ```
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CltConfig {
    /// Layers of the model, L. A feature of layer l writes to the MLP outputs of layers l to L-1,
    /// or of layer l alone where `per_layer` is set.
    pub layers: usize,
    /// Width of the residual stream, d.
    pub width: usize,
    /// Features per layer, F.
    pub features: usize,
    /// How pre-activations become activations. Default: BatchTopK with k = 32.
    pub activation: Activation,
    /// One transcoder a layer (a PLT): features write to their own layer only. Default: no.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub per_layer: bool,
    /// Each layer has a linear skip connection from what its encoder reads to its MLP output
    /// ([`LayerWeights::skip`](crate::clt::LayerWeights::skip)), trained with the rest. Default: no.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skip: bool,
    /// Decoder rows that are trained as one. Default: none. The CLT that comes out has them apart.
    #[serde(default, skip_serializing_if = "Tied::is_no")]
    pub tied: Tied,
    /// What the encoders read. Default: the residual before the MLP's norm.
    pub input: InputSite,
    /// What the decoders write to, which matters in families with a norm after the MLP only. Default:
    /// what is added to the residual stream.
    #[serde(default)]
    pub output: OutputSite,
    /// The model's name, for people and for circuit-tracer.
    pub model_name: String,
    /// The model's fingerprint; empty when not known (a CLT trained elsewhere).
    pub model_fingerprint: String,
}

impl Default for CltConfig {
    fn default() -> Self {
        CltConfig {
            layers: 1,
            width: 64,
            features: 512,
            activation: Activation::BatchTopK { k: 32 },
            per_layer: false,
            skip: false,
            tied: Tied::No,
            input: InputSite::default(),
            output: OutputSite::default(),
            model_name: String::new(),
            model_fingerprint: String::new(),
        }
    }
}

impl CltConfig {
    /// A CLT that fits `model`: its layers, width, output site, name and fingerprint, with twice as many
    /// features per layer as the model is wide and BatchTopK with k = 32. A start for a machine
    /// without GPU; published CLTs have 16 to 32 features per unit of width.
    pub fn for_model(model: &Model) -> Self {
        CltConfig {
            layers: model.layers(),
            width: model.width(),
            output: model.output(),
            features: 2 * model.width(),
            model_name: model.name().to_string(),
            model_fingerprint: model.fingerprint().to_string(),
            ..CltConfig::default()
        }
    }

    /// Checks that such a CLT can exist.
    ///
    /// # Errors
    /// `BadConfig` naming the field.
    #[doc(hidden)]
    pub fn validate(&self) -> Result<()> {
        for (field, value) in [("layers", self.layers), ("width", self.width), ("features", self.features)] {
            if value == 0 {
                return Err(Error::expected(ErrorKind::BadConfig, format_args!("CltConfig::{field}"), 0, "at least 1"));
            }
        }
        // Counts of weights and their bytes then fit into 64 bits.
        for (field, value, most) in [("layers", self.layers, 1 << 14), ("width", self.width, 1 << 24)] {
            Error::at_most(ErrorKind::BadConfig, format_args!("CltConfig::{field}"), value, most)?;
        }
        let rows = if self.per_layer { 2 * self.layers as u128 } else { (self.layers as u128 + 3) * self.layers as u128 };
        if rows * self.features as u128 * self.width as u128 > 1 << 56 {
            return Err(Error::expected(ErrorKind::BadConfig, "CltConfig::features", format_args!("{} in {} layers of width {}", self.features, self.layers, self.width), "fewer than 2^56 weights"));
        }
        if self.features > u32::MAX as usize / 2 {
            return Err(Error::expected(ErrorKind::BadConfig, "CltConfig::features", self.features, "at most 2^31"));
        }
        if self.per_layer && self.tied != Tied::No {
            return Err(Error::expected(ErrorKind::BadConfig, "CltConfig::tied", self.tied.label(), "no, because a PLT's features have one target only"));
        }
        self.activation.validate(self.features)
    }

    /// Weights in a decoder row of `layer` while it is trained.
    pub(crate) fn columns(&self, layer: usize) -> usize {
        if self.tied != Tied::No { self.width } else { self.slots(layer) * self.width }
    }

    /// How many targets one trained decoder row of `layer` stands for.
    pub(crate) fn copies(&self, layer: usize) -> f64 {
        if self.tied == Tied::PerSource { self.slots(layer) as f64 } else { 1.0 }
    }

    /// As [`CltConfig::parameters`], tied rows counted once.
    pub(crate) fn trained_parameters(&self) -> u64 {
        let once = (0..self.layers).map(|layer| self.columns(layer) as u64).sum::<u64>();
        self.parameters() - (self.decoders() * self.width) as u64 * self.features as u64 + once * self.features as u64
    }

    /// Target layers that layer `layer` writes to: `L - layer`, or 1 in a PLT; 0 for a missing layer.
    #[doc(hidden)]
    pub fn slots(&self, layer: usize) -> usize {
        let later = self.layers.saturating_sub(layer);
        if self.per_layer { later.min(1) } else { later }
    }

    /// Features of one layer that a token may keep, or a batch's tokens on average, when `k` are wanted of each and all layers are ranked
    /// together.
    pub(crate) fn most_of_layers(&self, k: usize) -> usize {
        (k * self.layers).min(self.features)
    }

    /// The first layer that writes to layer `target`: 0, or `target` in a PLT. The others up to
    /// `target` follow.
    pub(crate) fn first_source(&self, target: usize) -> usize {
        if self.per_layer { target } else { 0 }
    }

    /// Decoder matrices (source, target): `L (L + 1) / 2`, or L in a PLT.
    #[doc(hidden)]
    pub fn decoders(&self) -> usize {
        if self.per_layer { self.layers } else { self.layers * (self.layers + 1) / 2 }
    }

    /// Weights in all: encoders, decoders, biases, thresholds if the activation learns them, and skip connections if it has them.
    pub fn parameters(&self) -> u64 {
        let (l, d, f) = (self.layers as u64, self.width as u64, self.features as u64);
        let thresholds = if matches!(self.activation, Activation::JumpRelu { .. }) { l * f } else { 0 };
        let skips = if self.skip { l * d * d } else { 0 };
        l * f * d + self.decoders() as u64 * f * d + l * (f + d) + thresholds + skips
    }
}
