//! Batches: several prompts in one pass, equal to one by one.
//!
//! Shorter prompts are filled up on the left or on the right. Padding is never seen by a token, and
//! tokens keep the positions that they have alone. Cost: the longest prompt's, times the prompts.

use super::forward::Padded;
use super::run::{Capture, LayerRun, Logits, Run};
use super::{Freeze, Model};
use crate::error::Result;
use crate::text::Prompt;
use candle_core::Tensor;

/// On which side shorter prompts are filled up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Padding {
    /// Before the first token.
    Left,
    /// After the last token.
    #[default]
    Right,
}

impl Model {
    /// Runs several prompts in one pass; the runs are those of [`Model::run`], to rounding.
    ///
    /// ```no_run
    /// # use cltlab::{model::{Capture, Padding}, Model};
    /// let model = Model::load("gpt2", &Default::default())?;
    /// let runs = model.run_batch(["One", "Two and three"], Padding::Left, &Capture::last_logits())?;
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Model::tokens`]; `OutOfMemory`.
    pub fn run_batch<P: Into<Prompt>>(&self, prompts: impl IntoIterator<Item = P>, padding: Padding, capture: &Capture) -> Result<Vec<Run>> {
        let prompts = prompts.into_iter().map(|prompt| self.tokens(prompt)).collect::<Result<Vec<_>>>()?;
        self.run_ids_together(&prompts, padding, *capture)
    }

    fn run_ids_together(&self, prompts: &[Vec<u32>], padding: Padding, capture: Capture) -> Result<Vec<Run>> {
        let Some(count) = prompts.iter().map(Vec::len).max() else { return Ok(Vec::new()) };
        let fill = |prompt: &Vec<u32>| count - prompt.len();
        let left: Vec<usize> = prompts.iter().map(|prompt| if padding == Padding::Left { fill(prompt) } else { 0 }).collect();
        let ends: Vec<usize> = prompts.iter().zip(&left).map(|(prompt, left)| left + prompt.len()).collect();
        let ids = prompts.iter().zip(&left).zip(&ends).flat_map(|((prompt, left), end)| {
            let pad = |n: usize| std::iter::repeat_n(0_u32, n);
            pad(*left).chain(prompt.iter().copied()).chain(pad(count - end))
        });
        let ids = Tensor::from_vec(ids.collect::<Vec<u32>>(), (prompts.len(), count), self.device())?;
        let padded = Padded { left: &left, ends: &ends };
        let passed = self.pass_padded(&ids, padded, capture, Freeze::none(), &mut |_, _| Ok(None), None)?;
        let own = |(row, prompt): (usize, &Vec<u32>)| {
            let (start, tokens) = (left[row], prompt.len());
            let rows = |site: &Option<Tensor>| -> Result<Option<Tensor>> {
                site.as_ref().map(|site| Ok(site.narrow(0, row * count + start, tokens)?)).transpose()
            };
            let layer = |layer: &LayerRun| {
                let pattern = layer.attn_pattern.as_ref().map(|pattern| -> Result<Tensor> {
                    Ok(pattern.get(row)?.narrow(1, start, tokens)?.narrow(2, start, tokens)?.contiguous()?)
                });
                Ok(LayerRun {
                    resid_pre: rows(&layer.resid_pre)?,
                    resid_mid: rows(&layer.resid_mid)?,
                    mlp_in: rows(&layer.mlp_in)?,
                    mlp_normalized: rows(&layer.mlp_normalized)?,
                    mlp_out: rows(&layer.mlp_out)?,
                    attn_pattern: pattern.transpose()?,
                    attn_scale: rows(&layer.attn_scale)?,
                    attn_post_scale: rows(&layer.attn_post_scale)?,
                    mlp_scale: rows(&layer.mlp_scale)?,
                    mlp_post_scale: rows(&layer.mlp_post_scale)?,
                })
            };
            let logits = |logits: &Option<Tensor>| -> Result<Option<Tensor>> {
                let logits = logits.as_ref().map(|logits| logits.get(row)).transpose()?;
                Ok(if capture.logits == Logits::All { logits.map(|logits| logits.narrow(0, start, tokens)).transpose()? } else { logits })
            };
            let layers = passed.layers.iter().map(layer).collect::<Result<_>>()?;
            self.made(prompt, layers, rows(&passed.final_scale)?, logits(&passed.logits)?, logits(&passed.uncapped)?)
        };
        prompts.iter().enumerate().map(own).collect()
    }
}
