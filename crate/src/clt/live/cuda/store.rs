//! Weights, moments and counters from the host to the device and back: a checkpoint does not know where it was
//! trained.

use super::tables::Tables;
use super::{CudaClt, Cut, Entries, Layer, LiveClt, Matrix, Moments, Shared, Vector, LINE, RING};
use crate::clt::kernels::cuda::{Buffer, Gpu, Kernels, Numbers, Sent, Stored};
use crate::clt::live::param::{self, Param};
use crate::clt::CltConfig;
use crate::error::Result;
use candle_core::cuda_backend::cudarc::driver::{DeviceRepr, ValidAsZeroBits};

impl Matrix {
    /// `fresh`: no step was taken, all moments are 0 and need no copy.
    fn of(gpu: &Gpu, stored: Stored, param: &Param, fresh: bool) -> Result<Self> {
        fn brought<T: DeviceRepr + ValidAsZeroBits>(gpu: &Gpu, values: &[T], fresh: bool) -> Result<Buffer<T>> {
            if fresh { gpu.zeros(values.len()) } else { gpu.copy(values) }
        }
        let moments = match &param.moments {
            param::Moments::F32 { m, v } => Moments::Full { m: brought(gpu, m, fresh)?, v: brought(gpu, v, fresh)? },
            param::Moments::Eight { m, v, scales } => Moments::Small { m: brought(gpu, m, fresh)?, v: brought(gpu, v, fresh)?, scales: brought(gpu, scales.as_flattened(), fresh)? },
        };
        Ok(Matrix { w: Numbers::copy(gpu, stored, &param.w)?, moments, row: param.row })
    }

    fn read(&self, into: &mut Param) -> Result<()> {
        into.w = self.w.read()?;
        match (&self.moments, &mut into.moments) {
            (Moments::Full { m, v }, param::Moments::F32 { m: to_m, v: to_v }) => (*to_m, *to_v) = (m.read()?, v.read()?),
            (Moments::Small { m, v, scales }, param::Moments::Eight { m: to_m, v: to_v, scales: to_scales }) => {
                (*to_m, *to_v) = (m.read()?, v.read()?);
                *to_scales = scales.read()?.as_chunks::<2>().0.to_vec();
            }
            _ => unreachable!("moments are of the kind that the training was begun with"),
        }
        Ok(())
    }
}

impl Vector {
    fn of(gpu: &Gpu, w: &[f32], m: &[f32], v: &[f32]) -> Result<Self> {
        Ok(Vector { w: gpu.copy(w)?, m: gpu.copy(m)?, v: gpu.copy(v)?, gradient: gpu.zeros(w.len())? })
    }

    fn of_param(gpu: &Gpu, param: &Param) -> Result<Self> {
        let (m, v) = full(param);
        Vector::of(gpu, &param.w, m, v)
    }

    fn read(&self, into: &mut Param) -> Result<()> {
        into.w = self.w.read()?;
        into.moments = param::Moments::F32 { m: self.m.read()?, v: self.v.read()? };
        Ok(())
    }
}

/// A vector's moments, which are never compact.
fn full(param: &Param) -> (&[f32], &[f32]) {
    match &param.moments {
        param::Moments::F32 { m, v } => (m, v),
        param::Moments::Eight { .. } => unreachable!("vectors have moments in f32"),
    }
}

impl Entries {
    fn new(gpu: &Gpu, config: &CltConfig) -> Result<Self> {
        let f = config.features;
        Ok(Entries {
            features: gpu.zeros(0)?,
            values: gpu.zeros(0)?,
            tokens: gpu.zeros(0)?,
            pre: gpu.zeros(0)?,
            starts: gpu.zeros(0)?,
            counts: gpu.zeros(0)?,
            cuts: gpu.zeros(0)?,
            total: gpu.zeros(1)?,
            given: 0,
            counted: (!config.activation.is_ranked()).then(|| Sent::new(gpu)).transpose()?,
            offsets: gpu.zeros(f + 1)?,
            list: gpu.zeros(0)?,
            list_tokens: gpu.zeros(0)?,
            list_values: gpu.zeros(0)?,
            list_pre: gpu.zeros(0)?,
            gradients: gpu.zeros(0)?,
            own: gpu.zeros(f)?,
            common: gpu.zeros(f)?,
            sparsity: gpu.zeros(f)?,
            dead_term: gpu.zeros(f)?,
            fired: gpu.zeros(f)?,
        })
    }
}

impl Shared {
    fn new(gpu: &Gpu, stored: Stored, config: &CltConfig) -> Result<Self> {
        let (l, d, f) = (config.layers, config.width, config.features);
        Ok(Shared {
            h: gpu.zeros(0)?,
            second: gpu.zeros(0)?,
            code: Numbers::zeros(gpu, stored, 0)?,
            gradient: gpu.zeros(0)?,
            products: gpu.zeros(0)?,
            squares: gpu.zeros(0)?,
            norms: gpu.zeros(0)?,
            sums: gpu.zeros((3 * l + 2) * super::SHARES)?,
            histogram: gpu.zeros(2048)?,
            ranking: gpu.zeros(7)?,
            found_features: gpu.zeros(0)?,
            found_values: gpu.zeros(0)?,
            found_counts: gpu.zeros(0)?,
            spilled: gpu.zeros(1)?,
            above: gpu.zeros(0)?,
            equal: gpu.zeros(0)?,
            lengths: gpu.zeros(l * f)?,
            skip: Numbers::zeros(gpu, stored, if config.skip { d * d } else { 0 })?,
            base: gpu.zeros(0)?,
            slab: Numbers::zeros(gpu, stored, 0)?,
            errors: gpu.zeros(0)?,
            input_sums: gpu.zeros(l * d)?,
            target_sums: gpu.zeros(l * d)?,
            target_squares: gpu.zeros(l * d)?,
            variances: gpu.zeros(l)?,
            scales: gpu.zeros(l)?,
            cut_sums: gpu.zeros(l)?,
            ends: gpu.zeros(0)?,
            group_starts: gpu.zeros(0)?,
            group_counts: gpu.zeros(0)?,
            hints: gpu.zeros(l)?,
            lines: gpu.zeros(RING as usize * l * LINE)?,
            clip: gpu.zeros(1)?,
            go: gpu.zeros(1)?,
            broken: gpu.copy(&[u32::MAX])?,
        })
    }
}

impl CudaClt {
    /// A copy on the device. `live` must have no row at rest ([`LiveClt::settle_all`]).
    pub fn upload(live: &LiveClt, gpu: &Gpu, stored: Stored) -> Result<Self> {
        let config = live.config.clone();
        let mut layers = Vec::with_capacity(config.layers);
        let fresh = live.steps == 0;
        for layer in &live.layers {
            let decoder = Matrix::of(gpu, stored, &layer.decoder, fresh)?;
            layers.push(Layer {
                encoder: Matrix::of(gpu, stored, &layer.encoder, fresh)?,
                encoder_bias: Vector::of_param(gpu, &layer.encoder_bias)?,
                log_threshold: layer.log_threshold.as_ref().map(|log| Vector::of_param(gpu, log)).transpose()?,
                decoder,
                skip: layer.skip.as_ref().map(|skip| Vector::of_param(gpu, skip)).transpose()?,
                idle: gpu.copy(&layer.idle)?,
                cut: layer.cut,
                density: f64::from(layer.density),
                entries: Entries::new(gpu, &config)?,
            });
        }
        let all = |part: fn(&Param) -> &[f32]| live.layers.iter().flat_map(|layer| part(&layer.decoder_bias)).copied().collect::<Vec<f32>>();
        let decoder_bias = Vector::of(gpu, &all(|p| &p.w), &all(|p| full(p).0), &all(|p| full(p).1))?;
        let mut shared = Shared::new(gpu, stored, &config)?;
        shared.hints.write(&live.layers.iter().map(|layer| layer.cut.last).collect::<Vec<f32>>())?;
        let (tables, aux, across) = (Tables::new(gpu)?, super::auxiliary::Aux::new(gpu, &config)?, super::across::Across::new(gpu)?);
        let mut clt = CudaClt { config, steps: live.steps, gpu: gpu.clone(), stored, layers, decoder_bias, shared, tables, aux, across, path: super::path::wanted()?, groups: Vec::new(), told: live.steps, tokens: Vec::new() };
        let parts = (0..clt.config.layers).map(|index| clt.parts(index)).sum::<usize>();
        clt.shared.squares = gpu.zeros(parts * clt.config.features)?;
        clt.shared.norms = gpu.zeros((parts + clt.config.layers) * clt.config.features)?;
        clt.tell_vectors()?;
        for (index, layer) in clt.layers.iter().enumerate() {
            let (row, d, into) = (layer.decoder.row as u32, clt.config.width as u32, clt.shared.squares.from(clt.squares_from(index)));
            // SAFETY: one warp a row and part, of as many as the buffers have.
            unsafe { gpu.launch(Kernels::SQUARE_ROWS.of(stored), (clt.config.features, clt.parts(index)), 32, &[&layer.decoder.w.at(), &row, &d, &into])? };
        }
        Ok(clt)
    }

    /// The same CLT on the host. Figures must have been read.
    pub fn download(&self) -> Result<LiveClt> {
        let eight = matches!(self.layers.first().map(|layer| &layer.decoder.moments), Some(Moments::Small { .. }));
        let mut live = LiveClt::empty(&self.config, eight)?;
        live.steps = self.steps;
        live.pending.0 = vec![0.0; self.steps as usize];
        let d = self.config.width;
        let bias = [&self.decoder_bias.w, &self.decoder_bias.m, &self.decoder_bias.v].map(|buffer| buffer.read());
        let [w, m, v] = bias;
        let (w, m, v) = (w?, m?, v?);
        for (l, (layer, from)) in live.layers.iter_mut().zip(&self.layers).enumerate() {
            from.encoder.read(&mut layer.encoder)?;
            from.encoder_bias.read(&mut layer.encoder_bias)?;
            if let (Some(to), Some(from)) = (&mut layer.log_threshold, &from.log_threshold) {
                from.read(to)?;
            }
            from.decoder.read(&mut layer.decoder)?;
            if let (Some(to), Some(from)) = (&mut layer.skip, &from.skip) {
                from.read(to)?;
            }
            let range = l * d..(l + 1) * d;
            layer.decoder_bias.w = w[range.clone()].to_vec();
            layer.decoder_bias.moments = param::Moments::F32 { m: m[range.clone()].to_vec(), v: v[range].to_vec() };
            layer.idle = from.idle.read()?;
            layer.cut = Cut { ..from.cut };
            layer.density = from.density as f32;
            layer.last.fill(self.steps as u32);
            layer.measure();
        }
        Ok(live)
    }
}
