//! Backward and update: gradients, Adam, figures.

use super::path::Side;
use super::{CudaClt, DeviceBatch, Matrix, Moments, SHARES};
use crate::clt::kernels::cuda::{Argument, At, Operand, Product};
use crate::clt::kernels::AdamStep;
use crate::clt::live::StepOptions;
use crate::clt::Tied;
use crate::error::Result;
use candle_core::cuda_backend::cudarc::driver::DeviceRepr;

/// `Adam`, `Told`, `Terms`, `Penalty` and a matrix's moments as `learn.cu` has them.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Told {
    numbers: [f32; 6],
    key: u32,
    clip: At,
    go: At,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Terms {
    pub offsets: At,
    pub tokens: At,
    pub coefficients: At,
    pub layers: At,
    pub slab: At,
    pub stride: u32,
    pub at: u32,
    pub count: u32,
    pub groups: u32,
    pub ends: At,
    pub apart: u64,
    pub again: u32,
    pub unused: u32,
    pub own: At,
    pub common: At,
    pub sums: At,
    pub dense: At,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Penalty {
    sparsity: f32,
    scale: f32,
    dead: f32,
    bandwidth: f32,
    dead_window: u32,
    tokens: u32,
    features: u32,
    d: u32,
    cuts: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Full([At; 2]);

#[repr(C)]
#[derive(Clone, Copy)]
struct Small([At; 3]);

// SAFETY: plain numbers in C's layout, as the kernels declare them.
unsafe impl DeviceRepr for Told {}
unsafe impl DeviceRepr for Terms {}
unsafe impl DeviceRepr for Penalty {}
unsafe impl DeviceRepr for Full {}
unsafe impl DeviceRepr for Small {}

/// Rows that a pass goes over, what they meet, and where products, their own squared norms and those of their gradients go.
pub(super) struct Rows<'a> {
    pub matrix: &'a Matrix,
    pub parts: usize,
    pub terms: Terms,
    pub products: At,
    pub squares: At,
    pub norms: At,
}

/// What a pass over rows does.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Pass {
    Products,
    Measure,
    Spend,
    /// Products and update, each row read once.
    Meet,
}

impl Told {
    fn new(adam: &AdamStep, clip: At, go: At) -> Self {
        Told { numbers: [adam.beta1, adam.beta2, adam.eps, adam.rate, adam.root, adam.keep], key: adam.key, clip, go }
    }
}

impl CudaClt {
    /// `[T, F]` in `shared.code`, as a factor.
    pub(super) fn code(&self, turned: bool) -> Operand {
        Operand { at: self.shared.code.at(), stored: self.stored, stride: self.config.features, turned }
    }

    /// Entries as a dense matrix, in `shared.code`.
    pub(super) fn scatter(&mut self, layer: usize, tokens: usize, coefficients: At) -> Result<()> {
        self.shared.code.fit(tokens * self.config.features)?;
        self.shared.code.clear()?;
        let e = &self.layers[layer].entries;
        let name = format!("scatter_{}", self.stored.name());
        // SAFETY: lists hold tokens below T and features below F.
        unsafe { self.gpu.launch(&name, (self.config.features, 1), 64, &[&e.offsets.at(), &e.list_tokens.at(), &coefficients, &(self.config.features as u32), &self.shared.code.at()]) }
    }

    /// Backward and update.
    pub(super) fn learn(&mut self, batch: &DeviceBatch, options: &StepOptions) -> Result<()> {
        let l = self.config.layers;
        let adam = AdamStep::new(options.lr, options.betas, options.eps, options.weight_decay, self.steps + 1);
        let told = Told::new(&adam, if options.clip.is_some() { self.shared.clip.at() } else { 0 }, self.shared.go.at());
        self.terms(batch, options)?;
        // Rows that are read once a step; with a limit, or shared by several sources, they are read once more before.
        let meets = options.clip.is_none() && self.config.tied != Tied::PerTarget;
        for layer in 0..if meets { 0 } else { l } {
            self.decoder_pass(layer, batch, Pass::Products, &told)?;
            self.entry_gradients(layer, batch, options)?;
        }
        if let Some(most) = options.clip {
            for layer in 0..l {
                self.decoder_pass(layer, batch, Pass::Measure, &told)?;
                self.encoder_pass(layer, batch, Pass::Measure, &told)?;
            }
            self.norm()?;
            let shared = &self.shared;
            // SAFETY: single numbers.
            unsafe { self.gpu.launch("clip_factor", (1, 1), 1, &[&self.square(), &(most as f32), &shared.clip.at(), &shared.go.at(), &shared.broken.at(), &(options.step as u32)])? };
        }
        for layer in 0..l {
            if meets {
                self.decoder_pass(layer, batch, Pass::Meet, &told)?;
                self.entry_gradients(layer, batch, options)?;
            } else {
                self.decoder_pass(layer, batch, Pass::Spend, &told)?;
            }
            self.encoder_pass(layer, batch, Pass::Spend, &told)?;
        }
        if options.clip.is_none() {
            self.norm()?;
        }
        let (count, longest) = self.count_vectors();
        let (f, tokens) = (self.config.features as u32, batch.tokens as u32);
        // SAFETY: the tables say where each lies; a row of blocks a vector or layer.
        unsafe {
            self.gpu.launch("adam_vectors", (longest.div_ceil(256), count), 256, &[&self.tables.vectors.at(), &told])?;
            self.gpu.launch("report_layers", (1, l), 1024, &[&self.tables.layers.at(), &f, &tokens, &options.dead_window, &self.shared.go.at(), &self.line(0)])
        }
    }

    /// Where the gradient's squared norm goes.
    fn square(&self) -> At {
        self.line(0) + 7 * 4
    }

    /// The gradient's squared norm, from what the passes left for each row and from the vectors.
    fn norm(&self) -> Result<()> {
        let (parts, sums) = (self.count_vectors().0 + 1, self.shared.sums.at());
        // SAFETY: the table names the parts; `sums` has room for the shares of each.
        unsafe {
            self.gpu.launch("sum_parts", (SHARES, parts), 256, &[&self.tables.parts.at(), &sums])?;
            self.gpu.launch("set_total", (1, 1), 1024, &[&sums, &((SHARES * parts) as u32), &self.square()])
        }
    }

    fn penalty(&self, batch: &DeviceBatch, options: &StepOptions) -> Penalty {
        let per_token = |factor: f64| (factor / batch.tokens as f64) as f32;
        Penalty {
            sparsity: per_token(options.sparsity),
            scale: options.tanh_scale as f32,
            dead: per_token(options.dead),
            bandwidth: 2.0 * self.reach(),
            dead_window: options.dead_window,
            tokens: batch.tokens as u32,
            features: self.config.features as u32,
            d: self.config.width as u32,
            cuts: u32::from(self.config.activation.is_ranked()),
        }
    }

    /// What the sparsity and dead-feature terms say of each feature.
    fn terms(&self, batch: &DeviceBatch, options: &StepOptions) -> Result<()> {
        let (l, table, cuts, penalty) = (self.config.layers, self.tables.layers.at(), self.shared.cut_sums.at(), self.penalty(batch, options));
        // SAFETY: T cuts and one sum a layer; one warp a feature, per-feature buffers have F numbers, per-entry ones as many as
        // there are entries.
        unsafe {
            if options.dead > 0.0 {
                self.gpu.launch("sum_cuts", (1, l), 1024, &[&table, &(batch.tokens as u32), &cuts])?;
            }
            self.gpu.launch(&format!("feature_terms_{}", self.stored.name()), (self.config.features.div_ceil(8), l), 256, &[&penalty, &table, &cuts])
        }
    }

    /// From gradients of activations to those of pre-activations, biases and thresholds.
    fn entry_gradients(&self, index: usize, batch: &DeviceBatch, options: &StepOptions) -> Result<()> {
        let (shared, penalty) = (&self.shared, self.penalty(batch, options));
        // Where products were dense there is one part only.
        let tiles = match self.config.tied {
            _ if self.is_dense(index, batch.tokens, Side::Backward) => 1,
            Tied::PerTarget => self.config.slots(index),
            _ => self.parts(index),
        } as u32;
        let room = self.room() as u32;
        let arguments: [&dyn Argument; 6] = [&penalty, &self.tables.layers.at(), &(index as u32), &shared.products.at(), &room, &tiles];
        // SAFETY: as in `terms`; products have `room` numbers for each part.
        unsafe { self.gpu.launch("entry_gradients", (self.config.features.div_ceil(8), 1), 256, &arguments) }
    }

    /// Numbers that `shared.products` has for each part.
    pub(super) fn room(&self) -> usize {
        self.shared.products.len() / self.config.slots(0)
    }

    /// `Σ_p coefficients · met` of all features of a layer, in `shared.gradient`; `met` is `[T, columns]`.
    fn dense_gradient(&mut self, index: usize, tokens: usize, coefficients: At, met: Operand, columns: usize) -> Result<()> {
        let f = self.config.features;
        self.scatter(index, tokens, coefficients)?;
        // As large as the first layer's decoder at once: a buffer that grows would have to be given back.
        self.shared.gradient.fit(f * self.layers[0].decoder.row)?;
        let product = Product { rows: f, depth: tokens, columns, left: self.code(true), right: met, out: self.shared.gradient.at(), stride: columns, add: false };
        // SAFETY: the code is [T, F], `gradient` has room for the largest decoder.
        unsafe { self.gpu.product(&product) }
    }

    /// Gradients at the targets, for decoder rows to meet.
    pub(super) fn at_targets(&self, tokens: usize) -> Terms {
        let stride = self.config.layers * self.config.width;
        Terms { slab: self.shared.slab.at(), stride: stride as u32, groups: self.groups.len() as u32, ends: self.shared.ends.at(), apart: (self.rows(tokens) * stride) as u64, ..Terms::default() }
    }

    /// A pass over the decoder rows of one layer.
    fn decoder_pass(&mut self, index: usize, batch: &DeviceBatch, pass: Pass, told: &Told) -> Result<()> {
        if self.config.tied == Tied::PerTarget {
            return self.shared_pass(index, batch.tokens, pass, told);
        }
        let (l, d, f, tokens) = (self.config.layers, self.config.width, self.config.features, batch.tokens);
        let stride = l * d;
        let dense = self.is_dense(index, tokens, Side::Backward);
        let row = self.layers[index].decoder.row;
        let slab = Operand { at: self.shared.slab.from(index * d), stored: self.stored, stride, turned: false };
        if dense && matches!(pass, Pass::Products | Pass::Meet) {
            let decoder = &self.layers[index].decoder;
            let product = Product { rows: tokens, depth: row, columns: f, left: slab, right: decoder.factor(0, true), out: self.shared.h.at(), stride: f, add: false };
            let e = &self.layers[index].entries;
            // SAFETY: gradients at the targets from l·d on are as many columns as a decoder row; `h` has room for [T, F].
            unsafe {
                self.gpu.product(&product)?;
                self.gpu.launch("gather", (f, 1), 64, &[&e.offsets.at(), &e.list_tokens.at(), &self.shared.h.at(), &(f as u32), &self.shared.products.at()])?;
            }
            if pass == Pass::Products {
                return Ok(());
            }
        }
        if dense {
            self.dense_gradient(index, tokens, self.layers[index].entries.list_values.at(), slab, row)?;
        }
        let (layer, shared) = (&self.layers[index], &self.shared);
        let e = &layer.entries;
        let terms = Terms {
            offsets: e.offsets.at(),
            tokens: e.list_tokens.at(),
            coefficients: e.list_values.at(),
            at: (index * d) as u32,
            own: e.own.at(),
            dense: if dense { shared.gradient.at() } else { 0 },
            ..self.at_targets(tokens)
        };
        let pass = if dense && pass == Pass::Meet { Pass::Spend } else { pass };
        let rows = Rows { matrix: &layer.decoder, parts: row / d, terms, products: shared.products.at(), squares: shared.squares.from(self.squares_from(index)), norms: shared.norms.from(self.norms_from(index)) };
        self.pass(&rows, pass, told)
    }

    /// A pass over the encoder rows of one layer.
    fn encoder_pass(&mut self, index: usize, batch: &DeviceBatch, pass: Pass, told: &Told) -> Result<()> {
        let (d, f, tokens) = (self.config.width, self.config.features, batch.tokens);
        let dense = self.is_dense(index, tokens, Side::Backward);
        if dense {
            let x = Operand { at: batch.inputs.from(index * tokens * d), stored: self.stored, stride: d, turned: false };
            self.dense_gradient(index, tokens, self.layers[index].entries.gradients.at(), x, d)?;
        }
        let (layer, shared) = (&self.layers[index], &self.shared);
        let e = &layer.entries;
        let terms = Terms {
            offsets: e.offsets.at(),
            tokens: e.list_tokens.at(),
            coefficients: e.gradients.at(),
            slab: batch.inputs.from(index * tokens * d),
            again: if self.aux.k > 0 { tokens as u32 } else { 0 },
            stride: d as u32,
            common: e.common.at(),
            sums: shared.input_sums.from(index * d),
            dense: if dense { shared.gradient.at() } else { 0 },
            ..Terms::default()
        };
        let norms = shared.norms.from(self.norms_from(index) + self.parts(index) * f);
        self.pass(&Rows { matrix: &layer.encoder, parts: 1, terms, products: 0, squares: 0, norms }, pass, told)
    }

    /// `feature_pass` over rows, of which each part of d columns is a block's.
    pub(super) fn pass(&self, rows: &Rows<'_>, pass: Pass, told: &Told) -> Result<()> {
        let (matrix, stored, room) = (rows.matrix, self.stored.name(), self.room() as u32);
        let (kind, full, small) = match &matrix.moments {
            Moments::Full { m, v } => ("full", Some(Full([m.at(), v.at()])), None),
            Moments::Small { m, v, scales } => ("small", None, Some(Small([m.at(), v.at(), scales.at()]))),
        };
        let name = match pass {
            Pass::Products => format!("products_{stored}"),
            Pass::Measure => format!("measure_{stored}"),
            Pass::Spend => format!("spend_{stored}_{kind}"),
            Pass::Meet => format!("meet_{stored}_{kind}"),
        };
        let none = Full([0; 2]);
        let moments: &dyn Argument = match (&full, &small, pass) {
            (_, _, Pass::Products | Pass::Measure) => &none,
            (Some(full), ..) => full,
            (_, Some(small), _) => small,
            _ => &none,
        };
        let (at, row, d) = (matrix.w.at(), matrix.row as u32, self.config.width as u32);
        let arguments: [&dyn Argument; 10] = [&at, moments, &row, &d, &rows.terms, told, &rows.products, &room, &rows.squares, &rows.norms];
        // SAFETY: a block a row and part; the lists' tokens are below T, and every row has its moments.
        unsafe { self.gpu.launch(&name, (self.config.features, rows.parts), threads(self.config.width), &arguments) }
    }
}

/// Threads of a block of which each has eight of `d` columns: whole warps.
pub(super) fn threads(d: usize) -> usize {
    d.div_ceil(8).next_multiple_of(32)
}
