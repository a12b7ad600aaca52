//! A forward pass on a GPU for activations that stay there: each layer's sites go straight into a filling.
//!
//! In: token ids, where each token's row goes, and the filling's tensors. Out: those rows, and which tokens are far longer than
//! others ([`DevicePass::outliers`]); nothing waits for the device before that. Products are cuBLAS', what lies between is
//! three of our own kernels (`model.cu`, `attend.cu`), in memory that all layers share: about ten launches a layer. Products read
//! what is rounded to the weights' type; their results, the residual stream and all sums are f32, as in [`Model::pass`].

use super::config::{MlpActivation, ModelConfig, NormKind, NormPlaces};
use super::parts::{Layer, Linear, Norm};
use super::rotary::Rotary;
use super::{InputSite, Model};
use crate::device::gpu::{At, Buffer, Gpu, Kernel, Kernels, Numbers, Operand, Product, Stored};
use crate::error::Result;
use candle_core::cuda_backend::cudarc::driver::DeviceRepr;
use candle_core::{DType, Tensor};

/// Tokens of a context at most, as in `model.cu`.
const CONTEXT: usize = 4096;
/// Queries of a block, as in `attend.cu`.
const QUERIES: usize = 32;
/// Rows of a block of norms.
const ROWS: usize = 8;
/// A row that goes nowhere.
const NOWHERE: u32 = u32::MAX;

/// `ModelNorm` as `model.cu` has it.
#[repr(C)]
#[derive(Clone, Copy)]
struct NormArguments {
    x: At,
    y: At,
    y_bias: At,
    weight: At,
    bias: At,
    places: At,
    x_squares: At,
    y_squares: At,
    eps: f32,
    centre: u32,
    which: u32,
    rows: u32,
    d: u32,
}

/// `Attend` as `attend.cu` has it.
#[repr(C)]
#[derive(Clone, Copy)]
struct AttendArguments {
    inputs: [At; 6],
    turns: [At; 2],
    pairs: u32,
    interleaved: u32,
    tokens: u32,
    heads: u32,
    groups: u32,
    h: u32,
    scale: f32,
}

// SAFETY: plain numbers in C's layout, as the kernels declare them.
unsafe impl DeviceRepr for NormArguments {}
unsafe impl DeviceRepr for AttendArguments {}

/// A linear map on the device.
#[derive(Clone, Copy)]
struct Map {
    weight: At,
    /// 0 for none.
    bias: At,
    outs: usize,
    depth: usize,
}

/// A norm on the device.
#[derive(Clone, Copy)]
struct Scaled {
    weight: At,
    bias: At,
    eps: f32,
    centre: bool,
}

/// A layer on the device.
struct Block {
    attn_norm: Scaled,
    query: Map,
    key: Map,
    value: Map,
    output: Map,
    mlp_norm: Scaled,
    gate: Option<Map>,
    up: Map,
    down: Map,
    turns: Turns,
}

/// Cosines and sines, and how many pairs are turned.
#[derive(Default)]
struct Turns {
    tables: [At; 2],
    pairs: usize,
    interleaved: bool,
}

/// Where the sites of a batch go.
pub(crate) struct Sites<'a> {
    /// Each layer's, `[room, d]`, in the weights' type.
    pub inputs: &'a [Tensor],
    pub targets: &'a [Tensor],
    /// The row of each token there; `None` for a token that is left out.
    pub places: &'a [Option<u32>],
    /// Multiple of a context's median norm from which on a token is an outlier.
    pub max_norm: Option<f64>,
}

/// The pass, and the memory that it takes.
pub(crate) struct DevicePass {
    model: Model,
    gpu: Gpu,
    stored: Stored,
    input: InputSite,
    blocks: Vec<Block>,
    /// What products read and write, `[rows, ...]`: the normed stream, queries, keys, values, what attention mixes, a branch's
    /// output, gate and up, and the MLP's inner numbers.
    normed: Numbers,
    heads: [Buffer<f32>; 3],
    mixed: Numbers,
    branch: Buffer<f32>,
    gate: Buffer<f32>,
    up: Buffer<f32>,
    inner: Numbers,
    places: Buffer<u32>,
    /// Squared norms, `[2, L, rows]`.
    squares: Buffer<f32>,
    /// One a row of the filling.
    flags: Buffer<u32>,
}

impl DevicePass {
    /// A pass for `rows` tokens at a time in contexts of `context`, into fillings of at most `room` rows. `None` where these kernels
    /// do not do exactly what the model does: another device, f16, norms behind the branches, normed queries, windows, caps.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(model: &Model, input: InputSite, rows: usize, context: usize, room: usize) -> Result<Option<Self>> {
        let config = model.config();
        let stored = match model.dtype() {
            DType::F32 => Stored::F32,
            DType::BF16 => Stored::Bf16,
            _ => return Ok(None),
        };
        if !model.device().is_cuda() || !fits(config, rows, context) {
            return Ok(None);
        }
        let gpu = Gpu::of(model.device())?;
        let blocks = model.parts().layers.iter().enumerate().map(|(index, layer)| block(&gpu, model, index, layer, stored)).collect::<Option<Vec<_>>>();
        let Some(blocks) = blocks else { return Ok(None) };
        let (d, wide, narrow) = (config.width, config.heads * config.head_dim, config.kv_heads * config.head_dim);
        Ok(Some(DevicePass {
            model: model.clone(),
            input,
            blocks,
            normed: Numbers::zeros(&gpu, stored, rows * d)?,
            heads: [gpu.zeros(rows * wide)?, gpu.zeros(rows * narrow)?, gpu.zeros(rows * narrow)?],
            mixed: Numbers::zeros(&gpu, stored, rows * wide)?,
            branch: gpu.zeros(rows * d)?,
            gate: gpu.zeros(if config.gated { rows * config.mlp_width } else { 0 })?,
            up: gpu.zeros(rows * config.mlp_width)?,
            inner: Numbers::zeros(&gpu, stored, rows * config.mlp_width)?,
            places: gpu.zeros(rows)?,
            squares: gpu.zeros(2 * config.layers * rows)?,
            flags: gpu.zeros(room)?,
            stored,
            gpu,
        }))
    }

    /// Runs `tokens [contexts, context]` u32; their sites go where `sites` says.
    ///
    /// # Errors
    /// Faults of the device.
    pub fn run(&mut self, tokens: &Tensor, sites: &Sites<'_>) -> Result<()> {
        let (contexts, context) = tokens.dims2()?;
        let (rows, d) = (contexts * context, self.model.width());
        let mut x = self.model.embedded(&tokens.flatten_all()?)?.reshape((contexts, context, d))?;
        if let Some(positions) = &self.model.parts().positions {
            x = x.broadcast_add(&positions.narrow(0, 0, context)?)?;
        }
        // The stream is added to where it lies; its memory is given to others once this returns, later in the device's stream.
        let stream = x.contiguous()?;
        let (x, layers) = (self.gpu.place(&stream)?, self.blocks.len());
        let places: Vec<u32> = sites.places.iter().map(|place| place.unwrap_or(NOWHERE)).collect();
        self.places.write(&places)?;
        let side = |tensors: &[Tensor]| tensors.iter().map(|tensor| Ok(self.gpu.find(tensor)?.0)).collect::<Result<Vec<At>>>();
        let (inputs, targets) = (side(sites.inputs)?, side(sites.targets)?);
        let squares = |side: usize, layer: usize| if sites.max_norm.is_some() { self.squares.from((side * layers + layer) * rows) } else { 0 };
        let base = NormArguments { x, y: 0, y_bias: 0, weight: 0, bias: 0, places: self.places.at(), x_squares: 0, y_squares: 0, eps: 0.0, centre: 0, which: 0, rows: rows as u32, d: d as u32 };
        for (layer, block) in self.blocks.iter().enumerate() {
            // What the MLP before wrote comes in here.
            let before = layer.checked_sub(1).map(|before| (self.blocks[before].down.bias, targets[before], squares(1, before)));
            let (y, (y_bias, y_site, y_squares)) = (before.map_or(0, |_| self.branch.at()), before.unwrap_or((0, 0, 0)));
            self.norm(NormArguments { y, y_bias, y_squares, ..base }, Some(&block.attn_norm), 0, y_site)?;
            for (map, out) in [block.query, block.key, block.value].iter().zip(&self.heads) {
                self.times(map, self.normed.at(), out.at(), rows)?;
            }
            self.attend(block, contexts, context)?;
            self.times(&block.output, self.mixed.at(), self.branch.at(), rows)?;
            // LayerNorm's is taken behind weight and bias, and so is what the MLP reads.
            let which = match self.input {
                InputSite::ResidMid => 0,
                InputSite::Normalized if !block.mlp_norm.centre => 2,
                _ => 1,
            };
            let middle = NormArguments { y: self.branch.at(), y_bias: block.output.bias, x_squares: squares(0, layer), which, ..base };
            self.norm(middle, Some(&block.mlp_norm), inputs[layer], 0)?;
            if let Some(gate) = &block.gate {
                self.times(gate, self.normed.at(), self.gate.at(), rows)?;
            }
            self.times(&block.up, self.normed.at(), self.up.at(), rows)?;
            self.nonlinear(block, rows)?;
            self.times(&block.down, self.inner.at(), self.branch.at(), rows)?;
        }
        if let Some(last) = layers.checked_sub(1) {
            let end = NormArguments { y: self.branch.at(), y_bias: self.blocks[last].down.bias, y_squares: squares(1, last), ..base };
            self.norm(end, None, 0, targets[last])?;
        }
        if let Some(multiple) = sites.max_norm {
            let (context, rows, multiple) = (context as u32, rows as u32, multiple as f32);
            // SAFETY: squares are [2 L, rows], places [rows] and below the flags' length.
            unsafe { self.gpu.launch(Kernel::MODEL_OUTLIERS, (contexts, 2 * layers), 128, &[&self.squares.at(), &self.places.at(), &context, &rows, &multiple, &self.flags.at()])? };
        }
        Ok(())
    }

    /// Which of the filling's first `count` rows are outliers; waits for the device.
    ///
    /// # Errors
    /// Faults of the device.
    pub fn outliers(&self, count: usize) -> Result<Vec<bool>> {
        Ok(self.flags.read_first(count)?.into_iter().map(|flag| flag != 0).collect())
    }

    /// `out [rows, outs] = x [rows, depth] · weightᵀ`.
    fn times(&self, map: &Map, x: At, out: At, rows: usize) -> Result<()> {
        let factor = |at, turned| Operand { at, stored: self.stored, stride: map.depth, turned };
        let product = Product { rows, depth: map.depth, columns: map.outs, left: factor(x, false), right: factor(map.weight, true), out, stride: map.outs, add: false };
        // SAFETY: the buffers were made for the widths of these maps, and the weights are the model's, which is held.
        unsafe { self.gpu.product(&product) }
    }

    fn norm(&self, mut arguments: NormArguments, norm: Option<&Scaled>, x_site: At, y_site: At) -> Result<()> {
        if let Some(norm) = norm {
            (arguments.weight, arguments.bias, arguments.eps, arguments.centre) = (norm.weight, norm.bias, norm.eps, u32::from(norm.centre));
        }
        let blocks = (arguments.rows as usize).div_ceil(ROWS);
        // SAFETY: all are rows of d numbers; places are below the rows of a filling.
        unsafe { self.gpu.launch(Kernels::MODEL_NORM.of(self.stored), (blocks, 1), 32 * ROWS, &[&arguments, &self.normed.at(), &x_site, &y_site]) }
    }

    fn attend(&self, block: &Block, contexts: usize, context: usize) -> Result<()> {
        let [q, k, v] = [0, 1, 2].map(|i| self.heads[i].at());
        let inputs = [q, k, v, block.query.bias, block.key.bias, block.value.bias];
        // SAFETY: queries, keys and values are those of these contexts; the tables have a row for each place in a context.
        unsafe { attend(&self.gpu, self.model.config(), inputs, &block.turns, contexts, context, self.mixed.at(), self.stored) }
    }

    fn nonlinear(&self, block: &Block, rows: usize) -> Result<()> {
        let (inner, eights) = (block.up.outs as u32, (rows * block.up.outs / 8) as u32);
        let gate = if block.gate.is_some() { self.gate.at() } else { 0 };
        let activation = match self.model.config().activation {
            MlpActivation::Gelu => 0u32,
            MlpActivation::GeluTanh => 1,
            MlpActivation::Relu => 2,
            MlpActivation::Silu => 3,
        };
        let (up, gate_bias, up_bias, out) = (self.up.at(), block.gate.map_or(0, |gate| gate.bias), block.up.bias, self.inner.at());
        // SAFETY: all are `rows` rows of as many numbers.
        unsafe { self.gpu.launch(Kernels::MODEL_GATE.of(self.stored), ((eights as usize).div_ceil(256), 1), 256, &[&gate, &up, &gate_bias, &up_bias, &activation, &inner, &eights, &out]) }
    }
}

/// Whether the kernels do what this configuration asks for.
fn fits(config: &ModelConfig, rows: usize, context: usize) -> bool {
    let plain = config.norm_places == NormPlaces::Pre && !config.parallel && config.qk_norm.is_none() && config.attention_cap.is_none();
    let near = (0..config.layers).all(|layer| config.window(layer).is_none_or(|window| window >= context));
    let widths = config.width.is_multiple_of(8) && config.mlp_width.is_multiple_of(8) && takes(config, rows / context.max(1));
    // As far as a grid and 32 bits reach.
    let sizes = context <= CONTEXT && 2 * config.layers <= 65_535 && rows * config.mlp_width / 8 <= u32::MAX as usize;
    plain && near && widths && sizes
}

/// One layer's weights as the kernels take them; `None` where one of them lies otherwise.
fn block(gpu: &Gpu, model: &Model, index: usize, layer: &Layer, stored: Stored) -> Option<Block> {
    let f32_at = |tensor: &Tensor| gpu.place(tensor).ok();
    let bias = |bias: Option<&Tensor>| bias.map_or(Some(0), f32_at);
    let map = |map: &Linear| {
        let ((weight, held), (outs, depth)) = (gpu.find(&map.weight).ok()?, map.weight.dims2().ok()?);
        (held == stored).then_some(Map { weight, bias: bias(map.bias.as_ref())?, outs, depth })
    };
    let norm = |norm: Option<&Norm>| {
        let norm = norm?;
        let centre = norm.kind == NormKind::Layer;
        Some(Scaled { weight: f32_at(&norm.weight)?, bias: bias(norm.bias.as_ref().filter(|_| centre))?, eps: norm.eps as f32, centre })
    };
    Some(Block {
        attn_norm: norm(layer.attn_norm.as_ref())?,
        query: map(&layer.query)?,
        key: map(&layer.key)?,
        value: map(&layer.value)?,
        output: map(&layer.output)?,
        mlp_norm: norm(layer.mlp_norm.as_ref())?,
        gate: match &layer.mlp.gate {
            Some(gate) => Some(map(gate)?),
            None => None,
        },
        up: map(&layer.mlp.up)?,
        down: map(&layer.mlp.down)?,
        turns: turns(gpu, model.rotaries().of(model.config().window(index).is_some())).ok()?,
    })
}

fn turns(gpu: &Gpu, rotary: Option<&Rotary>) -> Result<Turns> {
    let Some(rotary) = rotary else { return Ok(Turns::default()) };
    let (cos, sin, interleaved) = rotary.tables();
    Ok(Turns { tables: [gpu.place(cos)?, gpu.place(sin)?], pairs: cos.dim(1)?, interleaved })
}

/// Whether [`attend`] takes heads and contexts of this size.
fn takes(config: &ModelConfig, contexts: usize) -> bool {
    config.head_dim.is_multiple_of(4) && config.head_dim <= 128 && contexts * config.heads <= 65_535
}

/// Causal attention of `inputs`: queries, keys and values before they are turned, and their biases or 0.
///
/// # Safety
/// They are `contexts` times `context` rows of the configuration's heads, as is `out`, and the tables of `turns` have a row for each
/// place in a context.
#[allow(clippy::too_many_arguments)]
unsafe fn attend(gpu: &Gpu, config: &ModelConfig, inputs: [At; 6], turns: &Turns, contexts: usize, context: usize, out: At, stored: Stored) -> Result<()> {
    let arguments = AttendArguments {
        inputs,
        turns: turns.tables,
        pairs: turns.pairs as u32,
        interleaved: u32::from(turns.interleaved),
        tokens: context as u32,
        heads: config.heads as u32,
        groups: config.kv_heads as u32,
        h: config.head_dim as u32,
        scale: config.attention_scale as f32,
    };
    let attend = if config.head_dim <= 64 { Kernels::ATTEND_64 } else { Kernels::ATTEND_128 };
    gpu.launch(attend.of(stored), (context.div_ceil(QUERIES), contexts * config.heads), 128, &[&arguments, &out])
}

/// Whether [`attention`] is there for heads on `x`'s device; what candle differentiates has to stay with it.
pub(super) fn has_attention(config: &ModelConfig, x: &Tensor) -> bool {
    x.device().is_cuda() && !x.track_op() && takes(config, x.dim(0).unwrap_or(0))
}

/// Causal attention of whole contexts on a GPU, from queries `[B, T, H·h]`, keys and values `[B, T, K·h]` before they are turned, to
/// `[B, T, H·h]`, all f32.
///
/// # Errors
/// Faults of the device.
pub(super) fn attention(config: &ModelConfig, rotary: Option<&Rotary>, [q, k, v]: [&Tensor; 3]) -> Result<Tensor> {
    let (contexts, context, wide) = q.dims3()?;
    let gpu = Gpu::of(q.device())?;
    let out = Tensor::zeros((contexts, context, wide), DType::F32, q.device())?;
    let inputs = [gpu.place(q)?, gpu.place(k)?, gpu.place(v)?, 0, 0, 0];
    // SAFETY: the shapes are those of the configuration's heads, and the tables have a row for each place in its longest context. The
    // stream comes to this kernel before it gives any of the memory to others.
    unsafe { attend(&gpu, config, inputs, &turns(&gpu, rotary)?, contexts, context, gpu.place(&out)?, Stored::F32)? };
    Ok(out)
}
