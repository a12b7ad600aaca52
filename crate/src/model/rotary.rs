//! Rotary positions: pairs of a head's numbers turned by an angle that grows with the position.
//!
//! A model has one table, or two where layers with a window have a base of their own (Gemma 3).

use super::config::{ModelConfig, Positions, RotaryScaling};
use super::fast;
use crate::error::Result;
use candle_core::{Device, Tensor, D};

/// Cosines and sines, `[context, rotated / 2]`.
#[derive(Clone)]
pub(crate) struct Rotary {
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    rotated: usize,
}

/// The tables of a model's layers.
#[derive(Clone, Default)]
pub(crate) struct Rotaries {
    all: Option<Rotary>,
    /// Of layers with a window, where they differ.
    local: Option<Rotary>,
}

impl Rotaries {
    /// `divisors [rotated / 2]` divide the frequencies, where a file gives them.
    pub(crate) fn new(config: &ModelConfig, divisors: Option<&Tensor>, device: &Device) -> Result<Self> {
        let Positions::Rotary { base, interleaved, rotated, ref scaling } = config.positions else { return Ok(Rotaries::default()) };
        let divisors = divisors.map(Tensor::to_vec1::<f32>).transpose()?;
        let table = |base: f64, scaling: Option<&RotaryScaling>, divisors: Option<&[f32]>| -> Result<Rotary> {
            let half = rotated.div_ceil(2);
            let frequencies: Vec<f64> = (0..half)
                .map(|pair| (pair, base.powf(-2.0 * pair as f64 / rotated as f64)))
                .map(|(pair, frequency)| (pair, scaling.map_or(frequency, |scaling| scaling.apply(pair, frequency))))
                .map(|(pair, frequency)| frequency / divisors.map_or(1.0, |divisors| f64::from(divisors[pair])))
                .collect();
            let angles = (0..config.context).flat_map(|position| frequencies.iter().map(move |frequency| position as f64 * frequency));
            let (angles, magnitude): (Vec<f64>, f64) = (angles.collect(), scaling.map_or(1.0, RotaryScaling::magnitude));
            let values = |f: fn(f64) -> f64| -> Result<Tensor> {
                let values: Vec<f32> = angles.iter().map(|angle| (magnitude * f(*angle)) as f32).collect();
                Ok(Tensor::from_vec(values, (config.context, half), device)?)
            };
            Ok(Rotary { cos: values(f64::cos)?, sin: values(f64::sin)?, interleaved, rotated: 2 * half })
        };
        let local = config.local.as_ref().and_then(|local| local.base);
        Ok(Rotaries { all: Some(table(base, scaling.as_ref(), divisors.as_deref())?), local: local.map(|base| table(base, None, None)).transpose()? })
    }

    /// The table of layers with a window, or of those without.
    pub(crate) fn of(&self, windowed: bool) -> Option<&Rotary> {
        self.local.as_ref().filter(|_| windowed).or(self.all.as_ref())
    }
}

/// Where the tokens of a pass stand: at `start`, `start + 1`, ... or, with padding on the left, at
/// the positions that `ids [B, T]` names.
#[derive(Clone, Copy)]
pub(crate) struct Places<'a> {
    pub start: usize,
    pub ids: Option<&'a Tensor>,
}

impl Places<'_> {
    /// Rows of `table [context, n]`: `[T, n]`, or `[B, T, n]` with padding.
    pub(crate) fn rows(&self, table: &Tensor, tokens: usize) -> Result<Tensor> {
        match self.ids {
            None => Ok(table.narrow(0, self.start, tokens)?),
            Some(ids) => {
                let (batch, tokens) = ids.dims2()?;
                Ok(table.index_select(&ids.flatten_all()?, 0)?.reshape((batch, tokens, table.dim(1)?))?)
            }
        }
    }
}

impl Rotary {
    /// Cosines and sines, `[context, pairs]`, and whether pairs are neighbours.
    #[cfg(feature = "cuda")]
    pub(crate) fn tables(&self) -> (&Tensor, &Tensor, bool) {
        (&self.cos, &self.sin, self.interleaved)
    }

    /// `x [B, heads, T, h]`, turned.
    pub(crate) fn apply(&self, x: &Tensor, places: Places<'_>) -> Result<Tensor> {
        let (tokens, width) = (x.dim(2)?, x.dim(3)?);
        let (cos, sin) = (places.rows(&self.cos, tokens)?, places.rows(&self.sin, tokens)?);
        if self.rotated == width {
            return fast::rotate(x, &cos, &sin, self.interleaved);
        }
        let turned = fast::rotate(&x.narrow(D::Minus1, 0, self.rotated)?, &cos, &sin, self.interleaved)?;
        let rest = x.narrow(D::Minus1, self.rotated, width - self.rotated)?;
        Ok(Tensor::cat(&[&turned, &rest.contiguous()?], D::Minus1)?)
    }
}
