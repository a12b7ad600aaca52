//! From the CLT in training to the one that is used and saved, and its arrays by name.

use super::{LiveClt, LiveLayer, Param};
use crate::activations::Scale;
use crate::clt::{Activation, Clt, CltConfig, LayerWeights};
use crate::error::Result;
use candle_core::{Device, Tensor};
use rayon::prelude::*;

impl LiveClt {
    /// The CLT in the model's own units.
    ///
    /// In training h = W (x − μ) s + b, so W' = s W and b' = b − W' μ; targets are (y − μ) s, so
    /// W_dec' = W_dec / s and b_dec' = b_dec / s + μ, with s and μ of the target layer.
    pub fn fold(&self, scale: &Scale) -> Result<Clt> {
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
                let mut decoder = layer.decoder.w.clone();
                for feature in decoder.chunks_exact_mut((count - l) * d) {
                    for (row, scale) in feature.chunks_exact_mut(d).zip(&scale.layers[l..]) {
                        row.iter_mut().for_each(|w| *w /= scale.target.factor);
                    }
                }
                let decoder_bias: Vec<f32> = layer.decoder_bias.w.iter().zip(&target.mean).map(|(b, mean)| b / target.factor + mean).collect();
                let device = &Device::Cpu;
                Ok(LayerWeights {
                    encoder: Tensor::from_vec(encoder, (f, d), device)?,
                    encoder_bias: Tensor::from_vec(bias, f, device)?,
                    threshold: self.thresholds(layer).map(|threshold| Tensor::from_vec(threshold, f, device)).transpose()?,
                    decoder: Tensor::from_vec(decoder, (f, count - l, d), device)?,
                    decoder_bias: Tensor::from_vec(decoder_bias, d, device)?,
                    skip: None,
                })
            })
            .collect::<Result<_>>()?;
        let mut config = self.config.clone();
        if matches!(config.activation, Activation::BatchTopK { .. }) {
            let mean = self.layers.iter().map(|layer| f64::from(layer.cut.mean())).sum::<f64>() / count as f64;
            config.activation = Activation::JumpRelu { threshold: mean.max(f64::MIN_POSITIVE), bandwidth: mean.max(f64::MIN_POSITIVE) };
        }
        Clt::new(config, layers)
    }

    fn thresholds(&self, layer: &LiveLayer) -> Option<Vec<f32>> {
        match (&self.config.activation, &layer.log_threshold) {
            (_, Some(log)) => Some(log.w.iter().map(|t| t.exp()).collect()),
            (Activation::BatchTopK { .. }, None) => Some(vec![layer.cut.mean(); self.config.features]),
            _ => None,
        }
    }

    /// A CLT of zeros, to read a checkpoint into.
    pub fn empty(config: &CltConfig) -> Result<Self> {
        config.validate()?;
        let (d, f) = (config.width, config.features);
        let jumps = matches!(config.activation, Activation::JumpRelu { .. });
        let layers = (0..config.layers)
            .map(|l| LiveLayer {
                encoder: Param::zeros(f * d),
                encoder_bias: Param::zeros(f),
                log_threshold: jumps.then(|| Param::zeros(f)),
                decoder: Param::zeros(f * config.slots(l) * d),
                decoder_bias: Param::zeros(d),
                squares: vec![0.0; f],
                idle: vec![0; f],
                ..LiveLayer::default()
            })
            .collect();
        Ok(LiveClt { config: config.clone(), layers, steps: 0 })
    }

    /// Every array that a checkpoint keeps, by name.
    pub fn arrays(&self) -> Vec<(String, &[f32])> {
        let mut all = Vec::new();
        for (l, layer) in self.layers.iter().enumerate() {
            for (name, param) in layer.params() {
                for (part, values) in [("w", &param.w), ("m", &param.m), ("v", &param.v)] {
                    all.push((format!("{l}.{name}.{part}"), values.as_slice()));
                }
            }
            all.push((format!("{l}.squares"), &layer.squares));
        }
        all
    }

    /// As [`LiveClt::arrays`], to be filled.
    pub fn arrays_mut(&mut self) -> Vec<(String, &mut [f32])> {
        let mut all: Vec<(String, &mut [f32])> = Vec::new();
        for (l, layer) in self.layers.iter_mut().enumerate() {
            let LiveLayer { encoder, encoder_bias, log_threshold, decoder, decoder_bias, squares, .. } = layer;
            let params = [("encoder", encoder), ("encoder_bias", encoder_bias), ("decoder", decoder), ("decoder_bias", decoder_bias)];
            for (name, param) in params.into_iter().chain(log_threshold.as_mut().map(|log| ("log_threshold", log))) {
                for (part, values) in [("w", &mut param.w), ("m", &mut param.m), ("v", &mut param.v)] {
                    all.push((format!("{l}.{name}.{part}"), values));
                }
            }
            all.push((format!("{l}.squares"), squares));
        }
        all
    }
}

impl LiveLayer {
    fn params(&self) -> impl Iterator<Item = (&'static str, &Param)> {
        let params = [("encoder", &self.encoder), ("encoder_bias", &self.encoder_bias), ("decoder", &self.decoder), ("decoder_bias", &self.decoder_bias)];
        params.into_iter().chain(self.log_threshold.as_ref().map(|log| ("log_threshold", log)))
    }
}
