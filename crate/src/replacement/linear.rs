//! The frozen linear model: what is left of a run when attention patterns, norm scales and MLP
//! outputs are constants.
//!
//! It is linear, so gradients need no autograd and no copies of the prompt: a batch of directions
//! `[B, T', d]` is carried down the residual stream by the transposes of attention and norms, and of a
//! CLT's skip connections, the one way through an MLP (as in circuit-tracer). A
//! direction put in at position p reaches positions up to p only, so T' is the largest p + 1 of the
//! batch. Source: *Circuit Tracing*, local replacement model; `method.md` §2.3. Cost per layer and
//! target: `4 T' d²` flops for values and outputs and `2 T'² d` for patterns.

use crate::clt::{Clt, InputSite};
use crate::error::{Error, ErrorKind, Result};
use crate::model::back::add_to;
use crate::model::{Model, Run};
use candle_core::Tensor;
use std::sync::Arc;

/// Where a direction is seen on its way down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// At the output of this layer's MLP.
    MlpOut(usize),
    /// At the token embeddings.
    Embedding,
}

/// A model with the nonlinear parts of one run held constant. Cheap to clone.
#[derive(Clone)]
pub struct FrozenModel {
    model: Model,
    run: Arc<Run>,
    /// A CLT with skip connections.
    skips: Option<Clt>,
}

impl FrozenModel {
    /// The model frozen at `run`, which must have captured everything but may lack logits.
    pub fn new(model: &Model, run: &Arc<Run>) -> Self {
        FrozenModel { model: model.clone(), run: run.clone(), skips: None }
    }

    /// The same with the skip connections of `clt`, if it has them: the MLPs' outputs are constant
    /// but for what goes through these.
    pub fn with_skips(self, clt: &Clt) -> Self {
        FrozenModel { skips: Some(clt.clone()).filter(|clt| clt.config().skip), ..self }
    }

    /// Directions after the final norm at the last position, carried to the end of the last block.
    ///
    /// # Shapes
    /// `directions` `[B, d]` → `[B, T, d]`.
    ///
    /// # Errors
    /// `BadInput` when the run lacks scales; `Tensor` for another width.
    pub fn from_output(&self, directions: &Tensor) -> Result<Tensor> {
        let last = self.run.tokens.len() - 1;
        self.model.back_final_norm(&self.run, &placed(directions, &vec![last; directions.dim(0)?])?)
    }

    /// Directions in the residual stream that enters a block, one at each of `positions`.
    ///
    /// # Shapes
    /// `directions` `[B, d]`, B positions → `[B, max(positions) + 1, d]`.
    ///
    /// # Errors
    /// `Tensor` for directions that are not a matrix.
    pub fn from_stream(&self, positions: &[usize], directions: &Tensor) -> Result<Tensor> {
        placed(directions, positions)
    }

    /// Directions at what the encoders of `layer` read, one at each of `positions`, carried to the
    /// end of the block before.
    ///
    /// # Shapes
    /// `directions` `[B, d]`, B positions → `[B, max(positions) + 1, d]`.
    ///
    /// # Errors
    /// `BadInput` for a position beyond the prompt, or when the run lacks patterns or scales.
    pub fn from_input(&self, layer: usize, site: InputSite, positions: &[usize], directions: &Tensor) -> Result<Tensor> {
        let g = self.before_attention(layer, site, positions, directions)?;
        // Where attention and MLP stand side by side, the MLP's input is the block's.
        if self.model.parallel_blocks() { Ok(g) } else { self.through_attention(layer, &g, g.clone()) }
    }

    /// As [`FrozenModel::from_input`], carried only to the residual stream before the MLP's norm.
    ///
    /// # Errors
    /// As [`FrozenModel::from_input`].
    pub fn before_attention(&self, layer: usize, site: InputSite, positions: &[usize], directions: &Tensor) -> Result<Tensor> {
        if let Some(beyond) = positions.iter().find(|position| **position >= self.run.tokens.len()) {
            return Err(Error::expected(ErrorKind::BadInput, "FrozenModel: position", beyond, format_args!("less than {}", self.run.tokens.len())));
        }
        self.from_site(layer, site, placed(directions, positions)?)
    }

    /// `g` at what the encoders of `layer` read, carried to the residual stream before the MLP's norm.
    fn from_site(&self, layer: usize, site: InputSite, g: Tensor) -> Result<Tensor> {
        match site {
            InputSite::ResidMid => Ok(g),
            InputSite::MlpIn => self.model.back_mlp_norm(layer, &self.run, &g),
            InputSite::Normalized => self.model.back_mlp_normalized(layer, &self.run, &g),
        }
    }

    /// Carries `g [B, T', d]` from the end of block `below - 1` down to the embeddings and shows it
    /// to `visit` at every MLP output on the way, last layer first, then at the embeddings.
    ///
    /// # Errors
    /// `BadInput` when the run lacks patterns or scales; what `visit` returns.
    pub fn carry(&self, below: usize, g: Tensor, visit: &mut dyn FnMut(Site, &Tensor) -> Result<()>) -> Result<()> {
        self.carry_all(vec![(below, g)], visit)
    }

    /// As [`FrozenModel::carry`] for groups `(below, g)` of one T', largest `below` first: each joins
    /// the others on its layer, so that they share the products further down. `visit` sees the
    /// groups that have joined, in their order.
    pub(crate) fn carry_all(&self, groups: Vec<(usize, Tensor)>, visit: &mut dyn FnMut(Site, &Tensor) -> Result<()>) -> Result<()> {
        let top = groups.first().map_or(0, |(below, _)| *below);
        let mut waiting = groups.into_iter().peekable();
        let mut joined: Option<Tensor> = None;
        for below in (0..=top).rev() {
            let mut parts: Vec<Tensor> = joined.take().into_iter().collect();
            while let Some((_, g)) = waiting.next_if(|(at, _)| *at == below) {
                parts.push(g);
            }
            let g = match parts.len() {
                1 => parts.swap_remove(0),
                _ => Tensor::cat(&parts, 0)?,
            };
            if below == 0 {
                return visit(Site::Embedding, &g);
            }
            let at_mlp = self.model.back_mlp_out(below - 1, &self.run, &g)?;
            visit(Site::MlpOut(below - 1), &at_mlp)?;
            let (at_attention, past) = self.past_mlp(below - 1, g, &at_mlp)?;
            joined = Some(self.through_attention(below - 1, &at_attention, past)?);
        }
        Ok(())
    }

    /// Past the MLP of `layer`, where `g` is at the end of the block and `at_mlp` at the MLP's output:
    /// what reaches the attention's output, and what goes past the attention. They differ by the skip
    /// connection where attention and MLP stand side by side.
    pub(crate) fn past_mlp(&self, layer: usize, g: Tensor, at_mlp: &Tensor) -> Result<(Tensor, Tensor)> {
        let Some((clt, skip)) = self.skips.as_ref().and_then(|clt| Some((clt, clt.skip(layer)?))) else {
            return Ok((g.clone(), g));
        };
        let (count, length, width) = at_mlp.dims3()?;
        let at_input = at_mlp.contiguous()?.reshape((count * length, width))?.matmul(&skip.t()?)?.reshape((count, length, width))?;
        let past = (&g + self.from_site(layer, clt.config().input, at_input)?)?;
        Ok(if self.model.parallel_blocks() { (g, past) } else { (past.clone(), past) })
    }

    /// Both ways around an attention: `at` through it and `past` it.
    fn through_attention(&self, layer: usize, at: &Tensor, past: Tensor) -> Result<Tensor> {
        let through = self.model.back_attention(layer, &self.run, at)?;
        if past.device().is_cpu() {
            add_to(&through, &past)?;
            return Ok(through);
        }
        Ok((past + through)?)
    }
}

/// `[B, d]` rows, each at its position of an otherwise zero `[B, max + 1, d]`.
fn placed(directions: &Tensor, positions: &[usize]) -> Result<Tensor> {
    let (count, width) = directions.dims2()?;
    let length = positions.iter().max().map_or(1, |last| last + 1);
    let mut values = vec![0.0_f32; count * length * width];
    for ((row, position), direction) in values.chunks_exact_mut(length * width).zip(positions).zip(directions.to_vec2::<f32>()?) {
        row[position * width..(position + 1) * width].copy_from_slice(&direction);
    }
    Ok(Tensor::from_vec(values, (count, length, width), directions.device())?)
}

impl std::fmt::Debug for FrozenModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FrozenModel of {} at {} tokens", self.model.name(), self.run.tokens.len())
    }
}
