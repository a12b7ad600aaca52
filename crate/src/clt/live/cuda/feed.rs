//! A training's data on the device: batches are picked from the filling that is in use.
//!
//! Fillings made on the device stay as they are, and a batch is normalised when it is picked; those from the host are
//! normalised there and copied once.

use super::DeviceBatch;
use crate::activations::{Batch, Filling, Held, Reader, Scale, Taken};
use crate::clt::kernels::cuda::{Buffer, Gpu, Kernels, Numbers, Stored};
use crate::clt::CltConfig;
use crate::error::Result;
use rayon::prelude::*;

pub(super) struct Feed {
    gpu: Gpu,
    stored: Stored,
    layers: usize,
    width: usize,
    /// A copy of the host's filling, normalised.
    inputs: Numbers,
    targets: Numbers,
    /// Which filling that is, or which one `places` names.
    filling: Option<u64>,
    /// Where inputs and targets of each layer lie, `[2, L]`, and how.
    places: Buffer<u64>,
    made: Stored,
    /// What they are centred by, `[2, L, d]`, and multiplied with, `[2, L]`; empty until a filling needs them.
    means: Buffer<f32>,
    factors: Buffer<f32>,
    scaled: bool,
    rows: Buffer<u32>,
}

impl Feed {
    pub fn new(gpu: &Gpu, stored: Stored, config: &CltConfig) -> Result<Self> {
        Ok(Feed {
            gpu: gpu.clone(),
            stored,
            layers: config.layers,
            width: config.width,
            inputs: Numbers::zeros(gpu, stored, 0)?,
            targets: Numbers::zeros(gpu, stored, 0)?,
            filling: None,
            places: gpu.zeros(2 * config.layers)?,
            made: stored,
            means: gpu.zeros(0)?,
            factors: gpu.zeros(0)?,
            scaled: false,
            rows: gpu.zeros(0)?,
        })
    }

    /// Makes the next batch of `tokens`.
    pub fn pick(&mut self, reader: &mut Reader, tokens: usize, scale: &Scale, batch: &mut DeviceBatch) -> Result<()> {
        batch.inputs.fit(self.layers * tokens * self.width)?;
        batch.targets.fit(self.layers * tokens * self.width)?;
        batch.tokens = tokens;
        reader.visit(tokens, |done, part| {
            self.rows.fit(part.rows.len())?;
            self.rows.write(part.rows)?;
            match part.buffer {
                Filling::Host(filling) => self.copy(filling, &part, scale)?,
                Filling::Held(held) => self.name(held, &part, scale)?,
            }
            self.gather(done, &part, batch)
        })
    }

    /// Copies a filling from the host, once.
    fn copy(&mut self, filling: &Batch, part: &Taken<'_>, scale: &Scale) -> Result<()> {
        let (held, d) = (filling.tokens, self.width);
        if self.filling == Some(part.filling) {
            return Ok(());
        }
        self.filling = None;
        let scales = |input: bool| scale.layers.iter().map(move |layer| if input { &layer.input } else { &layer.target });
        for (into, from, input) in [(&mut self.inputs, &filling.inputs, true), (&mut self.targets, &filling.targets, false)] {
            into.fit(self.layers * held * d)?;
            let mut normal = Vec::new();
            for (layer, (values, scale)) in from.iter().zip(scales(input)).enumerate() {
                normal.resize(held * d, 0f32);
                normal.par_chunks_exact_mut(d).zip(values.par_chunks_exact(d)).for_each(|(to, from)| scale.apply(from, to));
                into.write_at(layer * held * d, &normal)?;
            }
        }
        self.filling = Some(part.filling);
        Ok(())
    }

    /// Tells the device where a filling lies that is there.
    fn name(&mut self, held: &Held, part: &Taken<'_>, scale: &Scale) -> Result<()> {
        if !self.scaled {
            let sides: Vec<_> = scale.layers.iter().map(|layer| &layer.input).chain(scale.layers.iter().map(|layer| &layer.target)).collect();
            self.means = self.gpu.copy(&sides.iter().flat_map(|side| side.mean.iter().copied()).collect::<Vec<f32>>())?;
            self.factors = self.gpu.copy(&sides.iter().map(|side| side.factor).collect::<Vec<f32>>())?;
            self.scaled = true;
        }
        if self.filling != Some(part.filling) {
            let places = held.inputs.iter().chain(&held.targets).map(|side| self.gpu.find(side)).collect::<Result<Vec<_>>>()?;
            self.made = places.first().map_or(self.stored, |(_, made)| *made);
            self.places.write(&places.iter().map(|(at, _)| *at).collect::<Vec<_>>())?;
            self.filling = Some(part.filling);
        }
        Ok(())
    }

    /// Gathers a part of a batch, which begins with its row `done`.
    fn gather(&self, done: usize, part: &Taken<'_>, batch: &DeviceBatch) -> Result<()> {
        let (rows, all, first, d, l) = (self.rows.at(), batch.tokens as u32, done as u32, self.width as u32, self.layers);
        let (grid, block) = ((part.rows.len(), l), self.width.div_ceil(8).next_multiple_of(32));
        for (side, (from, into)) in [(&self.inputs, &batch.inputs), (&self.targets, &batch.targets)].into_iter().enumerate() {
            // SAFETY: rows are below those held, and `done` and they together at most `tokens`; places, means and
            // factors are those of this side's layers.
            unsafe {
                match part.buffer {
                    Filling::Host(filling) => self.gpu.launch(Kernels::PICK_ROWS.of(self.stored), grid, block, &[&from.at(), &rows, &(filling.tokens as u32), &all, &first, &d, &into.at()])?,
                    Filling::Held(_) => {
                        let (places, means, factors) = (self.places.from(side * l), self.means.from(side * l * self.width), self.factors.from(side * l));
                        let normal = match self.made {
                            Stored::F32 => Kernels::PICK_NORMAL_F32,
                            Stored::Bf16 => Kernels::PICK_NORMAL_BF16,
                        };
                        self.gpu.launch(normal.of(self.stored), grid, block, &[&places, &means, &factors, &rows, &all, &first, &d, &into.at()])?;
                    }
                }
            }
        }
        Ok(())
    }
}
