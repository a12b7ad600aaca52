//! Where a training begins: its normalisation, and weights that are there already.

use super::{check, device, Moments, TrainConfig, Trainer};
use crate::activations::{Activations, Position, Reader, Scale};
use crate::clt::Tied;
use crate::clt::live::LiveClt;
use crate::clt::{Clt, CltConfig};
use crate::files::sealed::ArrayMut;
use crate::error::{Error, ErrorKind, Result};
use candle_core::Tensor;

/// The normalisation of a new training.
pub(super) fn scale(reader: &Reader, activations: &Activations, config: &TrainConfig) -> Result<Scale> {
    // Measured in both cases: it finds NaN before the first step.
    let measured = reader.scale()?;
    Ok(if config.normalise { measured } else { Scale::none(activations.layers(), activations.width()) })
}

impl Trainer {
    /// Begins with the weights of `clt` instead of random ones, with new moments; `shape` is
    /// `clt.config()`, or the same with another activation or model. With
    /// [`TrainConfig::normalise`] the weights are brought into normalised units: the first step's
    /// reconstruction is that of `clt`, to rounding.
    ///
    /// # Errors
    /// As [`Trainer::new`]; `Mismatch` when `shape` has other dimensions than `clt`; `BadTensor` for
    /// a threshold that is not above 0; `Unsupported` for a part of a CLT that is not trained.
    ///
    /// ```no_run
    /// use cltlab::prelude::*;
    /// let activations = Activations::load("activations.safetensors", &Default::default())?;
    /// let clt = Clt::load("runs/first", &CltLoadConfig::on(&Device::Cpu))?;
    /// let mut trainer = Trainer::from_clt(&activations, &clt, clt.config(), &TrainConfig::default())?;
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    pub fn from_clt(activations: &Activations, clt: &Clt, shape: &CltConfig, config: &TrainConfig) -> Result<Self> {
        check(activations, shape, config)?;
        let own = clt.config();
        for (field, got, expected) in [
            ("layers", shape.layers, own.layers),
            ("width", shape.width, own.width),
            ("features", shape.features, own.features),
            ("per_layer", usize::from(shape.per_layer), usize::from(own.per_layer)),
            ("skip", usize::from(shape.skip), usize::from(own.skip)),
        ] {
            if got != expected {
                return Err(Error::expected(ErrorKind::Mismatch, format_args!("CltConfig::{field}"), got, format_args!("{expected}, as the CLT that training begins with")));
            }
        }
        if shape.tied != Tied::No {
            return Err(Error::expected(ErrorKind::Unsupported, "Trainer::from_clt: CltConfig::tied", shape.tied.label(), "no").help("a CLT that is there has rows of its own for each target"));
        }
        let reader = device::read(activations, config, Position::default())?;
        let scale = scale(&reader, activations, config)?;
        let mut live = LiveClt::new(shape, config.moments == Moments::EightBit, config.seed)?;
        for (name, values) in live.arrays_mut() {
            let ArrayMut::F32(values) = values else { continue };
            if let Some((layer, part)) = name.strip_suffix(".w").and_then(|name| name.split_once('.')) {
                let layer = layer.parse().map_err(|_| Error::new(ErrorKind::Tensor, format!("array {name} has no layer")))?;
                unfold(clt, &scale, layer, part, values)?;
            }
        }
        live.layers.iter_mut().for_each(|layer| layer.measure());
        Trainer::assemble(live, config.clone(), activations, reader, scale)
    }
}

/// Fills one array of layer `l` with the CLT's values in normalised units: the inverse of
/// `LiveClt::fold`.
fn unfold(clt: &Clt, scale: &Scale, l: usize, part: &str, into: &mut [f32]) -> Result<()> {
    let flat = |tensor: &Tensor| -> Result<Vec<f32>> { Ok(tensor.flatten_all()?.to_vec1()?) };
    let (input, target, d) = (&scale.layers[l].input, &scale.layers[l].target, clt.config().width);
    match part {
        "encoder" => into.iter_mut().zip(flat(clt.encoder(l)?)?).for_each(|(w, own)| *w = own / input.factor),
        "encoder_bias" => {
            let rows = flat(clt.encoder(l)?)?;
            for ((b, own), row) in into.iter_mut().zip(flat(clt.encoder_bias(l)?)?).zip(rows.chunks_exact(d)) {
                let shift: f64 = row.iter().zip(&input.mean).map(|(&w, &mean)| f64::from(w) * f64::from(mean)).sum();
                *b = (f64::from(own) + shift) as f32;
            }
        }
        "decoder" => {
            let values = flat(clt.decoder(l)?)?;
            let slots = clt.config().slots(l);
            for (row, (w, own)) in into.chunks_exact_mut(d).zip(values.chunks_exact(d)).enumerate() {
                let factor = scale.layers[l + row % slots].target.factor;
                w.iter_mut().zip(own).for_each(|(w, own)| *w = own * factor);
            }
        }
        "decoder_bias" => {
            let mut through = vec![0f64; d];
            if let Some(skip) = clt.skip(l)? {
                for (row, &mean) in flat(skip)?.chunks_exact(d).zip(&input.mean) {
                    through.iter_mut().zip(row).for_each(|(sum, &w)| *sum += f64::from(w) * f64::from(mean));
                }
            }
            for (((b, own), mean), through) in into.iter_mut().zip(flat(clt.decoder_bias(l)?)?).zip(&target.mean).zip(through) {
                *b = ((f64::from(own) + through - f64::from(*mean)) * f64::from(target.factor)) as f32;
            }
        }
        "skip" => {
            let Some(skip) = clt.skip(l)? else { return Ok(()) };
            into.iter_mut().zip(flat(skip)?).for_each(|(w, own)| *w = own * target.factor / input.factor);
        }
        "log_threshold" => {
            let Some(thresholds) = clt.threshold(l)? else { return Ok(()) };
            for (f, (log, own)) in into.iter_mut().zip(flat(thresholds)?).enumerate() {
                if !(own > 0.0 && own.is_finite()) {
                    return Err(Error::expected(ErrorKind::BadTensor, format_args!("threshold_{l}[{f}]"), own, "a number above 0, because training keeps its logarithm"));
                }
                *log = own.ln();
            }
        }
        other => return Err(Error::new(ErrorKind::Unsupported, format!("training cannot begin with a given {other}"))),
    }
    Ok(())
}
