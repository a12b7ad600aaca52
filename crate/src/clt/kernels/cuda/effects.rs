//! Edges on a GPU: dot products of carried directions with the vectors that write to the stream, kept on the device
//! until a block's sums are complete, then compressed there.
//!
//! Decoder rows are read where they lie: in a decoder on the device, or, where the decoders are left in their files,
//! in a copy of the active features' rows. Kernels: `edges.cu`; their twin on the CPU is in the graph's columns.

use super::{At, Buffer, Gpu, Kernel};
use crate::clt::{Clt, LayerCode, SparseCode};
use crate::device::format_bytes;
use crate::error::{Error, ErrorKind, Result};
use candle_core::cuda_backend::cudarc::driver::{DeviceRepr, ValidAsZeroBits};
use candle_core::Tensor;
use std::ops::Range;

/// As in `edges.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Writer {
    row: At,
    scale: f32,
    node: u32,
}
// SAFETY: plain numbers, as the kernel has them.
unsafe impl DeviceRepr for Writer {}
// SAFETY: zeros are a writer.
unsafe impl ValidAsZeroBits for Writer {}

/// As in `edges.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Tile {
    position: u32,
    first: u32,
    count: u32,
}
// SAFETY: plain numbers, as the kernel has them.
unsafe impl DeviceRepr for Tile {}
// SAFETY: zeros are a tile.
unsafe impl ValidAsZeroBits for Tile {}

/// Writers of a tile, and targets: `SIDE` in `edges.cu`.
const SIDE: usize = 64;
/// Columns that are compressed together: `SPAN` in `edges.cu`.
const SPAN: usize = 1024;
/// Numbers of decoder rows that are copied to the device at a time.
const STAGED: usize = 16 << 20;

/// One layer's decoder rows on the device.
enum Rows {
    /// All of them, in a tensor that the CLT keeps.
    Whole(At),
    /// Those of the features that are active, which ascend.
    Some(Vec<u32>, Buffer<f32>),
}

impl Rows {
    /// Where the row of `feature` begins.
    fn at(&self, feature: u32, row: usize) -> At {
        match self {
            Rows::Whole(at) => at + (4 * feature as usize * row) as u64,
            Rows::Some(features, buffer) => buffer.from(features.partition_point(|&f| f < feature) * row),
        }
    }
}

/// Dense vectors that write at one site, one a position.
pub(crate) struct DenseRows {
    /// MLP output, or L for the embeddings.
    pub site: usize,
    /// `[T, d]`.
    pub rows: Tensor,
    /// Node of the one at position 0; the others follow.
    pub node: usize,
}

/// What writes to each site of a prompt, and the sums of the block of targets at hand.
pub(crate) struct Effects {
    gpu: Gpu,
    width: usize,
    /// Nodes that are features, and all up to the logits.
    features: usize,
    nodes: usize,
    writers: Buffer<Writer>,
    tiles: Buffer<Tile>,
    /// Tiles of each site.
    sites: Vec<Range<usize>>,
    /// Whose memory writers point to.
    _held: (Clt, Vec<Rows>, Vec<DenseRows>),
    spans: Buffer<u32>,
    sums: Buffer<f32>,
    counts: Buffer<u32>,
    begins: Buffer<u32>,
    sources: Buffer<u32>,
    weights: Buffer<f32>,
    /// Of the block at hand: targets, and features that have a column.
    targets: usize,
    kept: usize,
}

impl Effects {
    /// Of the active features of `code`, whose numbers begin at `first(layer, position)`, and of `dense` vectors.
    ///
    /// # Errors
    /// `OutOfMemory` where the active features' rows do not fit on the device, before they are copied.
    pub fn new(clt: &Clt, code: &SparseCode, first: impl Fn(usize, usize) -> usize, dense: Vec<DenseRows>) -> Result<Self> {
        let gpu = Gpu::of(clt.device())?;
        let (config, tokens) = (clt.config(), code.tokens());
        let (layers, width) = (config.layers, config.width);
        let row = |s: usize| config.slots(s) * width;
        let decoders = decoders(clt, code, &gpu)?;
        let places = dense.iter().map(|dense| Ok((dense.site, gpu.place(&dense.rows)?, dense.node))).collect::<Result<Vec<_>>>()?;
        let (mut writers, mut tiles, mut sites) = (Vec::new(), Vec::new(), Vec::new());
        for site in 0..=layers {
            let start = tiles.len();
            for p in 0..tokens {
                let begin = writers.len();
                if site < layers {
                    for s in config.first_source(site)..=site {
                        let (features, values) = code.layers[s].token(p);
                        let slot = (4 * (site - s) * width) as u64;
                        writers.extend(features.iter().zip(values).zip(first(s, p)..).map(|((&f, &scale), node)| Writer { row: decoders[s].at(f, row(s)) + slot, scale, node: node as u32 }));
                    }
                }
                let here = places.iter().filter(|(at, ..)| *at == site);
                writers.extend(here.map(|(_, at, node)| Writer { row: at + (4 * p * width) as u64, scale: 1.0, node: (node + p) as u32 }));
                let parts = (begin..writers.len()).step_by(SIDE);
                tiles.extend(parts.map(|from| Tile { position: p as u32, first: from as u32, count: SIDE.min(writers.len() - from) as u32 }));
            }
            sites.push(start..tiles.len());
        }
        let features = first(layers - 1, tokens);
        let nodes = dense.iter().map(|dense| dense.node + tokens).max().unwrap_or(features);
        Ok(Effects {
            writers: gpu.copy(&writers)?,
            tiles: gpu.copy(&tiles)?,
            spans: gpu.zeros(0)?,
            sums: gpu.zeros(0)?,
            counts: gpu.zeros(0)?,
            begins: gpu.zeros(0)?,
            sources: gpu.zeros(0)?,
            weights: gpu.zeros(0)?,
            _held: (clt.clone(), decoders, dense),
            sites,
            features,
            nodes,
            width,
            gpu,
            targets: 0,
            kept: 0,
        })
    }

    /// Begins a block of `targets` that only the first `kept` features reach.
    pub fn begin(&mut self, targets: usize, kept: usize) -> Result<()> {
        (self.targets, self.kept) = (targets, kept);
        self.sums.fit(targets * self.columns())?;
        self.sums.clear_first(targets * self.columns())
    }

    fn columns(&self) -> usize {
        self.kept + self.nodes - self.features
    }

    /// Adds the effects at `site` on targets that have the rows of `directions` for their `spans` of positions, one
    /// target's after the other's.
    pub fn add(&mut self, site: usize, directions: &Tensor, spans: &[Range<usize>]) -> Result<()> {
        let count = spans.len();
        let mut words = vec![0; 3 * count];
        let mut next = 0;
        for (b, span) in spans.iter().enumerate() {
            (words[b], words[count + b], words[2 * count + b]) = (next, span.start as u32, span.end as u32);
            next += span.len() as u32;
        }
        self.spans.fit(words.len())?;
        self.spans.write(&words)?;
        let directions = directions.contiguous()?;
        let (tiles, at) = (self.tiles.from(self.sites[site].start), self.gpu.place(&directions)?);
        let [firsts, starts, ends] = [0, 1, 2].map(|i| self.spans.from(i * count));
        let (d, b, stride, kept, left_out) = (self.width as u32, count as u32, self.columns() as u64, self.kept as u32, (self.features - self.kept) as u32);
        // SAFETY: tiles name writers, whose rows have d numbers and outlive this; spans' rows are within `directions`, which
        // the stream needs no longer than this kernel; every node has its column.
        unsafe {
            self.gpu.launch(Kernel::EDGE_PRODUCTS, (self.sites[site].len(), count.div_ceil(SIDE)), 256, &[&tiles, &self.writers.at(), &at, &d, &firsts, &starts, &ends, &b, &self.sums.at(), &stride, &kept, &left_out])
        }
    }

    /// The block's edges: where each target's end, their nodes and weights; waits for them.
    pub fn edges(&mut self) -> Result<(Vec<usize>, Vec<u32>, Vec<f32>)> {
        let (columns, targets) = (self.columns(), self.targets);
        let parts = columns.div_ceil(SPAN);
        self.counts.fit(parts * targets)?;
        self.begins.fit(parts * targets + 1)?;
        let (sums, stride, width, kept, left_out) = (self.sums.at(), columns as u64, columns as u32, self.kept as u32, (self.features - self.kept) as u32);
        // SAFETY: sums are [targets, columns], counts [targets, parts] and `begins` has one more.
        unsafe {
            self.gpu.launch(Kernel::COUNT_EDGES, (parts, targets), 256, &[&sums, &stride, &width, &self.counts.at()])?;
            self.gpu.launch(Kernel::SCAN_EDGES, (1, 1), 1024, &[&self.counts.at(), &((parts * targets) as u32), &self.begins.at()])?;
        }
        let begins = self.begins.read_first(parts * targets + 1)?;
        let total = begins[parts * targets] as usize;
        self.sources.fit(total)?;
        self.weights.fit(total)?;
        // SAFETY: as above; as many edges as were counted have room.
        unsafe { self.gpu.launch(Kernel::WRITE_EDGES, (parts, targets), 256, &[&sums, &stride, &width, &kept, &left_out, &self.begins.at(), &self.sources.at(), &self.weights.at()])? };
        let ends = (1..=targets).map(|b| begins[b * parts] as usize).collect();
        Ok((ends, self.sources.read_first(total)?, self.weights.read_first(total)?))
    }
}

/// Every layer's decoder rows, those that are left in files copied where features are active.
fn decoders(clt: &Clt, code: &SparseCode, gpu: &Gpu) -> Result<Vec<Rows>> {
    let row = |s: usize| clt.config().slots(s) * clt.config().width;
    let active: Vec<Vec<u32>> = (0..clt.layers()).map(|s| if clt.decoder_store(s).is_held_on(clt.device()) { Vec::new() } else { LayerCode::distinct(&code.layers[s]) }).collect();
    let (need, free) = (active.iter().enumerate().map(|(s, features)| 4 * (features.len() * row(s)) as u64).sum::<u64>(), gpu.memory()?.0);
    if need > free {
        return Err(Error::expected(ErrorKind::OutOfMemory, "attribution on CUDA: decoder rows of the active features", format_bytes(need), format_args!("at most the {} that are free on the device", format_bytes(free)))
            .help("take a shorter prompt, or load model and CLT on the CPU"));
    }
    let rows = |(s, features): (usize, Vec<u32>)| {
        let (store, row) = (clt.decoder_store(s), row(s));
        if store.is_held_on(clt.device()) {
            return Ok(Rows::Whole(gpu.place(store.tensor()?)?));
        }
        let mut buffer = gpu.zeros(features.len() * row)?;
        store.bring(&features)?;
        let lent = store.lend()?;
        let weights = lent.values()?;
        let (together, mut staged) = ((STAGED / row).max(1), Vec::new());
        for (i, some) in features.chunks(together).enumerate() {
            staged.clear();
            some.iter().for_each(|&feature| staged.extend_from_slice(&weights[feature as usize * row..][..row]));
            buffer.write_at(i * together * row, &staged)?;
        }
        Ok(Rows::Some(features, buffer))
    };
    active.into_iter().enumerate().map(rows).collect()
}
