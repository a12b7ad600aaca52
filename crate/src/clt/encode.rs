//! Encoding: residual stream in, sparse codes out.
//!
//! `x` `[tokens, d]` → pre-activations `[tokens, F]` (dense product, in blocks of bounded memory)
//! → [`LayerCode`]. Agrees with circuit-tracer's `encode` to f32 rounding.

use crate::clt::activation::{keep, Rule};
use crate::clt::kernels::{self, cuda::Keep};
use crate::clt::{check, values, Activation, Clt, InputSite, LayerCode, SparseCode};
use crate::error::{Error, ErrorKind, Result};
use crate::model::back::matrix_products;
use crate::model::{LayerRun, Run};
use candle_core::Tensor;

/// Entries of the pre-activation block that is alive at a time: 64 MiB.
const BLOCK: usize = 16 << 20;

impl Clt {
    /// The captured value that this CLT's encoders read, `[tokens, d]`.
    ///
    /// # Errors
    /// `BadInput` when the run did not capture it.
    #[doc(hidden)]
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
    #[doc(hidden)]
    pub fn pre_activations(&self, layer: usize, x: &Tensor) -> Result<Tensor> {
        self.check_layer(layer)?;
        check("input of the encoder", x, &[x.dims().first().copied().unwrap_or(0), self.config().width])?;
        let encoder = self.encoder_store(layer);
        let h = if encoder.is_mapped() {
            let (rows, width) = x.dims2()?;
            let x = x.contiguous()?;
            let x = x.storage_and_layout();
            let x = values(&x)?;
            let h = encoder.with_once(|weights| Ok(matrix_products(x, weights, width)))?;
            Tensor::from_vec(h, (rows, self.features()), self.device())?
        } else {
            x.matmul(&self.encoder(layer)?.t()?)?
        };
        Ok(h.broadcast_add(self.encoder_bias(layer)?)?)
    }

    /// The sparse code of one layer.
    ///
    /// # Shapes
    /// `x` `[T, d]` → T rows.
    ///
    /// # Errors
    /// As [`Clt::pre_activations`]; `NotFinite` when `x` holds NaN or infinity; `Unsupported` for an
    /// activation that ranks all layers together: see [`Clt::encode_inputs`] and [`Clt::calibrate`].
    pub fn encode_layer(&self, layer: usize, x: &Tensor) -> Result<LayerCode> {
        if self.config().activation.ranks_layers() {
            return Err(Error::expected(ErrorKind::Unsupported, "Clt::encode_layer: activation", self.config().activation.label(), "one that looks at a layer alone")
                .help("a model that runs layer by layer needs thresholds: clt.calibrate(&activations, &Calibration::default())?"));
        }
        self.candidates(layer, x)
    }

    /// The entries of one layer that its activation may keep; where it looks at one layer alone, its code.
    fn candidates(&self, layer: usize, x: &Tensor) -> Result<LayerCode> {
        self.check_layer(layer)?;
        if !self.device().is_cpu() {
            return self.candidates_on_gpu(layer, x);
        }
        let thresholds = self.threshold(layer)?.map(Tensor::to_vec1::<f32>).transpose()?;
        let rule = match (&self.config().activation, &thresholds) {
            (Activation::TopK { k }, _) => Rule::Top(*k),
            (Activation::GlobalTopK { k }, _) => Rule::Top(self.config().most_of_layers(*k)),
            (_, Some(thresholds)) => Rule::AboveEach(thresholds),
            (_, None) => Rule::Above(0.0),
        };
        let mut parts = Vec::new();
        self.each_block(layer, x, |h| parts.push(keep(rule, h, self.features())))?;
        Ok(LayerCode::concat(&parts))
    }

    /// The same selected on the device, where only what is kept leaves it.
    fn candidates_on_gpu(&self, layer: usize, x: &Tensor) -> Result<LayerCode> {
        let keep = match self.config().activation {
            Activation::TopK { k } => Keep::Top(k),
            Activation::GlobalTopK { k } => Keep::Top(self.config().most_of_layers(k)),
            _ => Keep::Above(self.threshold(layer)?),
        };
        let mut parts = Vec::new();
        for block in self.blocks(x)? {
            let h = block.matmul(&self.encoder(layer)?.t()?)?;
            finite(layer, h.narrow(1, 0, 1)?.flatten_all()?.to_vec1::<f32>()?)?;
            parts.push(kernels::cuda::select(&h, self.encoder_bias(layer)?, &keep)?);
        }
        Ok(LayerCode::concat(&parts))
    }

    /// `x` in parts whose pre-activations take a bounded memory.
    fn blocks(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        let tokens = x.dims().first().copied().unwrap_or(0);
        check("input of the encoder", x, &[tokens, self.config().width])?;
        let rows = (BLOCK / self.features()).max(1);
        (0..tokens).step_by(rows).map(|start| Ok(x.narrow(0, start, rows.min(tokens - start))?)).collect()
    }

    /// `work` on the pre-activations of one layer, block by block of tokens.
    pub(crate) fn each_block(&self, layer: usize, x: &Tensor, mut work: impl FnMut(&[f32])) -> Result<()> {
        for block in self.blocks(x)? {
            let h = self.pre_activations(layer, &block)?.flatten_all()?.to_vec1::<f32>()?;
            finite(layer, h.iter().copied().step_by(self.features()))?;
            work(&h);
        }
        Ok(())
    }

    /// The sparse code of all layers from what their encoders read.
    ///
    /// # Shapes
    /// L tensors `[T, d]` → L codes of T rows.
    ///
    /// # Errors
    /// `BadInput` for another number of layers or rows that differ; as [`Clt::encode_layer`].
    pub fn encode_inputs(&self, inputs: &[Tensor]) -> Result<SparseCode> {
        if inputs.len() != self.layers() {
            return Err(Error::expected(ErrorKind::BadInput, "Clt::encode_inputs: inputs", inputs.len(), self.layers()));
        }
        let mut code = SparseCode { layers: inputs.iter().enumerate().map(|(l, x)| self.candidates(l, x)).collect::<Result<_>>()? };
        if let Some((l, odd)) = code.layers.iter().enumerate().find(|(_, layer)| layer.tokens != code.tokens()) {
            return Err(Error::expected(ErrorKind::BadInput, format_args!("Clt::encode_inputs: rows of layer {l}"), odd.tokens, code.tokens()));
        }
        if let Activation::GlobalTopK { k } = self.config().activation {
            code.keep_top(k * self.layers());
        }
        Ok(code)
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
        self.encode_inputs(&run.layers.iter().map(|layer| Ok(self.input(layer)?.clone())).collect::<Result<Vec<_>>>()?)
    }
}

/// Refuses a layer's input that is not finite, by one column of its pre-activations: a bad input spoils its whole row.
fn finite(layer: usize, column: impl IntoIterator<Item = f32>) -> Result<()> {
    match column.into_iter().all(f32::is_finite) {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::NotFinite, format!("input of the encoder of layer {layer}: NaN or infinity"))),
    }
}
