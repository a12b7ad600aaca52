//! FVU, L0 and dead features on held-out text, streamed batch by batch.

use super::{EvalConfig, LayerReport, Report};
use crate::activations::{counts, Outliers};
use crate::clt::LayerCode;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{stop_requested, Task};
use crate::replacement::Replacement;
use crate::text::Blocks;
use candle_core::Tensor;

/// Contexts run at once.
const BATCH: usize = 8;

/// Sums of one layer over the tokens.
struct Sums {
    error: f64,
    square: f64,
    columns: Vec<f64>,
    active: usize,
    fired: Vec<bool>,
}

pub(super) fn measure(replacement: &Replacement, blocks: &Blocks, config: &EvalConfig, report: &mut Report) -> Result<()> {
    let (model, clt) = (replacement.model(), replacement.clt());
    let new = || Sums { error: 0.0, square: 0.0, columns: vec![0.0; model.width()], active: 0, fired: vec![false; clt.features()] };
    let mut sums: Vec<Sums> = (0..model.layers()).map(|_| new()).collect();
    let indices: Vec<usize> = (0..blocks.len().min(config.tokens.div_ceil(blocks.context()))).collect();
    let mut task = Task::new("reconstruct held-out text", (indices.len() * blocks.context()) as u64, "tokens");
    let mut seen = 0;
    for group in indices.chunks(BATCH) {
        if stop_requested() {
            break;
        }
        let ids: Vec<u32> = group.iter().filter_map(|&block| blocks.block(block)).flatten().copied().collect();
        let kept: Vec<bool> = ids.iter().enumerate().map(|(at, id)| at % blocks.context() > 0 && model.special_token() != Some(*id)).collect();
        let mut outliers = Outliers::new(config.max_norm, counts(&kept, blocks.context()));
        let kept: Vec<u32> = (0..ids.len() as u32).filter(|&at| kept[at as usize]).collect();
        if kept.is_empty() {
            continue;
        }
        let kept = Tensor::new(kept, model.device())?;
        let mut found: Vec<[Vec<f32>; 2]> = Vec::with_capacity(model.layers());
        let tokens = Tensor::from_vec(ids, (group.len(), blocks.context()), model.device())?;
        let mut codes: Vec<LayerCode> = Vec::with_capacity(model.layers());
        let mut take = |codes: &[LayerCode], layer: usize, input: &Tensor, output: Tensor| -> Result<()> {
            let error = (&output - clt.decode_target(codes, layer, Some(input))?)?;
            let host = |tensor: &Tensor| -> Result<Vec<f32>> { Ok(tensor.flatten_all()?.to_vec1::<f32>()?) };
            let output = host(&output)?;
            outliers.see(&host(input)?, model.width());
            outliers.see(&output, model.width());
            found.push([output, host(&error)?]);
            Ok(())
        };
        // Where all layers are ranked together, nothing is known before the last one.
        let (together, mut sites) = (clt.config().activation.ranks_layers(), Vec::new());
        model.visit_mlp(&tokens, &mut |layer, site| {
            let input = replacement.read(site)?.index_select(&kept, 0)?;
            let output = site.mlp_out.index_select(&kept, 0)?;
            if together {
                sites.push((input, output));
                return Ok(());
            }
            codes.push(clt.encode_layer(layer, &input)?);
            take(&codes, layer, &input, output)
        })?;
        if together {
            codes = clt.encode_inputs(&sites.iter().map(|(input, _)| input.clone()).collect::<Vec<_>>())?.layers;
            for (layer, (input, output)) in sites.into_iter().enumerate() {
                take(&codes[..=layer], layer, &input, output)?;
            }
        }
        let stay: Vec<usize> = (0..kept.dim(0)?).filter(|&at| outliers.stays(at)).collect();
        for ((sums, code), [output, error]) in sums.iter_mut().zip(&codes).zip(&found) {
            stay.iter().for_each(|&at| sums.add(code, output, error, at));
        }
        seen += stay.len();
        task.advance(seen as u64);
    }
    if seen == 0 {
        if stop_requested() {
            return Err(Error::new(ErrorKind::Interrupted, "evaluation stopped before the first batch"));
        }
        return Err(Error::expected(ErrorKind::BadInput, "held-out text", format_args!("no token to measure among {}", indices.len() * blocks.context()), "tokens that are not special, first of their context or outliers")
            .help("give a longer text of ordinary words, or one that the tokenizer knows"));
    }
    task.finish(format!("{seen} tokens"));
    report.tokens = seen;
    report.layers = sums.iter().map(|sums| sums.report(seen)).collect();
    Ok(())
}

impl Sums {
    /// Takes in token `at` of a batch; `output` and `error` are `[tokens, d]`.
    fn add(&mut self, code: &LayerCode, output: &[f32], error: &[f32], at: usize) {
        let d = self.columns.len();
        let total = |values: &[f32]| values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
        let (output, error) = (&output[at * d..(at + 1) * d], &error[at * d..(at + 1) * d]);
        self.error += total(error);
        self.square += total(output);
        self.columns.iter_mut().zip(output).for_each(|(sum, &y)| *sum += f64::from(y));
        let (features, _) = code.token(at);
        self.active += features.len();
        features.iter().for_each(|&f| self.fired[f as usize] = true);
    }

    fn report(&self, tokens: usize) -> LayerReport {
        let means: f64 = self.columns.iter().map(|sum| sum * sum).sum::<f64>() / tokens as f64;
        let variance = self.square - means;
        LayerReport {
            fvu: if variance > 0.0 { self.error / variance } else { 0.0 },
            l0: self.active as f64 / tokens as f64,
            dead: self.fired.iter().filter(|&&fired| !fired).count() as f64 / self.fired.len() as f64,
        }
    }
}
