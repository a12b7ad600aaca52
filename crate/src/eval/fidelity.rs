//! Fidelity: the replacement model's predictions against the model's.

use super::Report;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Capture, Freeze};
use crate::progress::{stop_requested, Task};
use crate::replacement::Replacement;
use crate::text::Blocks;
use candle_core::{IndexOp, Tensor, D};

/// Adds cross-entropies, KL and top-1 to the report. Predictions from position 1 on count: at
/// position 0 nothing is replaced.
pub(super) fn measure(replacement: &Replacement, blocks: &Blocks, tokens: usize, report: &mut Report) -> Result<()> {
    let count = blocks.len().min(tokens.div_ceil(blocks.context()));
    let mut task = Task::new("run the replacement model", (count * blocks.context()) as u64, "tokens");
    let (mut sums, mut seen) = ([0f64; 5], 0);
    for block in (0..count).filter_map(|index| blocks.block(index)) {
        if stop_requested() {
            break;
        }
        let found = compare(replacement, block)?;
        sums.iter_mut().zip(found).for_each(|(sum, value)| *sum += value);
        seen += block.len() - 2;
        task.advance(seen as u64);
    }
    report.fidelity_tokens = seen;
    let mean = |sum: f64| sum / seen.max(1) as f64;
    let [model, replaced, ablated, kl, same] = sums.map(mean);
    (report.cross_entropy, report.replacement_cross_entropy, report.zero_ablation_ce) = (model, replaced, ablated);
    (report.kl, report.top1) = (kl, same);
    Ok(())
}

/// Sums over one context: cross-entropy of model, replacement and zero ablation, KL, agreements.
fn compare(replacement: &Replacement, tokens: &[u32]) -> Result<[f64; 5]> {
    let model = replacement.model();
    let logits = |run: crate::model::Run| run.logits.ok_or_else(|| Error::new(ErrorKind::Tensor, "evaluation: the pass made no logits"));
    let original = log_probabilities(&logits(model.run(tokens, &Capture::logits())?)?)?;
    let replaced = log_probabilities(&replacement.logits(tokens)?)?;
    let mut without = |_: usize, site: &crate::model::MlpSite<'_>| {
        let rest = site.mlp_out.i(1..)?.zeros_like()?;
        Ok(Some(Tensor::cat(&[&site.mlp_out.i(..1)?, &rest], 0)?))
    };
    let ablated = log_probabilities(&logits(model.run_spliced(tokens, &Capture::logits(), Freeze::none(), &mut without)?)?)?;
    let next = Tensor::new(&tokens[2..], model.device())?.unsqueeze(1)?;
    let cross_entropy = |log: &Tensor| -> Result<f64> { Ok(-f64::from(log.gather(&next, 1)?.sum_all()?.to_scalar::<f32>()?)) };
    let kl = (original.exp()? * (&original - &replaced)?)?.sum_all()?.to_scalar::<f32>()?;
    let same = original.argmax(D::Minus1)?.eq(&replaced.argmax(D::Minus1)?)?.to_dtype(candle_core::DType::F32)?.sum_all()?.to_scalar::<f32>()?;
    Ok([cross_entropy(&original)?, cross_entropy(&replaced)?, cross_entropy(&ablated)?, f64::from(kl), f64::from(same)])
}

/// Log-probabilities of the predictions from position 1 to the last but one, `[T - 2, V]`.
fn log_probabilities(logits: &Tensor) -> Result<Tensor> {
    let count = logits.dim(0)? - 2;
    Ok(candle_nn::ops::log_softmax(&logits.narrow(0, 1, count)?, D::Minus1)?)
}
