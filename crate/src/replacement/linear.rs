//! The frozen linear model: what is left of a run when attention patterns, norm scales and MLP
//! outputs are constants.
//!
//! It is linear, so gradients need no autograd and no copies of the prompt: a batch of directions
//! `[B, T', d]` is carried down the residual stream by the transposes of attention and norms, and of a
//! CLT's skip connections, the one way through an MLP (as in circuit-tracer). Inside,
//! targets have rows for the positions that they reach only (`Flow`). Source: *Circuit Tracing*, local replacement model; `method.md` §2.3. Cost per layer and
//! target that reaches T' positions: `4 T' d²` flops for values and outputs and `T'² d` for patterns; the
//! first attention on the way takes `2 T' H d` instead.

use crate::clt::{Clt, InputSite};
use crate::error::{Error, ErrorKind, Result};
use crate::model::flow::Flow;
use crate::model::{Model, Run};
use candle_core::Tensor;
use std::sync::Arc;

/// Where a direction is seen on its way down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
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
    pub fn skips(self, clt: &Clt) -> Self {
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
        self.output_flow(directions)?.rectangle(self.run.tokens.len())
    }

    pub(crate) fn output_flow(&self, directions: &Tensor) -> Result<Flow> {
        let last = self.run.tokens.len() - 1;
        self.model.final_norm_back(&self.run, &Flow::points(directions, &vec![last; directions.dim(0)?])?)
    }

    /// Directions in the residual stream that enters a block, one at each of `positions`.
    ///
    /// # Shapes
    /// `directions` `[B, d]`, B positions → `[B, max(positions) + 1, d]`.
    ///
    /// # Errors
    /// `BadInput` for another number of positions, `Tensor` for directions that are not a matrix.
    pub fn from_stream(&self, positions: &[usize], directions: &Tensor) -> Result<Tensor> {
        Flow::points(directions, positions)?.rectangle(reach(positions))
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
        self.input_flow(layer, site, positions, directions)?.rectangle(reach(positions))
    }

    pub(crate) fn input_flow(&self, layer: usize, site: InputSite, positions: &[usize], directions: &Tensor) -> Result<Flow> {
        let g = self.mid_flow(layer, site, positions, directions)?;
        // Where attention and MLP stand side by side, the MLP's input is the block's.
        if self.model.parallel_blocks() { Ok(g) } else { self.model.around_attention(layer, &self.run, &g, &g) }
    }

    /// As [`FrozenModel::from_input`], carried only to the residual stream before the MLP's norm.
    ///
    /// # Errors
    /// As [`FrozenModel::from_input`].
    pub fn before_attention(&self, layer: usize, site: InputSite, positions: &[usize], directions: &Tensor) -> Result<Tensor> {
        self.mid_flow(layer, site, positions, directions)?.rectangle(reach(positions))
    }

    fn mid_flow(&self, layer: usize, site: InputSite, positions: &[usize], directions: &Tensor) -> Result<Flow> {
        if let Some(beyond) = positions.iter().find(|position| **position >= self.run.tokens.len()) {
            return Err(Error::expected(ErrorKind::BadInput, "FrozenModel: position", beyond, format_args!("less than {}", self.run.tokens.len())));
        }
        self.from_site(layer, site, &Flow::points(directions, positions)?)
    }

    /// `g` at what the encoders of `layer` read, carried to the residual stream before the MLP's norm.
    fn from_site(&self, layer: usize, site: InputSite, g: &Flow) -> Result<Flow> {
        match site {
            InputSite::ResidMid => Ok(g.clone()),
            InputSite::MlpIn => self.model.mlp_norm_back(layer, &self.run, g),
            InputSite::Normalized => self.model.mlp_normalized_back(layer, &self.run, g),
        }
    }

    /// Carries `g [B, T', d]` from the end of block `below - 1` down to the embeddings and shows it
    /// to `visit` at every MLP output on the way, last layer first, then at the embeddings.
    ///
    /// # Errors
    /// `BadInput` when the run lacks patterns or scales; what `visit` returns.
    pub fn carry(&self, below: usize, g: Tensor, visit: &mut dyn FnMut(Site, &Tensor) -> Result<()>) -> Result<()> {
        let length = g.dim(1)?;
        self.carry_all(vec![(below, Flow::rectangular(&g)?)], &mut |site, g| visit(site, &g.rectangle(length)?))
    }

    /// As [`FrozenModel::carry`] for groups `(below, flow)`, largest `below` first: each joins the
    /// others on its layer, so that they share the products further down. `visit` sees the groups
    /// that have joined, in their order.
    pub(crate) fn carry_all(&self, groups: Vec<(usize, Flow)>, visit: &mut dyn FnMut(Site, &Flow) -> Result<()>) -> Result<()> {
        let top = groups.first().map_or(0, |(below, _)| *below);
        let mut waiting = groups.into_iter().peekable();
        let mut joined: Option<Flow> = None;
        for below in (0..=top).rev() {
            let mut parts: Vec<Flow> = joined.take().into_iter().collect();
            while let Some((_, g)) = waiting.next_if(|(at, _)| *at == below) {
                parts.push(g);
            }
            let g = Flow::cat(parts)?;
            if below == 0 {
                return visit(Site::Embedding, &g);
            }
            let at_mlp = self.model.mlp_out_back(below - 1, &self.run, &g)?;
            visit(Site::MlpOut(below - 1), &at_mlp)?;
            let (at_attention, past) = self.past_mlp(below - 1, g, &at_mlp)?;
            joined = Some(self.model.around_attention(below - 1, &self.run, &at_attention, &past)?);
        }
        Ok(())
    }

    /// Past the MLP of `layer`, where `g` is at the end of the block and `at_mlp` at the MLP's output:
    /// what reaches the attention's output, and what goes past the attention. They differ by the skip
    /// connection where attention and MLP stand side by side.
    fn past_mlp(&self, layer: usize, g: Flow, at_mlp: &Flow) -> Result<(Flow, Flow)> {
        let skipping = match &self.skips {
            Some(clt) => clt.skip(layer)?.map(|skip| (clt, skip)),
            None => None,
        };
        let Some((clt, skip)) = skipping else { return Ok((g.clone(), g)) };
        let at_input = at_mlp.with(at_mlp.rows.matmul(&skip.t()?)?);
        let past = g.with((&g.rows + self.from_site(layer, clt.config().input, &at_input)?.rows)?);
        Ok(if self.model.parallel_blocks() { (g, past) } else { (past.clone(), past) })
    }

    /// The same for `g [B, T', d]`.
    pub(crate) fn past(&self, layer: usize, g: &Tensor, at_mlp: &Tensor) -> Result<(Tensor, Tensor)> {
        let length = g.dim(1)?;
        let (at, past) = self.past_mlp(layer, Flow::rectangular(g)?, &Flow::rectangular(at_mlp)?)?;
        Ok((at.rectangle(length)?, past.rectangle(length)?))
    }
}

/// Positions that directions at `positions` reach.
fn reach(positions: &[usize]) -> usize {
    positions.iter().max().map_or(1, |last| last + 1)
}

impl std::fmt::Debug for FrozenModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FrozenModel of {} at {} tokens", self.model.name(), self.run.tokens.len())
    }
}
