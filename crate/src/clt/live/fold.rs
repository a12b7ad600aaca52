//! From the CLT in training to the one that is used and saved, and its arrays by name.

use super::lazy::Pending;
use super::param::{Moments, Param};
use super::{LiveClt, LiveLayer};
use super::forward::starts_dense;
use crate::activations::{LayerScale, Scale};
use crate::clt::Tied;
use crate::clt::{Activation, Clt, CltConfig, LayerWeights};
use crate::error::Result;
use crate::files::sealed::{Array, ArrayMut};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

impl LiveClt {
    /// The CLT in the model's own units.
    ///
    /// In training h = W (x − μ) s + b, so W' = s W and b' = b − W' μ; targets are (y − μ) s, so
    /// W_dec' = W_dec / s and b_dec' = b_dec / s + μ, with s and μ of the target layer. `eps` is Adam's, with
    /// which rows at rest are brought up to date.
    pub fn fold(&self, scale: &Scale, eps: f64) -> Result<Clt> {
        let (d, f, count) = (self.config.width, self.config.features, self.config.layers);
        let layers: Vec<LayerWeights> = self
            .layers
            .par_iter()
            .enumerate()
            .map(|(l, layer)| {
                let (input, target) = (&scale.layers[l].input, &scale.layers[l].target);
                let encoder: Vec<f32> = layer.encoder.w.iter().map(|w| w * input.factor).collect();
                let shift = |row: &[f32]| row.iter().zip(&input.mean).map(|(&w, &mean)| f64::from(w) * f64::from(mean)).sum::<f64>();
                let bias: Vec<f32> = encoder.chunks_exact(d).zip(&layer.encoder_bias.w).map(|(row, &b)| (f64::from(b) - shift(row)) as f32).collect();
                let decoder = self.expanded(l, layer, &scale.layers, eps);
                let decoder_bias: Vec<f32> = layer.decoder_bias.w.iter().zip(&target.mean).map(|(b, mean)| b / target.factor + mean).collect();
                let (skip, shift) = match &layer.skip {
                    None => (None, vec![0.0; d]),
                    Some(skip) => {
                        let folded: Vec<f32> = skip.w.iter().map(|w| w * input.factor / target.factor).collect();
                        let mut shift = vec![0f64; d];
                        for (row, &mean) in folded.chunks_exact(d).zip(&input.mean) {
                            shift.iter_mut().zip(row).for_each(|(sum, &w)| *sum += f64::from(w) * f64::from(mean));
                        }
                        (Some(folded), shift)
                    }
                };
                let decoder_bias: Vec<f32> = decoder_bias.iter().zip(&shift).map(|(&b, shift)| (f64::from(b) - shift) as f32).collect();
                let device = &Device::Cpu;
                Ok(LayerWeights {
                    encoder: Tensor::from_vec(encoder, (f, d), device)?,
                    encoder_bias: Tensor::from_vec(bias, f, device)?,
                    threshold: self.thresholds(layer).map(|threshold| Tensor::from_vec(threshold, f, device)).transpose()?,
                    decoder: Tensor::from_vec(decoder, (f, self.config.slots(l), d), device)?,
                    decoder_bias: Tensor::from_vec(decoder_bias, d, device)?,
                    skip: skip.map(|skip| Tensor::from_vec(skip, (d, d), device)).transpose()?,
                })
            })
            .collect::<Result<_>>()?;
        let mut config = CltConfig { tied: Tied::No, ..self.config.clone() };
        if config.activation.ranks_batch() {
            let mean = self.layers.iter().map(|layer| f64::from(layer.cut.mean())).sum::<f64>() / count as f64;
            config.activation = Activation::JumpRelu { threshold: mean.max(f64::MIN_POSITIVE), bandwidth: mean.max(f64::MIN_POSITIVE) };
        }
        Clt::new(config, layers)
    }

    /// The decoder of layer `l`, `[F, slots, d]`, in the targets' own units; a tied one repeated.
    fn expanded(&self, l: usize, layer: &LiveLayer, scales: &[LayerScale], eps: f64) -> Vec<f32> {
        let (d, slots) = (self.config.width, self.config.slots(l));
        let mut decoder = self.settled(layer, eps);
        if self.config.tied == Tied::PerTarget {
            let targets: Vec<&[f32]> = self.layers[l..].iter().map(|layer| layer.decoder.w.as_slice()).collect();
            decoder = (0..self.config.features).flat_map(|f| targets.iter().map(move |w| &w[f * d..(f + 1) * d])).flatten().copied().collect();
        } else if layer.decoder.row < slots * d {
            decoder = decoder.chunks_exact(d).flat_map(|row| std::iter::repeat_n(row, slots)).flatten().copied().collect();
        }
        for feature in decoder.chunks_exact_mut(slots * d) {
            for (row, scale) in feature.chunks_exact_mut(d).zip(&scales[l..]) {
                row.iter_mut().for_each(|w| *w /= scale.target.factor);
            }
        }
        decoder
    }

    fn thresholds(&self, layer: &LiveLayer) -> Option<Vec<f32>> {
        match (&self.config.activation, &layer.log_threshold) {
            (_, Some(log)) => Some(log.w.iter().map(|t| t.exp()).collect()),
            (activation, None) if activation.ranks_batch() => Some(vec![layer.cut.mean(); self.config.features]),
            _ => None,
        }
    }

    /// A CLT of zeros, to read a checkpoint into.
    pub fn empty(config: &CltConfig, eight: bool) -> Result<Self> {
        config.validate()?;
        let (d, f) = (config.width, config.features);
        let jumps = matches!(config.activation, Activation::JumpRelu { .. });
        let layers = (0..config.layers)
            .map(|l| LiveLayer {
                encoder: Param::zeros(f, d, eight),
                encoder_bias: Param::vector(f),
                log_threshold: jumps.then(|| Param::vector(f)),
                decoder: Param::zeros(f, config.columns(l), eight),
                decoder_bias: Param::vector(d),
                skip: config.skip.then(|| Param::vector(d * d)),
                squares: vec![0.0; f],
                last: vec![0; f],
                idle: vec![0; f],
                density: if starts_dense(&config.activation) { 1.0 } else { 0.0 },
                ..LiveLayer::default()
            })
            .collect();
        Ok(LiveClt { config: config.clone(), layers, steps: 0, pending: Pending::default() })
    }

    /// Every array that a checkpoint keeps, by name.
    pub fn arrays(&self) -> Vec<(String, Array<'_>)> {
        let mut all = vec![("pending".to_string(), Array::F32(&self.pending.0))];
        for (l, layer) in self.layers.iter().enumerate() {
            for (name, param) in layer.params() {
                let mut part = |part: &str, values| all.push((format!("{l}.{name}.{part}"), values));
                part("w", Array::F32(&param.w));
                match &param.moments {
                    Moments::F32 { m, v } => {
                        part("m", Array::F32(m));
                        part("v", Array::F32(v));
                    }
                    Moments::Eight { m, v, scales } => {
                        part("m8", Array::U8(m));
                        part("v8", Array::U8(v));
                        part("scales", Array::U8(scales.as_flattened()));
                    }
                }
            }
            all.push((format!("{l}.squares"), Array::F32(&layer.squares)));
            all.push((format!("{l}.last"), Array::U32(&layer.last)));
        }
        all
    }

    /// As [`LiveClt::arrays`], to be filled. `steps` must be set.
    pub fn arrays_mut(&mut self) -> Vec<(String, ArrayMut<'_>)> {
        self.pending.0.resize(self.steps as usize, 0.0);
        let mut all = vec![("pending".to_string(), ArrayMut::F32(self.pending.0.as_mut_slice()))];
        for (l, layer) in self.layers.iter_mut().enumerate() {
            let LiveLayer { encoder, encoder_bias, log_threshold, decoder, decoder_bias, skip, squares, last, .. } = layer;
            let params = [("encoder", encoder), ("encoder_bias", encoder_bias), ("decoder", decoder), ("decoder_bias", decoder_bias)];
            let more = log_threshold.as_mut().map(|log| ("log_threshold", log)).into_iter().chain(skip.as_mut().map(|skip| ("skip", skip)));
            for (name, Param { w, moments, .. }) in params.into_iter().chain(more) {
                let mut part = |part: &str, values| all.push((format!("{l}.{name}.{part}"), values));
                part("w", ArrayMut::F32(w));
                match moments {
                    Moments::F32 { m, v } => {
                        part("m", ArrayMut::F32(m));
                        part("v", ArrayMut::F32(v));
                    }
                    Moments::Eight { m, v, scales } => {
                        part("m8", ArrayMut::U8(m));
                        part("v8", ArrayMut::U8(v));
                        part("scales", ArrayMut::U8(scales.as_flattened_mut()));
                    }
                }
            }
            all.push((format!("{l}.squares"), ArrayMut::F32(squares)));
            all.push((format!("{l}.last"), ArrayMut::U32(last)));
        }
        all
    }
}

impl LiveLayer {
    fn params(&self) -> impl Iterator<Item = (&'static str, &Param)> {
        let params = [("encoder", &self.encoder), ("encoder_bias", &self.encoder_bias), ("decoder", &self.decoder), ("decoder_bias", &self.decoder_bias)];
        let more = self.log_threshold.as_ref().map(|log| ("log_threshold", log)).into_iter().chain(self.skip.as_ref().map(|skip| ("skip", skip)));
        params.into_iter().chain(more)
    }
}
