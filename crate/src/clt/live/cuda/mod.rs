//! A CLT in training on a GPU: the same step as on the CPU ([`super::LiveClt`] is its twin), in one stream.
//!
//! In: batches on the device. Out: weights one Adam step further, and lines of figures that stay on the device until
//! somebody asks ([`CudaClt::reports`]). No step waits for the host; the host waits where the number of active features
//! is not known beforehand (ReLU, JumpReLU: for a layer's while the device encodes the next), and once a step where a batch is ranked
//! over all layers. [`encode`] keeps entries and sorts
//! them by feature ([`across`] where layers are ranked together), [`step`] decodes and learns, [`store`] brings weights from and
//! to the host. Weights in f32 or in bf16 with rounding at random, moments in f32 or eight bits: 12, 8, 6 or 4 bytes a weight.
//!
//! Where a layer's code is dense enough its products are cuBLAS' ([`path`]). Decoders may be tied ([`tied`]).

mod across;
mod auxiliary;
mod decode;
mod encode;
mod feed;
mod path;
mod rows;
mod skip;
mod step;
mod store;
mod tables;
mod tied;
mod training;

pub(crate) use super::room::{check, Wanted};
pub(crate) use training::CudaTraining;

use super::room::{self, LINE, RING};
use super::{Cut, GpuPath, LiveClt, StepOptions, StepReport};
use crate::activations::Batch;
use crate::clt::kernels::cuda::{Buffer, Gpu, Numbers, Sent, Stored};
use crate::clt::CltConfig;
use crate::error::Result;

/// Blocks that share the sum of a part of the gradient's norm.
const SHARES: usize = 128;

/// A matrix with Adam's moments.
struct Matrix {
    w: Numbers,
    moments: Moments,
    /// Length of a row.
    row: usize,
}

enum Moments {
    Full { m: Buffer<f32>, v: Buffer<f32> },
    Small { m: Buffer<u8>, v: Buffer<u8>, scales: Buffer<u8> },
}

/// A vector with Adam's moments and its gradient, all f32.
struct Vector {
    w: Buffer<f32>,
    m: Buffer<f32>,
    v: Buffer<f32>,
    gradient: Buffer<f32>,
}

/// One source layer.
struct Layer {
    encoder: Matrix,
    encoder_bias: Vector,
    log_threshold: Option<Vector>,
    decoder: Matrix,
    /// `[d, d]` (input, output), if the CLT has skip connections.
    skip: Option<Vector>,
    /// Tokens since each feature last fired.
    idle: Buffer<u32>,
    cut: Cut,
    density: f64,
    entries: Entries,
}

/// A layer's kept entries: by token, and by feature with what the backward pass finds for each.
struct Entries {
    features: Buffer<u32>,
    values: Buffer<f32>,
    tokens: Buffer<u32>,
    pre: Buffer<f32>,
    /// Runs of tokens, `[T]` each.
    starts: Buffer<u32>,
    counts: Buffer<u32>,
    cuts: Buffer<f32>,
    /// How many there are (unused places of TopK included).
    total: Buffer<u32>,
    /// What `total` was set to from here, 0 where the device counts.
    given: usize,
    /// `total` on its way here, where only counting tells.
    counted: Option<Sent>,
    offsets: Buffer<u32>,
    /// Places of entries, before they are sorted.
    list: Buffer<u32>,
    list_tokens: Buffer<u32>,
    list_values: Buffer<f32>,
    list_pre: Buffer<f32>,
    gradients: Buffer<f32>,
    /// Per feature.
    own: Buffer<f32>,
    common: Buffer<f32>,
    sparsity: Buffer<f32>,
    dead_term: Buffer<f32>,
    fired: Buffer<u32>,
}

/// What layers use one after the other.
struct Shared {
    /// Pre-activations, or products with all decoder rows, `[T, F]`.
    h: Buffer<f32>,
    /// Pre-activations of every other layer, where they are counted while those of the one before wait.
    second: Buffer<f32>,
    /// A dense code or its gradient, `[T, F]`; only where a layer is dense.
    code: Numbers,
    /// A dense gradient of a whole matrix; only where a layer is dense.
    gradient: Buffer<f32>,
    /// Products of entries with each part of their decoder rows, `[parts, entries]`: of all layers, or of one after the other.
    products: Buffer<f32>,
    /// Squared norm of each part of each decoder row, layer by layer `[parts, F]`, see [`CudaClt::squares_from`].
    squares: Buffer<f32>,
    /// Squared norms of gradient rows, see [`CudaClt::norms_from`].
    norms: Buffer<f32>,
    /// Sums of parts of them and of vectors.
    sums: Buffer<f32>,
    histogram: Buffer<u32>,
    ranking: Buffer<u32>,
    /// Entries above the hint, for a ranking to look at.
    found_features: Buffer<u32>,
    found_values: Buffer<f32>,
    found_counts: Buffer<u32>,
    spilled: Buffer<u32>,
    above: Buffer<u32>,
    equal: Buffer<u32>,
    /// Entries of each feature, `[L, F]`.
    lengths: Buffer<u32>,
    /// A skip connection as its product wants it, where that is bf16.
    skip: Numbers,
    /// Sums of reconstructions from dense layers and skip connections, `[T, L·d]`.
    base: Buffer<f32>,
    /// Gradients at the targets, `[G, T, L·d]`.
    slab: Numbers,
    errors: Buffer<f32>,
    /// Column sums of inputs `[L, d]`, of targets and of their squares.
    input_sums: Buffer<f32>,
    target_sums: Buffer<f32>,
    target_squares: Buffer<f32>,
    variances: Buffer<f32>,
    scales: Buffer<f32>,
    cut_sums: Buffer<f32>,
    /// Where groups of features end, and which entries of each token and layer belong to each.
    ends: Buffer<u32>,
    group_starts: Buffer<u32>,
    group_counts: Buffer<u32>,
    /// Where each layer's tokens were cut lately, `[L]`.
    hints: Buffer<f32>,
    lines: Buffer<f32>,
    clip: Buffer<f32>,
    go: Buffer<u32>,
    /// The first step whose numbers were not finite.
    broken: Buffer<u32>,
}

/// A CLT in training on a GPU.
pub(crate) struct CudaClt {
    pub config: CltConfig,
    /// Adam steps asked for.
    pub steps: u64,
    gpu: Gpu,
    stored: Stored,
    layers: Vec<Layer>,
    /// All decoder biases, `[L·d]`.
    decoder_bias: Vector,
    shared: Shared,
    tables: tables::Tables,
    aux: auxiliary::Aux,
    across: across::Across,
    path: GpuPath,
    /// Where nested groups of features end, the last at F.
    groups: Vec<usize>,
    /// Steps of which the figures were read, and tokens of each step since.
    told: u64,
    tokens: Vec<usize>,
}

/// A batch on the device, `[L, T, d]` each.
pub(crate) struct DeviceBatch {
    pub inputs: Numbers,
    pub targets: Numbers,
    pub tokens: usize,
}

impl DeviceBatch {
    pub fn new(gpu: &Gpu, stored: Stored) -> Result<Self> {
        Ok(DeviceBatch { inputs: Numbers::zeros(gpu, stored, 0)?, targets: Numbers::zeros(gpu, stored, 0)?, tokens: 0 })
    }

    /// Copies a batch from the host.
    pub fn write(&mut self, batch: &Batch) -> Result<()> {
        for (into, from) in [(&mut self.inputs, &batch.inputs), (&mut self.targets, &batch.targets)] {
            into.fit(from.iter().map(Vec::len).sum())?;
            let mut at = 0;
            for values in from {
                into.write_at(at, values)?;
                at += values.len();
            }
        }
        self.tokens = batch.tokens;
        Ok(())
    }
}

impl CudaClt {
    /// Bytes on the device for weights, moments and a step of `tokens`.
    pub fn bytes(config: &CltConfig, stored: Stored, eight: bool, tokens: usize, wanted: Wanted) -> u64 {
        room::bytes(config, stored.bytes() as u64, eight, tokens, wanted)
    }

    /// The figures of all steps since the last call, oldest first, and the first step whose numbers were not finite;
    /// waits for them. From that step on nothing was changed, and the next one takes its place.
    pub fn reports(&mut self) -> Result<(Vec<StepReport>, Option<u64>)> {
        let broken = Some(self.shared.broken.read()?[0]).filter(|&step| step != u32::MAX).map(u64::from);
        let lines = self.shared.lines.read()?;
        let l = self.config.layers;
        let mut reports = Vec::new();
        let whole = broken.map_or(self.steps, |step| step - 1);
        for (step, &tokens) in (self.told..whole).zip(&self.tokens) {
            let mut report = StepReport::default();
            for (index, layer) in self.layers.iter_mut().enumerate() {
                let at = ((step % RING) as usize * l + index) * LINE;
                let [error, variance, sparsity, dead_term, active, dead, cut, square, aux]: [f32; LINE] = std::array::from_fn(|i| lines[at + i]);
                let per_token = |sum: f32| f64::from(sum) / tokens as f64;
                report.layers.push((per_token(error), per_token(variance)));
                report.sparsity += f64::from(sparsity);
                report.dead_term += f64::from(dead_term);
                report.aux += f64::from(aux);
                report.l0.push(per_token(active));
                report.dead += dead as usize;
                layer.density = per_token(active) / self.config.features as f64;
                if self.config.activation.ranks_batch() {
                    layer.cut.see(cut);
                }
                if index == 0 {
                    report.grad_norm = f64::from(square).sqrt();
                }
            }
            reports.push(report);
        }
        if broken.is_some() {
            self.shared.broken.write(&[u32::MAX])?;
        }
        self.steps = whole;
        self.told = whole;
        self.tokens.clear();
        Ok((reports, broken))
    }

    /// One step. Its figures are in the next [`CudaClt::reports`], which must come within 64 steps.
    ///
    /// # Errors
    /// `OutOfMemory`, and faults of the device.
    pub fn step(&mut self, batch: &DeviceBatch, options: &StepOptions) -> Result<()> {
        assert!(self.steps - self.told < RING, "figures are read in time");
        if self.groups != options.groups {
            self.groups.clone_from(&options.groups);
            let ends: Vec<u32> = self.groups.iter().map(|&end| end as u32).collect();
            self.shared.ends.fit(ends.len())?;
            self.shared.ends.write(&ends)?;
        }
        self.aux.k = if options.aux > 0.0 { options.aux_k } else { 0 };
        self.fit(batch.tokens)?;
        for hinted in [true, false] {
            self.begin()?;
            self.begin_aux(batch.tokens, options)?;
            self.encode(batch, options, hinted)?;
            self.list(batch.tokens)?;
            self.decode(batch, options)?;
            if self.is_whole()? {
                break;
            }
        }
        self.learn(batch, options)?;
        self.steps += 1;
        self.tokens.push(batch.tokens);
        Ok(())
    }

    /// Whether figures should be read before the next step.
    pub fn is_full(&self) -> bool {
        self.steps - self.told >= RING / 2
    }

    /// Lets `path` decide between dense products and lists.
    pub fn take(&mut self, path: GpuPath) {
        self.path = path;
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }
}
