//! Backward and update: gradients, Adam, figures.

use super::path::Side;
use super::rows::Pass;
use super::{CudaClt, DeviceBatch, SHARES};
use crate::clt::kernels::cuda::{At, Kernel, Kernels, Operand, Product};
use crate::clt::kernels::AdamStep;
use crate::clt::live::StepOptions;
use crate::clt::Tied;
use crate::error::Result;
use candle_core::cuda_backend::cudarc::driver::DeviceRepr;
use std::ops::Range;

/// `Adam` with `Told`, and `Penalty`, as `learn.cu` has them.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Told {
    numbers: [f32; 6],
    key: u32,
    clip: At,
    go: At,
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

// SAFETY: plain numbers in C's layout, as the kernels declare them.
unsafe impl DeviceRepr for Told {}
unsafe impl DeviceRepr for Penalty {}

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
        // SAFETY: lists hold tokens below T and features below F.
        unsafe { self.gpu.launch(Kernels::SCATTER.of(self.stored), (self.config.features, 1), 64, &[&e.offsets.at(), &e.list_tokens.at(), &coefficients, &(self.config.features as u32), &self.shared.code.at()]) }
    }

    /// Backward and update.
    pub(super) fn learn(&mut self, batch: &DeviceBatch, options: &StepOptions) -> Result<()> {
        let l = self.config.layers;
        let adam = AdamStep::new(options.lr, options.betas, options.eps, options.weight_decay, self.steps + 1);
        let told = Told::new(&adam, if options.clip.is_some() { self.shared.clip.at() } else { 0 }, self.shared.go.at());
        self.terms(batch, options)?;
        self.tell_rows(batch, options)?;
        // Each row is read once a step; with a limit on the gradient, or shared by several sources, once more before.
        let meets = options.clip.is_none() && self.config.tied != Tied::PerTarget;
        let turns = if self.is_together(batch.tokens) { vec![0..l] } else { (0..l).map(|layer| layer..layer + 1).collect() };
        for layers in if meets { &[] } else { &turns[..] } {
            self.decoder_pass(layers, batch, Pass::Products, &told)?;
            self.entry_gradients(layers, batch, options)?;
        }
        if let Some(most) = options.clip {
            for layers in &turns {
                self.decoder_pass(layers, batch, Pass::Measure, &told)?;
                self.encoder_pass(layers, batch, Pass::Measure, &told)?;
            }
            self.norm()?;
            let shared = &self.shared;
            // SAFETY: single numbers.
            unsafe { self.gpu.launch(Kernel::CLIP_FACTOR, (1, 1), 1, &[&self.square(), &(most as f32), &shared.clip.at(), &shared.go.at(), &shared.broken.at(), &(options.step as u32)])? };
        }
        for layers in &turns {
            if meets {
                self.decoder_pass(layers, batch, Pass::Meet, &told)?;
                self.entry_gradients(layers, batch, options)?;
            } else {
                self.decoder_pass(layers, batch, Pass::Spend, &told)?;
            }
            self.encoder_pass(layers, batch, Pass::Spend, &told)?;
        }
        if options.clip.is_none() {
            self.norm()?;
        }
        let (count, longest) = self.count_vectors();
        let (f, tokens) = (self.config.features as u32, batch.tokens as u32);
        // SAFETY: the tables say where each lies; a row of blocks a vector or layer.
        unsafe {
            self.gpu.launch(Kernel::ADAM_VECTORS, (longest.div_ceil(256), count), 256, &[&self.tables.vectors.at(), &told])?;
            self.gpu.launch(Kernel::REPORT_LAYERS, (1, l), 1024, &[&self.tables.layers.at(), &f, &tokens, &options.dead_window, &self.shared.go.at(), &self.line(0)])
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
            self.gpu.launch(Kernel::SUM_PARTS, (SHARES, parts), 256, &[&self.tables.parts.at(), &sums])?;
            self.gpu.launch(Kernel::SET_TOTAL, (1, 1), 1024, &[&sums, &((SHARES * parts) as u32), &self.square()])
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
                self.gpu.launch(Kernel::SUM_CUTS, (1, l), 1024, &[&table, &(batch.tokens as u32), &cuts])?;
            }
            self.gpu.launch(Kernels::FEATURE_TERMS.of(self.stored), (self.config.features.div_ceil(8), l), 256, &[&penalty, &table, &cuts])
        }
    }

    /// From gradients of activations to those of pre-activations, biases and thresholds.
    fn entry_gradients(&self, layers: &Range<usize>, batch: &DeviceBatch, options: &StepOptions) -> Result<()> {
        let penalty = self.penalty(batch, options);
        // SAFETY: as in `terms`; each layer's products have room for every part, as its line of the table says.
        unsafe { self.gpu.launch(Kernel::ENTRY_GRADIENTS, (self.config.features.div_ceil(8), layers.len()), 256, &[&penalty, &self.tables.layers.at(), &(layers.start as u32)]) }
    }

    /// `Σ_p coefficients · factor[p]` of all features of a layer, in `shared.gradient`; `factor` is `[T, columns]`.
    fn dense_gradient(&mut self, index: usize, tokens: usize, coefficients: At, factor: Operand, columns: usize) -> Result<()> {
        self.scatter(index, tokens, coefficients)?;
        let f = self.config.features;
        let product = Product { rows: f, depth: tokens, columns, left: self.code(true), right: factor, out: self.shared.gradient.at(), stride: columns, add: false };
        // SAFETY: the code is [T, F], `gradient` has room for the largest decoder.
        unsafe { self.gpu.product(&product) }
    }

    /// A pass over the decoder rows of some layers, of one where its products are dense.
    fn decoder_pass(&mut self, layers: &Range<usize>, batch: &DeviceBatch, pass: Pass, told: &Told) -> Result<()> {
        let (l, d, f, tokens, index) = (self.config.layers, self.config.width, self.config.features, batch.tokens, layers.start);
        if !self.is_dense(index, tokens, Side::Backward) {
            return self.pass_decoders(layers, pass, told);
        }
        let (row, stride) = (self.layers[index].decoder.row, l * d);
        let slab = Operand { at: self.shared.slab.from(index * d), stored: self.stored, stride, turned: false };
        if matches!(pass, Pass::Products | Pass::Meet) {
            let decoder = &self.layers[index].decoder;
            let product = Product { rows: tokens, depth: row, columns: f, left: slab, right: decoder.factor(0, true), out: self.shared.h.at(), stride: f, add: false };
            let e = &self.layers[index].entries;
            // SAFETY: gradients at the targets from l·d on are as many columns as a decoder row; `h` has room for [T, F].
            unsafe {
                self.gpu.product(&product)?;
                self.gpu.launch(Kernel::GATHER, (f, 1), 64, &[&e.offsets.at(), &e.list_tokens.at(), &self.shared.h.at(), &(f as u32), &self.shared.products.at()])?;
            }
            if pass == Pass::Products {
                return Ok(());
            }
        }
        self.dense_gradient(index, tokens, self.layers[index].entries.list_values.at(), slab, row)?;
        self.pass_decoders(layers, if pass == Pass::Meet { Pass::Spend } else { pass }, told)
    }

    /// A pass over the encoder rows of some layers, of one where its products are dense.
    fn encoder_pass(&mut self, layers: &Range<usize>, batch: &DeviceBatch, pass: Pass, told: &Told) -> Result<()> {
        let (d, tokens, index) = (self.config.width, batch.tokens, layers.start);
        if self.is_dense(index, tokens, Side::Backward) {
            let x = Operand { at: batch.inputs.from(index * tokens * d), stored: self.stored, stride: d, turned: false };
            self.dense_gradient(index, tokens, self.layers[index].entries.gradients.at(), x, d)?;
        }
        self.pass_encoders(layers, pass, told)
    }
}

/// Threads of a block of which each has eight of `d` columns: whole warps.
pub(super) fn threads(d: usize) -> usize {
    d.div_ceil(8).next_multiple_of(32)
}
