//! Decoding: sparse codes in, reconstructed MLP outputs out.
//!
//! `ŷ[t] = b_dec[t] + Σ_{s ≤ t} a[s] W_dec[s][:, t − s, :]` (in a PLT s = t), only the active features' rows read.
//! A CLT with skip connections adds `x[t] W_skip[t]` and needs what its encoders read.
//! Agrees with circuit-tracer's `decode` to f32 rounding.

use crate::clt::{check, kernels, Clt, LayerCode, SparseCode};
use crate::error::{Error, ErrorKind, Result};
use candle_core::{CpuStorage, Layout, Storage, StorageRef, Tensor};
use rayon::prelude::*;

impl Clt {
    /// The reconstruction of every MLP output, biases and skip connections included. `inputs` are what the encoders of
    /// each layer read; without skip connections they are not used, and `&[]` is enough.
    ///
    /// # Shapes
    /// L codes of T rows, and L inputs `[T, d]` → L tensors `[T, d]`.
    ///
    /// # Errors
    /// `BadInput` when the code has another number of layers, or rows of different length, or when the CLT has skip
    /// connections and there are not L inputs; `BadTensor` for inputs of another shape.
    pub fn decode(&self, code: &SparseCode, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        if self.config().skip && inputs.len() != self.layers() {
            return Err(Error::expected(ErrorKind::BadInput, "Clt::decode: inputs", inputs.len(), self.layers())
                .help("a CLT with skip connections needs what its encoders read: Clt::input of each layer of the run"));
        }
        let decoded = self.decode_features(code)?;
        decoded.into_iter().enumerate().map(|(l, decoded)| self.add_skip(l, decoded, inputs.get(l))).collect()
    }

    fn decode_features(&self, code: &SparseCode) -> Result<Vec<Tensor>> {
        if code.layers.len() != self.layers() {
            return Err(Error::expected(ErrorKind::BadInput, "Clt::decode: layers of the code", code.layers.len(), self.layers()));
        }
        if (0..self.layers()).any(|layer| !self.decoder_store(layer).is_held_on(self.device())) {
            return self.decode_from_host(code);
        }
        if !self.device().is_cpu() {
            self.check_codes(&code.layers, self.layers() - 1)?;
            if let Some(decoded) = kernels::cuda::decode(self, &code.layers, 0..self.layers())? {
                return Ok(decoded);
            }
        }
        (0..self.layers()).map(|target| self.decode_target_features(&code.layers[..=target], target)).collect()
    }

    /// The same where decoders lie in files, or in memory beside a GPU: each active feature's row is read once for all targets, where it lies.
    fn decode_from_host(&self, code: &SparseCode) -> Result<Vec<Tensor>> {
        self.check_codes(&code.layers, self.layers() - 1)?;
        self.bring_rows(code)?;
        let (layers, tokens, width) = (self.layers(), code.tokens(), self.config().width);
        let biases = (0..layers).map(|target| Ok(self.decoder_bias(target)?.to_vec1::<f32>()?)).collect::<Result<Vec<_>>>()?.concat();
        let decode = |p: usize| -> Result<Vec<f32>> {
            let mut out = biases.clone();
            for (s, code) in code.layers.iter().enumerate() {
                let (features, activations) = code.token(p);
                let row = self.config().slots(s) * width;
                self.decoder_store(s).with(|weights| {
                    kernels::add_rows(features, activations, weights, row, 0, &mut out[s * width..][..row]);
                    Ok(())
                })?;
            }
            Ok(out)
        };
        let rows: Vec<Vec<f32>> = (0..tokens).into_par_iter().map(decode).collect::<Result<_>>()?;
        let target = |t: usize| {
            let values: Vec<f32> = rows.iter().flat_map(|row| &row[t * width..(t + 1) * width]).copied().collect();
            Ok(Tensor::from_vec(values, (tokens, width), self.device())?)
        };
        (0..layers).map(target).collect()
    }

    /// Brings the rows of a code's active features into memory where they lie in files.
    fn bring_rows(&self, code: &SparseCode) -> Result<()> {
        const TOGETHER: usize = 256;
        let active: Vec<Vec<u32>> = code.layers.par_iter().map(LayerCode::distinct).collect();
        let tasks: Vec<(usize, &[u32])> = active.iter().enumerate().flat_map(|(s, features)| features.chunks(TOGETHER).map(move |some| (s, some))).collect();
        tasks.into_par_iter().with_max_len(1).try_for_each(|(s, features)| self.decoder_store(s).bring(features))
    }

    /// The reconstruction of one target layer from the codes of sources 0 to `target`, bias and skip connection
    /// included. `input` is what the encoder of layer `target` reads; without skip connections it may be `None`.
    ///
    /// # Shapes
    /// `target + 1` codes of T rows, and an input `[T, d]` → `[T, d]`.
    ///
    /// # Errors
    /// `BadInput` for a missing layer, another number of codes, rows of different length, a
    /// feature that does not exist, or a CLT with skip connections without an input; `BadTensor` for one of another shape.
    #[doc(hidden)]
    pub fn decode_target(&self, codes: &[LayerCode], target: usize, input: Option<&Tensor>) -> Result<Tensor> {
        if self.config().skip && input.is_none() {
            return Err(Error::expected(ErrorKind::BadInput, "Clt::decode_target: input", "none", "what the encoder reads, because the CLT has skip connections"));
        }
        self.add_skip(target, self.decode_target_features(codes, target)?, input)
    }

    /// What the skip connection of `layer` makes of a change `x [T, d]` of what its encoder reads,
    /// `[T, d]`; `None` when there is none.
    ///
    /// # Errors
    /// `BadInput` for a missing layer, `BadTensor` for another width.
    pub(crate) fn skip_output(&self, layer: usize, x: &Tensor) -> Result<Option<Tensor>> {
        let Some(skip) = self.skip(layer)? else { return Ok(None) };
        check("input of the skip connection", x, &[x.dims().first().copied().unwrap_or(0), self.config().width])?;
        Ok(Some(x.matmul(skip)?))
    }

    fn add_skip(&self, layer: usize, decoded: Tensor, input: Option<&Tensor>) -> Result<Tensor> {
        match input.map(|input| self.skip_output(layer, input)).transpose()?.flatten() {
            Some(skip) if skip.dims() == decoded.dims() => Ok((decoded + skip)?),
            Some(skip) => Err(Error::expected(
                ErrorKind::BadInput,
                format_args!("input of the skip connection of layer {layer}: rows"),
                skip.dims().first().copied().unwrap_or(0),
                decoded.dims().first().copied().unwrap_or(0),
            )),
            None => Ok(decoded),
        }
    }

    fn decode_target_features(&self, codes: &[LayerCode], target: usize) -> Result<Tensor> {
        self.check_codes(codes, target)?;
        let (tokens, width) = (codes[0].tokens, self.config().width);
        if !self.device().is_cpu() && self.decoder_store(0).is_held_on(self.device()) {
            return match kernels::cuda::decode(self, codes, target..target + 1)?.and_then(|mut decoded| decoded.pop()) {
                Some(decoded) => Ok(decoded),
                None => self.decode_target_dense(codes, target),
            };
        }
        let bias = self.decoder_bias(target)?.to_vec1::<f32>()?;
        let mut out = bias.repeat(tokens);
        for (s, code) in codes.iter().enumerate().skip(self.config().first_source(target)) {
            self.decoder_store(s).with(|weights| {
                kernels::decode_rows(code, weights, self.config().slots(s), target - s, width, &mut out);
                Ok(())
            })?;
        }
        Ok(Tensor::from_vec(out, (tokens, width), self.device())?)
    }

    fn check_codes(&self, codes: &[LayerCode], target: usize) -> Result<()> {
        self.check_layer(target)?;
        if codes.len() != target + 1 {
            return Err(Error::expected(ErrorKind::BadInput, format_args!("Clt::decode_target {target}: codes"), codes.len(), target + 1));
        }
        let tokens = codes[0].tokens;
        for (s, code) in codes.iter().enumerate() {
            if code.tokens != tokens {
                return Err(Error::expected(ErrorKind::BadInput, format_args!("code of layer {s}: rows"), code.tokens, tokens));
            }
            if let Some(beyond) = code.features.iter().find(|&&f| f as usize >= self.features()) {
                return Err(Error::expected(ErrorKind::BadInput, format_args!("code of layer {s}: feature"), beyond, format_args!("less than {}", self.features())));
            }
        }
        Ok(())
    }

    /// The same through a product with the active features' rows only; for widths that the
    /// GPU's kernel does not take.
    fn decode_target_dense(&self, codes: &[LayerCode], target: usize) -> Result<Tensor> {
        let tokens = codes[0].tokens;
        let mut out = self.decoder_bias(target)?.broadcast_as((tokens, self.config().width))?.contiguous()?;
        for (s, code) in codes.iter().enumerate().skip(self.config().first_source(target)) {
            let active = code.distinct();
            if active.is_empty() {
                continue;
            }
            let mut dense = vec![0f32; tokens * active.len()];
            for p in 0..tokens {
                let (features, values) = code.token(p);
                for (feature, value) in features.iter().zip(values) {
                    let column = active.partition_point(|f| f < feature);
                    dense[p * active.len() + column] = *value;
                }
            }
            let dense = Tensor::from_vec(dense, (tokens, active.len()), self.device())?;
            let rows = self.decoder_rows(s, &active)?.narrow(1, target - s, 1)?.squeeze(1)?.contiguous()?;
            out = (out + dense.matmul(&rows)?)?;
        }
        Ok(out)
    }
}

/// The f32 values of a contiguous CPU tensor, from its `storage_and_layout`.
pub(crate) fn values<'a>((storage, layout): &'a (StorageRef<'_>, &Layout)) -> Result<&'a [f32]> {
    match (&**storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => Ok(&values[start..end]),
        _ => Err(Error::new(ErrorKind::Tensor, "a contiguous f32 tensor on the CPU was needed")),
    }
}
