//! Normalisation: means and scales of each layer, and their inverse for the saved weights.
//!
//! Inputs and targets are centred by dimension and divided by one number a layer, so that their
//! mean squared norm is d. One number, because a scale for each dimension would change which
//! errors count. Statistics come from the whole first filling of the buffer, before the first step.

use super::held::Filling;
use crate::error::{Error, ErrorKind, Result};
use rayon::prelude::*;

/// `(x − mean) · factor`.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Affine {
    pub mean: Vec<f32>,
    pub factor: f32,
}

impl Affine {
    pub fn measure(values: &[f32], d: usize) -> Self {
        let tokens = values.len() / d;
        let mut sums = vec![0f64; d];
        for row in values.chunks_exact(d) {
            sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
        }
        let mean = Affine::mean(&sums, tokens);
        let square: f64 = values
            .chunks_exact(d)
            .map(|row| row.iter().zip(&mean).map(|(&x, &mean)| f64::from(x - mean) * f64::from(x - mean)).sum::<f64>())
            .sum();
        Affine::of(mean, square, tokens)
    }

    /// Means of `tokens` rows with these sums.
    pub fn mean(sums: &[f64], tokens: usize) -> Vec<f32> {
        sums.iter().map(|sum| (sum / tokens as f64) as f32).collect()
    }

    /// Of `tokens` rows whose distances from `mean` have squares of this sum.
    pub fn of(mean: Vec<f32>, square: f64, tokens: usize) -> Self {
        // A constant site has nothing to scale.
        let factor = if square > 0.0 { (mean.len() as f64 * tokens as f64 / square).sqrt() } else { 1.0 };
        Affine { mean, factor: factor as f32 }
    }

    /// Normalises one row.
    pub fn apply(&self, row: &[f32], out: &mut [f32]) {
        for ((out, &x), &mean) in out.iter_mut().zip(row).zip(&self.mean) {
            *out = (x - mean) * self.factor;
        }
    }
}

/// The normalisation of one layer.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct LayerScale {
    pub input: Affine,
    pub target: Affine,
}

/// The normalisation of all layers.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Scale {
    pub layers: Vec<LayerScale>,
}

impl Scale {
    /// Changes nothing.
    pub fn none(layers: usize, d: usize) -> Self {
        let same = || Affine { mean: vec![0.0; d], factor: 1.0 };
        Scale { layers: (0..layers).map(|_| LayerScale { input: same(), target: same() }).collect() }
    }

    /// Measures a buffer.
    ///
    /// # Errors
    /// `NotFinite` naming the layer and side that holds NaN or infinity.
    pub fn measure(buffer: &Filling, d: usize) -> Result<Self> {
        let layers: Vec<LayerScale> = match buffer {
            Filling::Host(batch) => {
                let sides = batch.inputs.par_iter().zip(&batch.targets);
                sides.map(|(x, y)| LayerScale { input: Affine::measure(x, d), target: Affine::measure(y, d) }).collect()
            }
            // A layer at a time, so that the host needs room for one.
            Filling::Held(held) => {
                let sides = held.inputs.iter().zip(&held.targets);
                sides.map(|(x, y)| Ok(LayerScale { input: held.measure(x, d)?, target: held.measure(y, d)? })).collect::<Result<_>>()?
            }
        };
        let fine = |affine: &Affine| affine.factor.is_finite() && affine.mean.iter().all(|mean| mean.is_finite());
        for (l, layer) in layers.iter().enumerate() {
            for (side, affine) in [("input", &layer.input), ("target", &layer.target)] {
                if !fine(affine) {
                    return Err(Error::new(ErrorKind::NotFinite, format!("activations: {side} of layer {l}: NaN or infinity")));
                }
            }
        }
        Ok(Scale { layers })
    }
}
