//! Rotary positions: pairs of a head's numbers turned by an angle that grows with the position.
//!
//! A model has one table, or two where layers with a window have a base of their own (Gemma 3).

use super::config::{ModelConfig, Positions, RotaryScaling};
use super::fast;
use crate::device::require_memory;
use crate::error::{Error, ErrorKind, Result};
use candle_core::{Device, Tensor, D};
use std::sync::{Arc, Mutex, PoisonError};

/// Positions of a table at first; on the CPU a longer context's table grows as it is needed.
const AT_FIRST: usize = 1 << 17;

/// Cosines and sines, `[positions, rotated / 2]`.
#[derive(Clone)]
pub(crate) struct Rotary {
    table: Arc<Mutex<(Tensor, Tensor)>>,
    /// What they are at first: on a GPU the whole of them.
    #[cfg(feature = "cuda")]
    first: (Tensor, Tensor),
    maker: Arc<Maker>,
    interleaved: bool,
    rotated: usize,
}

/// Computes tables.
struct Maker {
    /// Radians a token, of each pair.
    frequencies: Vec<f64>,
    magnitude: f64,
    context: usize,
    device: Device,
}

impl Maker {
    /// Cosines and sines of the first positions.
    fn table(&self, positions: usize) -> Result<(Tensor, Tensor)> {
        let half = self.frequencies.len();
        // Two tables, each first as a list.
        let bytes = (positions as u64).saturating_mul(half as u64).saturating_mul(16);
        require_memory(&format!("rotary positions of {positions} tokens"), bytes, "take a shorter prompt")?;
        let values = |f: fn(f64) -> f64| -> Result<Tensor> {
            let angles = (0..positions).flat_map(|position| self.frequencies.iter().map(move |frequency| position as f64 * frequency));
            let mut values = Vec::with_capacity(positions * half);
            values.extend(angles.map(|angle| (self.magnitude * f(angle)) as f32));
            Ok(Tensor::from_vec(values, (positions, half), &self.device)?)
        };
        Ok((values(f64::cos)?, values(f64::sin)?))
    }
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
        if let Some(odd) = divisors.iter().flatten().find(|divisor| !(divisor.is_finite() && **divisor > 0.0)) {
            return Err(Error::expected(ErrorKind::BadTensor, "divisors of the rotary frequencies (rope_freqs.weight)", odd, "numbers above 0"));
        }
        let table = |base: f64, scaling: Option<&RotaryScaling>, divisors: Option<&[f32]>| -> Result<Rotary> {
            let half = rotated.div_ceil(2);
            let frequencies: Vec<f64> = (0..half)
                .map(|pair| (pair, base.powf(-2.0 * pair as f64 / rotated as f64)))
                .map(|(pair, frequency)| (pair, scaling.map_or(frequency, |scaling| scaling.apply(pair, frequency))))
                .map(|(pair, frequency)| frequency / divisors.map_or(1.0, |divisors| f64::from(divisors[pair])))
                .collect();
            let magnitude = scaling.map_or(1.0, RotaryScaling::magnitude);
            let maker = Maker { frequencies, magnitude, context: config.context, device: device.clone() };
            let first = maker.table(if device.is_cpu() { config.context.min(AT_FIRST) } else { config.context })?;
            Ok(Rotary {
                table: Arc::new(Mutex::new(first.clone())),
                #[cfg(feature = "cuda")]
                first,
                maker: Arc::new(maker),
                interleaved,
                rotated: 2 * half,
            })
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
    /// Cosines and sines, `[context, pairs]` on a GPU, and whether pairs are neighbours.
    #[cfg(feature = "cuda")]
    pub(crate) fn tables(&self) -> (&Tensor, &Tensor, bool) {
        (&self.first.0, &self.first.1, self.interleaved)
    }

    /// Cosines and sines of at least so many positions.
    fn upto(&self, positions: usize) -> Result<(Tensor, Tensor)> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.0.dim(0)? < positions {
            *table = self.maker.table(positions.checked_next_power_of_two().unwrap_or(positions).min(self.maker.context))?;
        }
        Ok(table.clone())
    }

    /// `x [B, heads, T, h]`, turned.
    pub(crate) fn apply(&self, x: &Tensor, places: Places<'_>) -> Result<Tensor> {
        let (tokens, width) = (x.dim(2)?, x.dim(3)?);
        // Positions by padding are below those without it.
        let (cos, sin) = self.upto(places.start + tokens)?;
        let (cos, sin) = (places.rows(&cos, tokens)?, places.rows(&sin, tokens)?);
        if self.rotated == width {
            return fast::rotate(x, &cos, &sin, self.interleaved);
        }
        let turned = fast::rotate(&x.narrow(D::Minus1, 0, self.rotated)?, &cos, &sin, self.interleaved)?;
        let rest = x.narrow(D::Minus1, self.rotated, width - self.rotated)?;
        Ok(Tensor::cat(&[&turned, &rest.contiguous()?], D::Minus1)?)
    }
}
