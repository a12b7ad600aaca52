//! Encoding: residual stream in, sparse codes out.
//!
//! `x` `[tokens, d]` → pre-activations `[tokens, F]` (dense product, in blocks of bounded memory)
//! → [`LayerCode`]. Agrees with circuit-tracer's `encode` to f32 rounding.

use crate::clt::activation::{keep, Rule};
use crate::clt::{check, values, Activation, Clt, InputSite, LayerCode, SparseCode};
use crate::error::{Error, ErrorKind, Result};
use crate::model::back::products;
use crate::model::{LayerRun, Run};
use candle_core::Tensor;

/// Entries of the pre-activation block that is alive at a time: 64 MiB.
const BLOCK: usize = 16 << 20;

impl Clt {
    /// The captured value that this CLT's encoders read, `[tokens, d]`.
    ///
    /// # Errors
    /// `BadInput` when the run did not capture it.
    pub fn input<'a>(&self, layer: &'a LayerRun) -> Result<&'a Tensor> {
        let (site, value) = match self.config().input {
            InputSite::ResidMid => ("resid_mid", &layer.resid_mid),
            InputSite::MlpIn => ("mlp_in", &layer.mlp_in),
            InputSite::Normalized => ("mlp_normalized", &layer.mlp_normalized),
        };
        value.as_ref().ok_or_else(|| {
            Error::expected(ErrorKind::BadInput, format_args!("Run: {site}"), "not captured", "captured")
                .help("run the model with Capture::default()")
        })
    }

    /// Pre-activations `h = x W_encᵀ + b_enc` of one layer.
    ///
    /// # Shapes
    /// `x` `[T, d]` → `[T, F]`.
    ///
    /// # Errors
    /// `BadInput` for a missing layer, `BadTensor` for another width or type.
    pub fn pre_activations(&self, layer: usize, x: &Tensor) -> Result<Tensor> {
        self.check_layer(layer)?;
        check("input of the encoder", x, &[x.dims().first().copied().unwrap_or(0), self.config().width])?;
        let encoder = self.encoder_store(layer);
        let h = if encoder.is_mapped() {
            let (rows, width) = x.dims2()?;
            let x = x.contiguous()?;
            let x = x.storage_and_layout();
            let x = values(&x)?;
            let h = encoder.with_once(|weights| Ok(products(x, weights, width)))?;
            Tensor::from_vec(h, (rows, self.features()), self.device())?
        } else {
            x.matmul(&self.encoder(layer).t()?)?
        };
        Ok(h.broadcast_add(self.encoder_bias(layer))?)
    }

    /// The sparse code of one layer.
    ///
    /// # Shapes
    /// `x` `[T, d]` → T rows.
    ///
    /// # Errors
    /// As [`Clt::pre_activations`]; `NotFinite` when `x` holds NaN or infinity.
    pub fn encode_layer(&self, layer: usize, x: &Tensor) -> Result<LayerCode> {
        self.check_layer(layer)?;
        let tokens = x.dims().first().copied().unwrap_or(0);
        check("input of the encoder", x, &[tokens, self.config().width])?;
        let thresholds = self.threshold(layer).map(Tensor::to_vec1::<f32>).transpose()?;
        let rule = match (&self.config().activation, &thresholds) {
            (Activation::TopK { k }, _) => Rule::Top(*k),
            (_, Some(thresholds)) => Rule::AboveEach(thresholds),
            (_, None) => Rule::Above(0.0),
        };
        let rows = (BLOCK / self.features()).max(1);
        let mut parts = Vec::new();
        for start in (0..tokens).step_by(rows) {
            let block = x.narrow(0, start, rows.min(tokens - start))?;
            let h = self.pre_activations(layer, &block)?.flatten_all()?.to_vec1::<f32>()?;
            // One bad input spoils its whole row of h, so a column tells.
            if h.iter().step_by(self.features()).any(|v| !v.is_finite()) {
                return Err(Error::new(ErrorKind::NotFinite, format!("input of the encoder of layer {layer}: NaN or infinity")));
            }
            parts.push(keep(rule, &h, self.features()));
        }
        Ok(LayerCode::concat(&parts))
    }

    /// The sparse code of a run, all layers. Position 0 is encoded like the others.
    ///
    /// # Errors
    /// `BadInput` when the run lacks a layer or the captured input; as [`Clt::encode_layer`].
    pub fn encode(&self, run: &Run) -> Result<SparseCode> {
        if run.layers.len() != self.layers() {
            return Err(Error::expected(ErrorKind::Mismatch, "Clt::encode: layers of the run", run.layers.len(), self.layers())
                .help("use the CLT with the model it was trained on"));
        }
        let layers = run.layers.iter().enumerate().map(|(l, layer)| self.encode_layer(l, self.input(layer)?)).collect::<Result<_>>()?;
        Ok(SparseCode { layers })
    }
}
