//! Forward, second half, and all that follows: reconstructions, gradients, update, figures.

use super::path::Side;
use super::{CudaClt, DeviceBatch, Matrix, Moments, Vector};
use crate::clt::kernels::cuda::{Argument, At, Operand, Product};
use crate::clt::kernels::AdamStep;
use crate::clt::live::StepOptions;
use crate::clt::Activation;
use crate::error::Result;
use candle_core::cuda_backend::cudarc::driver::DeviceRepr;

/// `Adam`, `Told`, `Terms`, `Penalty` and a matrix's moments as `learn.cu` has them.
#[repr(C)]
#[derive(Clone, Copy)]
struct Told {
    numbers: [f32; 6],
    key: u32,
    clip: At,
    go: At,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Terms {
    offsets: At,
    tokens: At,
    coefficients: At,
    slab: At,
    stride: u32,
    at: u32,
    own: At,
    common: At,
    sums: At,
    dense: At,
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
    tiles: u32,
    features: u32,
    d: u32,
    threshold: u32,
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

/// What a pass over rows does.
#[derive(Clone, Copy, PartialEq)]
enum Pass {
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
    /// Reconstructs every target and turns what is wrong into the gradient there.
    pub(super) fn decode(&mut self, batch: &DeviceBatch, options: &StepOptions) -> Result<()> {
        let (l, d, f, tokens) = (self.config.layers, self.config.width, self.config.features, batch.tokens);
        let stride = l * d;
        let dense: Vec<bool> = (0..l).map(|layer| self.is_dense(layer, tokens, Side::Forward)).collect();
        let any = self.config.skip || dense.contains(&true);
        if any {
            self.shared.base.fit(tokens * stride)?;
            self.shared.base.clear()?;
        }
        for layer in 0..l {
            self.add_skip(layer, batch)?;
        }
        for layer in (0..l).filter(|&layer| dense[layer]) {
            self.scatter(layer, tokens, self.layers[layer].entries.list_values.at())?;
            let decoder = &self.layers[layer].decoder;
            let product = Product { rows: tokens, depth: f, columns: decoder.row, left: self.code(false), right: decoder.factor(0, false), out: self.shared.base.from(layer * d), stride, add: true };
            // SAFETY: the code is [T, F], decoder rows write to columns from l·d on, of L·d.
            unsafe { self.gpu.product(&product)? };
        }
        let sources: Vec<u64> = self
            .layers
            .iter()
            .enumerate()
            .flat_map(|(index, layer)| {
                let e = &layer.entries;
                let targets = if dense[index] { 0 } else { self.config.slots(index) as u64 };
                let pair = |low: u64, high: u64| low | (high << 32);
                [e.features.at(), e.values.at(), e.starts.at(), e.counts.at(), layer.decoder.w.at(), pair(layer.decoder.row as u64, index as u64), pair(targets, 0)]
            })
            .collect();
        self.shared.sources.fit(sources.len())?;
        self.shared.sources.write(&sources)?;
        let (shared, gpu) = (&self.shared, &self.gpu);
        let (t32, d32, l32) = (tokens as u32, d as u32, l as u32);
        let base = if any { shared.base.at() } else { 0 };
        let (variances, scales) = (shared.variances.at(), shared.scales.at());
        let name = |kernel: &str| format!("{kernel}_{}", self.stored.name());
        // SAFETY: all of these are [T, L·d], [L, T, d], [L·d] or [L], as their kernels read them.
        unsafe {
            gpu.launch(&name("column_sums"), (d.div_ceil(32), l), 256, &[&batch.targets.at(), &t32, &d32, &d32, &shared.target_sums.at(), &shared.target_squares.at()])?;
            gpu.launch("target_scales", (l, 1), 256, &[&shared.target_sums.at(), &shared.target_squares.at(), &t32, &d32, &u32::from(options.fvu), &variances, &scales])?;
            let arguments: [&dyn Argument; 11] =
                [&shared.sources.at(), &l32, &base, &self.decoder_bias.w.at(), &batch.targets.at(), &t32, &d32, &(stride as u32), &scales, &shared.slab.at(), &shared.errors.at()];
            gpu.launch(&name("decode"), (tokens, l), threads(d), &arguments)?;
            gpu.launch("report_errors", (l, 1), 256, &[&shared.errors.at(), &variances, &t32, &self.line(0), &shared.go.at(), &shared.broken.at(), &(options.step as u32)])?;
            gpu.launch(&name("column_sums"), (stride.div_ceil(32), 1), 256, &[&shared.slab.at(), &t32, &(stride as u32), &(stride as u32), &self.decoder_bias.gradient.at(), &0u64])?;
            if options.dead > 0.0 {
                gpu.launch(&name("column_sums"), (d.div_ceil(32), l), 256, &[&batch.inputs.at(), &t32, &d32, &d32, &shared.input_sums.at(), &0u64])?;
            }
        }
        Ok(())
    }

    /// `[T, F]` in `shared.code`, as a factor.
    fn code(&self, turned: bool) -> Operand {
        Operand { at: self.shared.code.at(), stored: self.stored, stride: self.config.features, turned }
    }

    /// Entries as a dense matrix, in `shared.code`.
    fn scatter(&mut self, layer: usize, tokens: usize, coefficients: At) -> Result<()> {
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
        let square = self.line(0) + 7 * 4;
        (0..l).try_for_each(|layer| self.skip_gradient(layer, batch))?;
        let sum = |clt: &Self, values: At, n: usize, kernel: &str| unsafe { clt.gpu.launch(kernel, (1, 1), 1024, &[&values, &(n as u32), &square]) };
        if let Some(most) = options.clip {
            for layer in 0..l {
                self.terms(layer, batch, options)?;
                self.decoder_pass(layer, batch, Pass::Products, &told)?;
                self.entry_gradients(layer, batch, options)?;
                self.decoder_pass(layer, batch, Pass::Measure, &told)?;
                self.encoder_pass(layer, batch, Pass::Measure, &told)?;
                self.measure_vectors(layer, &sum)?;
            }
            sum(self, self.decoder_bias.gradient.at(), self.decoder_bias.gradient.len(), "add_squares")?;
            let shared = &self.shared;
            // SAFETY: single numbers.
            unsafe { self.gpu.launch("clip_factor", (1, 1), 1, &[&square, &(most as f32), &shared.clip.at(), &shared.go.at(), &shared.broken.at(), &(options.step as u32)])? };
        }
        for layer in 0..l {
            if options.clip.is_some() {
                self.decoder_pass(layer, batch, Pass::Spend, &told)?;
            } else {
                self.terms(layer, batch, options)?;
                self.decoder_pass(layer, batch, Pass::Meet, &told)?;
                self.entry_gradients(layer, batch, options)?;
                self.measure_vectors(layer, &sum)?;
            }
            self.encoder_pass(layer, batch, Pass::Spend, &told)?;
            self.report(layer, batch, options)?;
            let layer = &self.layers[layer];
            self.vector_step(&layer.encoder_bias, &told)?;
            for vector in [&layer.log_threshold, &layer.skip].into_iter().flatten() {
                self.vector_step(vector, &told)?;
            }
        }
        if options.clip.is_none() {
            sum(self, self.decoder_bias.gradient.at(), self.decoder_bias.gradient.len(), "add_squares")?;
        }
        self.vector_step(&self.decoder_bias, &told)
    }

    /// The squares of the gradients of biases, thresholds and skip connections, into the norm.
    fn measure_vectors(&self, layer: usize, sum: &impl Fn(&Self, At, usize, &str) -> Result<()>) -> Result<()> {
        let layer = &self.layers[layer];
        for vector in [Some(&layer.encoder_bias), layer.log_threshold.as_ref(), layer.skip.as_ref()].into_iter().flatten() {
            sum(self, vector.gradient.at(), vector.gradient.len(), "add_squares")?;
        }
        Ok(())
    }

    fn vector_step(&self, vector: &Vector, told: &Told) -> Result<()> {
        let n = vector.w.len();
        // SAFETY: all four have n numbers.
        unsafe { self.gpu.launch("adam_vector", (n.div_ceil(256), 1), 256, &[&vector.w.at(), &vector.m.at(), &vector.v.at(), &vector.gradient.at(), &(n as u32), told]) }
    }

    fn penalty(&self, layer: usize, batch: &DeviceBatch, options: &StepOptions) -> Penalty {
        let per_token = |factor: f64| (factor / batch.tokens as f64) as f32;
        Penalty {
            sparsity: per_token(options.sparsity),
            scale: options.tanh_scale as f32,
            dead: per_token(options.dead),
            bandwidth: 2.0 * self.reach(),
            dead_window: options.dead_window,
            tokens: batch.tokens as u32,
            tiles: self.config.slots(layer) as u32,
            features: self.config.features as u32,
            d: self.config.width as u32,
            threshold: match self.config.activation {
                Activation::Relu => 0,
                Activation::JumpRelu { .. } => 2,
                _ => 1,
            },
        }
    }

    /// What the sparsity and dead-feature terms say of each feature.
    fn terms(&self, index: usize, batch: &DeviceBatch, options: &StepOptions) -> Result<()> {
        let (layer, shared) = (&self.layers[index], &self.shared);
        let (e, penalty) = (&layer.entries, self.penalty(index, batch, options));
        let [log, threshold] = layer.log_threshold.as_ref().map_or([0, 0], |log| [log.w.at(), log.gradient.at()]);
        let sums = shared.input_sums.from(index * self.config.width);
        if options.dead > 0.0 {
            // SAFETY: T cuts, one sum.
            unsafe { self.gpu.launch("set_total", (1, 1), 1024, &[&e.cuts.at(), &(batch.tokens as u32), &shared.cut_sum.at()])? };
        }
        let arguments: [&dyn Argument; 18] = [
            &penalty, &e.offsets.at(), &e.list_tokens.at(), &e.list_values.at(), &layer.squares.at(), &e.cuts.at(), &shared.cut_sum.at(), &log, &layer.idle.at(), &layer.encoder.w.at(),
            &layer.encoder_bias.w.at(), &sums, &e.gradients.at(), &e.own.at(), &e.common.at(), &threshold, &e.sparsity.at(), &e.dead_term.at(),
        ];
        // SAFETY: one warp a feature; per-feature buffers have F numbers, per-entry ones as many as there are entries.
        unsafe { self.gpu.launch(&format!("feature_terms_{}", self.stored.name()), (self.config.features.div_ceil(8), 1), 256, &arguments) }
    }

    /// From gradients of activations to those of pre-activations, biases and thresholds.
    fn entry_gradients(&self, index: usize, batch: &DeviceBatch, options: &StepOptions) -> Result<()> {
        let (layer, shared) = (&self.layers[index], &self.shared);
        let (e, penalty) = (&layer.entries, self.penalty(index, batch, options));
        let [log, threshold] = layer.log_threshold.as_ref().map_or([0, 0], |log| [log.w.at(), log.gradient.at()]);
        // Where products were dense there is one part only.
        let tiles = if self.is_dense(index, batch.tokens, Side::Backward) { 1 } else { penalty.tiles };
        let room = (shared.products.len() / self.config.slots(0)) as u32;
        let arguments: [&dyn Argument; 13] = [
            &penalty, &e.offsets.at(), &e.list_values.at(), &e.list_pre.at(), &shared.products.at(), &room, &tiles, &log, &e.common.at(), &e.gradients.at(), &layer.encoder_bias.gradient.at(),
            &threshold, &e.fired.at(),
        ];
        // SAFETY: as in `terms`; products have `room` numbers for each part.
        unsafe { self.gpu.launch("entry_gradients", (self.config.features.div_ceil(8), 1), 256, &arguments) }
    }

    /// `Σ_p coefficients · met` of all features of a layer, in `shared.gradient`; `met` is `[T, columns]`.
    fn dense_gradient(&mut self, index: usize, tokens: usize, coefficients: At, met: Operand, columns: usize) -> Result<()> {
        let f = self.config.features;
        self.scatter(index, tokens, coefficients)?;
        // As large as the first layer's decoder at once: a buffer that grows would have to be given back.
        self.shared.gradient.fit(f * self.config.slots(0) * self.config.width)?;
        let product = Product { rows: f, depth: tokens, columns, left: self.code(true), right: met, out: self.shared.gradient.at(), stride: columns, add: false };
        // SAFETY: the code is [T, F], `gradient` has room for the largest decoder.
        unsafe { self.gpu.product(&product) }
    }

    /// A pass over the decoder rows of one layer.
    fn decoder_pass(&mut self, index: usize, batch: &DeviceBatch, pass: Pass, told: &Told) -> Result<()> {
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
            slab: shared.slab.at(),
            stride: stride as u32,
            at: (index * d) as u32,
            own: e.own.at(),
            dense: if dense { shared.gradient.at() } else { 0 },
            ..Terms::default()
        };
        let pass = if dense && pass == Pass::Meet { Pass::Spend } else { pass };
        self.pass(&layer.decoder, (f, row / d, d), terms, pass, told, layer.squares.at())
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
            stride: d as u32,
            common: e.common.at(),
            sums: shared.input_sums.from(index * d),
            dense: if dense { shared.gradient.at() } else { 0 },
            ..Terms::default()
        };
        self.pass(&layer.encoder, (f, 1, d), terms, pass, told, 0)
    }

    /// `feature_pass` over `tiles` parts of d columns of each of `f` rows.
    fn pass(&self, matrix: &Matrix, (f, tiles, d): (usize, usize, usize), terms: Terms, pass: Pass, told: &Told, squares: At) -> Result<()> {
        let (shared, stored) = (&self.shared, self.stored.name());
        let room = (shared.products.len() / self.config.slots(0)) as u32;
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
        let norms = if pass == Pass::Products { 0 } else { shared.norms.at() };
        let none = Full([0; 2]);
        let moments: &dyn Argument = match (&full, &small, pass) {
            (_, _, Pass::Products | Pass::Measure) => &none,
            (Some(full), ..) => full,
            (_, Some(small), _) => small,
            _ => &none,
        };
        let (at, row, width) = (matrix.w.at(), matrix.row as u32, d as u32);
        let arguments: [&dyn Argument; 10] = [&at, moments, &row, &width, &terms, told, &shared.products.at(), &room, &squares, &norms];
        // SAFETY: a block a row and part; the lists' tokens are below T, and every row has its moments.
        unsafe {
            self.gpu.launch(&name, (f, tiles), threads(d), &arguments)?;
            // With a limit the norm was measured before; else it is that of what was spent.
            let measures = match pass {
                Pass::Measure => true,
                Pass::Spend | Pass::Meet => told.clip == 0,
                Pass::Products => false,
            };
            if measures {
                self.gpu.launch("add_total", (1, 1), 1024, &[&norms, &((f * tiles) as u32), &(self.line(0) + 7 * 4)])?;
            }
        }
        Ok(())
    }

    /// This step's line of figures of one layer.
    fn report(&self, index: usize, batch: &DeviceBatch, options: &StepOptions) -> Result<()> {
        let (layer, shared) = (&self.layers[index], &self.shared);
        let e = &layer.entries;
        let arguments: [&dyn Argument; 12] = [
            &e.sparsity.at(), &e.dead_term.at(), &e.fired.at(), &layer.idle.at(), &(self.config.features as u32), &(batch.tokens as u32), &options.dead_window, &e.cuts.at(), &e.counts.at(),
            &shared.hints.from(index), &shared.go.at(), &self.line(index),
        ];
        // SAFETY: F numbers a feature, T a token.
        unsafe { self.gpu.launch("report_layer", (1, 1), 1024, &arguments) }
    }
}

/// Threads of a block of which each has eight of `d` columns: whole warps.
fn threads(d: usize) -> usize {
    d.div_ceil(8).next_multiple_of(32)
}
