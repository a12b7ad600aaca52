//! The cross-layer transcoder (CLT): encoders that read each layer's residual stream, decoders
//! that write to the MLP outputs of that layer and all later ones.
//!
//! Place in the walk: after `activations`, before `train`. Symbols used everywhere below: L layers,
//! d width, F features per layer, T tokens. Source: *Circuit Tracing* (Anthropic 2025), and
//! circuit-tracer for names and layouts.
//!
//! ```text
//! h[l] = x[l] W_enc[l]ᵀ + b_enc[l]                       [T, F]
//! a[l] = activation(h[l])                                sparse
//! ŷ[t] = b_dec[t] + Σ_{s ≤ t} a[s] W_dec[s][:, t − s, :] [T, d]
//! ```
//!
//! With skip connections ([`CltConfig::skip`]) `ŷ[t] += x[t] W_skip[t]`.
//!
//! Encoding costs 2·T·F·d multiply-adds a layer (dense); decoding only the active features' rows.

mod activation;
mod calibrate;
mod config;
mod decode;
mod decoder;
mod encode;
pub(crate) mod io;
mod pages;
pub(crate) mod kernels;
pub(crate) mod live;
mod sparse;

pub(crate) use decode::values;
pub(crate) use decoder::Decoder;
pub use activation::Activation;
pub use calibrate::{Calibration, Scope};
pub use crate::activations::InputSite;
pub use config::{CltConfig, Tied};
pub use io::{CltLoadConfig, CltSaveConfig, Format};
pub use sparse::{LayerCode, SparseCode};

use crate::device::require_own;
use crate::error::{Error, ErrorKind, Result};
use candle_core::{DType, Device, Tensor};
use std::sync::Arc;

/// One feature: its source layer and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct FeatureId {
    /// Source layer.
    pub layer: usize,
    /// Number within the layer.
    pub feature: usize,
}

impl std::fmt::Display for FeatureId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}_{}", self.layer, self.feature)
    }
}

impl From<(usize, usize)> for FeatureId {
    /// From (layer, feature).
    fn from((layer, feature): (usize, usize)) -> Self {
        FeatureId { layer, feature }
    }
}

impl std::str::FromStr for FeatureId {
    type Err = Error;

    /// # Errors
    /// `BadInput` for anything but `layer_feature`.
    fn from_str(text: &str) -> Result<Self> {
        let id = text.trim().split_once('_').and_then(|(layer, feature)| Some(FeatureId { layer: layer.parse().ok()?, feature: feature.parse().ok()? }));
        id.ok_or_else(|| Error::expected(ErrorKind::BadInput, "feature", format_args!("'{text}'"), "layer_feature, for instance 0_605"))
    }
}

/// The tensors of one layer, f32.
#[derive(Clone, Debug)]
pub struct LayerWeights {
    /// `[F, d]`.
    pub encoder: Tensor,
    /// `[F]`.
    pub encoder_bias: Tensor,
    /// `[F]`; present makes the layer a JumpReLU.
    pub threshold: Option<Tensor>,
    /// `[F, L - l, d]`; slot j writes layer l + j.
    pub decoder: Tensor,
    /// `[d]`: the bias of the target layer of this number.
    pub decoder_bias: Tensor,
    /// `[d, d]` (input, output): a linear path from what the encoder reads to this layer's MLP output,
    /// `ŷ[l] += x[l] · skip`; present in every layer or in none. That is how circuit-tracer holds a
    /// CLT's `W_skip`; a PLT's `W_skip` there is the transpose, (output, input), and is turned when it
    /// is read or written.
    pub skip: Option<Tensor>,
}

/// A cross-layer transcoder ready for use. Cloning shares the weights.
///
/// ```no_run
/// use cltlab::clt::Clt;
/// let clt = Clt::load("runs/first", &Default::default())?;
/// println!("{clt}");
/// # Ok::<(), cltlab::Error>(())
/// ```
#[derive(Clone)]
pub struct Clt(Arc<Inner>);

struct Inner {
    config: CltConfig,
    layers: Vec<Layer>,
    device: Device,
}

/// [`LayerWeights`] whose encoder and decoder may lie in their files.
#[derive(Clone)]
pub(crate) struct Layer {
    pub encoder: Decoder,
    pub encoder_bias: Tensor,
    pub threshold: Option<Tensor>,
    pub decoder: Decoder,
    pub decoder_bias: Tensor,
    pub skip: Option<Tensor>,
}

impl Clt {
    /// Puts a CLT together from its tensors, which must be f32 and lie on one device.
    ///
    /// # Errors
    /// `BadConfig` for an impossible configuration or one that ranks batches (for training only),
    /// `BadTensor` naming the first tensor whose shape or type differs, `Unsupported` for tensors on a GPU that
    /// [`device::cuda`](crate::device::cuda) did not open.
    pub fn new(config: CltConfig, layers: Vec<LayerWeights>) -> Result<Self> {
        config.validate()?;
        for (l, layer) in layers.iter().enumerate().take(config.layers) {
            check(&format!("W_enc_{l}"), &layer.encoder, &[config.features, config.width])?;
            check(&format!("W_dec_{l}"), &layer.decoder, &[config.features, config.slots(l), config.width])?;
        }
        let held = |w: LayerWeights| Layer {
            encoder: Decoder::Held(w.encoder),
            encoder_bias: w.encoder_bias,
            threshold: w.threshold,
            decoder: Decoder::Held(w.decoder),
            decoder_bias: w.decoder_bias,
            skip: w.skip,
        };
        Clt::from_layers(config, layers.into_iter().map(held).collect())
    }

    /// As [`Clt::new`], with encoders and decoders that were checked.
    pub(crate) fn from_layers(config: CltConfig, layers: Vec<Layer>) -> Result<Self> {
        config.validate()?;
        if config.activation.ranks_batch() {
            return Err(Error::expected(ErrorKind::BadConfig, "Clt::new: CltConfig::activation", config.activation.label(), "relu, jump_relu, top_k or global_top_k")
                .help("BatchTopK needs a batch; Trainer::clt turns it into JumpReLU thresholds"));
        }
        if layers.len() != config.layers {
            return Err(Error::expected(ErrorKind::BadTensor, "Clt::new: layers", layers.len(), config.layers));
        }
        let (f, d) = (config.features, config.width);
        let jumps = matches!(config.activation, Activation::JumpRelu { .. });
        for (l, layer) in layers.iter().enumerate() {
            check(&format!("b_enc_{l}"), &layer.encoder_bias, &[f])?;
            check(&format!("b_dec_{l}"), &layer.decoder_bias, &[d])?;
            match &layer.threshold {
                Some(threshold) => check(&format!("threshold_{l}"), threshold, &[f])?,
                None if jumps => {
                    return Err(Error::new(ErrorKind::BadTensor, format!("threshold_{l}: missing, but the activation is jump_relu")))
                }
                None => {}
            }
            if layer.threshold.is_some() && !jumps {
                return Err(Error::new(
                    ErrorKind::BadTensor,
                    format!("threshold_{l}: present, but the activation is {}", config.activation.label()),
                ));
            }
            match (&layer.skip, config.skip) {
                (Some(skip), true) => check(&format!("W_skip_{l}"), skip, &[d, d])?,
                (None, false) => {}
                (found, wanted) => {
                    let presence = |there: bool| if there { "present" } else { "missing" };
                    return Err(Error::expected(ErrorKind::BadTensor, format_args!("W_skip_{l}"), presence(found.is_some()), presence(wanted))
                        .help("CltConfig::skip says whether every layer has a skip connection or none"));
                }
            }
        }
        let device = layers[0].encoder_bias.device().clone();
        require_own(&device)?;
        Ok(Clt(Arc::new(Inner { config, layers, device })))
    }

    /// The same weights as `config` says, with one threshold a layer.
    pub(crate) fn with_thresholds(&self, config: CltConfig, thresholds: impl Iterator<Item = f32>) -> Result<Self> {
        let layers = self.0.layers.iter().zip(thresholds).map(|(layer, value)| {
            Ok(Layer { threshold: Some(Tensor::full(value, self.features(), self.device())?), ..layer.clone() })
        });
        Clt::from_layers(config, layers.collect::<Result<_>>()?)
    }

    /// Shape, activation and model.
    pub fn config(&self) -> &CltConfig {
        &self.0.config
    }

    /// Where the weights lie.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// The same CLT on `device`; itself, shared, where it is there already. Decoders that would take more than half of
    /// a GPU's free memory stay where they are, and the rows of active features are brought when they are used.
    ///
    /// # Errors
    /// `Unsupported` for a GPU that [`device::cuda`](crate::device::cuda) did not open, `OutOfMemory`, and faults of the device.
    #[doc(hidden)]
    pub fn to_device(&self, device: &Device) -> Result<Clt> {
        require_own(device)?;
        if self.device().same_device(device) {
            return Ok(self.clone());
        }
        let moved = |decoder: &Decoder| -> Result<Decoder> { Ok(Decoder::Held(decoder.tensor()?.to_device(device)?)) };
        let home = Decoder::home(self.config(), device)?;
        let optional = |tensor: &Option<Tensor>| tensor.as_ref().map(|tensor| tensor.to_device(device)).transpose();
        let layers = self.0.layers.iter().map(|layer| {
            Ok(Layer {
                encoder: moved(&layer.encoder)?,
                encoder_bias: layer.encoder_bias.to_device(device)?,
                threshold: optional(&layer.threshold)?,
                decoder: if home.same_device(device) { moved(&layer.decoder)? } else { layer.decoder.on_cpu()? },
                decoder_bias: layer.decoder_bias.to_device(device)?,
                skip: optional(&layer.skip)?,
            })
        });
        Clt::from_layers(self.config().clone(), layers.collect::<Result<_>>()?)
    }

    /// Layers, L.
    pub fn layers(&self) -> usize {
        self.0.config.layers
    }

    /// Features per layer, F.
    pub fn features(&self) -> usize {
        self.0.config.features
    }

    /// `W_enc[layer]`, `[F, d]`. A loaded CLT reads it whole from its file at the first call;
    /// [`Clt::encoder_rows`] reads only what is asked for.
    ///
    /// # Errors
    /// `BadInput` for a missing layer; what reading the file says, `OutOfMemory` among it.
    pub fn encoder(&self, layer: usize) -> Result<&Tensor> {
        self.layer(layer)?.encoder.tensor()
    }

    /// `W_enc[layer]`, wherever it lies.
    pub(crate) fn encoder_store(&self, layer: usize) -> &Decoder {
        &self.0.layers[layer].encoder
    }

    /// `b_enc[layer]`, `[F]`.
    ///
    /// # Errors
    /// `BadInput` for a missing layer.
    pub fn encoder_bias(&self, layer: usize) -> Result<&Tensor> {
        Ok(&self.layer(layer)?.encoder_bias)
    }

    /// JumpReLU thresholds of `layer`, `[F]`, if the CLT has them.
    ///
    /// # Errors
    /// `BadInput` for a missing layer.
    pub fn threshold(&self, layer: usize) -> Result<Option<&Tensor>> {
        Ok(self.layer(layer)?.threshold.as_ref())
    }

    /// `W_dec[layer]`, `[F, L - layer, d]`; slot j writes layer + j. A loaded CLT reads it whole from its
    /// file at the first call; [`Clt::decoder_rows`] reads only what is asked for.
    ///
    /// # Errors
    /// As [`Clt::encoder`].
    pub fn decoder(&self, layer: usize) -> Result<&Tensor> {
        self.layer(layer)?.decoder.tensor()
    }

    /// `W_dec[layer]`, wherever it lies.
    pub(crate) fn decoder_store(&self, layer: usize) -> &Decoder {
        &self.0.layers[layer].decoder
    }

    /// `b_dec[layer]`, `[d]`.
    ///
    /// # Errors
    /// `BadInput` for a missing layer.
    pub fn decoder_bias(&self, layer: usize) -> Result<&Tensor> {
        Ok(&self.layer(layer)?.decoder_bias)
    }

    /// The skip connection of `layer`, `[d, d]` (input, output), if the CLT has them.
    ///
    /// # Errors
    /// `BadInput` for a missing layer.
    pub fn skip(&self, layer: usize) -> Result<Option<&Tensor>> {
        Ok(self.layer(layer)?.skip.as_ref())
    }

    /// Encoder rows of `features`, `[n, d]`.
    ///
    /// # Errors
    /// `BadInput` for a layer or feature that does not exist.
    #[doc(hidden)]
    pub fn encoder_rows(&self, layer: usize, features: &[u32]) -> Result<Tensor> {
        self.check_features(layer, features)?;
        Ok(self.encoder_store(layer).rows(features)?.to_device(self.device())?)
    }

    /// Decoder rows of `features`, `[n, L - layer, d]`.
    ///
    /// # Errors
    /// `BadInput` for a layer or feature that does not exist.
    #[doc(hidden)]
    pub fn decoder_rows(&self, layer: usize, features: &[u32]) -> Result<Tensor> {
        self.check_features(layer, features)?;
        Ok(self.decoder_store(layer).rows(features)?.to_device(self.device())?)
    }

    fn check_features(&self, layer: usize, features: &[u32]) -> Result<()> {
        self.check_layer(layer)?;
        if let Some(beyond) = features.iter().find(|&&feature| feature as usize >= self.features()) {
            return Err(Error::expected(
                ErrorKind::BadInput,
                format_args!("feature of layer {layer}"),
                beyond,
                format_args!("less than {}", self.features()),
            ));
        }
        Ok(())
    }

    fn layer(&self, layer: usize) -> Result<&Layer> {
        self.0.layers.get(layer).ok_or_else(|| Error::expected(ErrorKind::BadInput, "layer of the CLT", layer, format_args!("less than {}", self.layers())))
    }

    pub(crate) fn check_layer(&self, layer: usize) -> Result<()> {
        self.layer(layer).map(|_| ())
    }
}

/// Checks type and shape of a tensor.
pub(crate) fn check(name: &str, tensor: &Tensor, shape: &[usize]) -> Result<()> {
    if tensor.dims() != shape {
        return Err(Error::expected(ErrorKind::BadTensor, name, format_args!("shape {:?}", tensor.dims()), format_args!("{shape:?}")));
    }
    if tensor.dtype() != DType::F32 {
        return Err(Error::expected(ErrorKind::BadTensor, name, format_args!("{:?}", tensor.dtype()), "F32"));
    }
    Ok(())
}

impl std::fmt::Display for Clt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let config = self.config();
        let model = if config.model_name.is_empty() { "an unnamed model" } else { &config.model_name };
        write!(
            f,
            "{}CLT of {model}: {} layers x {} features, {}, reads {}, {:.1} M weights",
            if config.skip { "skip-" } else { "" },
            config.layers,
            config.features,
            config.activation.label(),
            config.input.hook(),
            config.parameters() as f64 / 1e6
        )
    }
}

impl std::fmt::Debug for Clt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}
