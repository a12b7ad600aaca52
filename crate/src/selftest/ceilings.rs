//! What a device can do at best: the figures that timings are held against.

use crate::error::Result;
use candle_core::Device;

/// Measured limits of a device.
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    /// Bytes a second that a copy within the device's memory reads and writes.
    pub copy: f64,
    /// Floating-point operations a second of a large product in bf16 with sums in f32.
    pub bf16: f64,
    /// The same in f32.
    pub f32: f64,
}

impl Ceilings {
    /// Measures `device`: products of `size` × `size` random numbers and copies of `size`² f32, the best of some.
    /// 8,192 suits large cards.
    ///
    /// # Errors
    /// `Unsupported` for a device that is no GPU; `OutOfMemory`.
    ///
    /// ```no_run
    /// let device = cltlab::device::cuda(0)?;
    /// println!("{}", cltlab::selftest::Ceilings::measure(&device, 8192)?);
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    pub fn measure(device: &Device, size: usize) -> Result<Self> {
        measured(device, size)
    }
}

impl std::fmt::Display for Ceilings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "copy {:.0} GB/s, products {:.1} TFLOP/s in bf16, {:.1} in f32", self.copy / 1e9, self.bf16 / 1e12, self.f32 / 1e12)
    }
}

#[cfg(not(feature = "cuda"))]
fn measured(_: &Device, _: usize) -> Result<Ceilings> {
    crate::device::cuda(0).and_then(|_| Err(crate::Error::new(crate::ErrorKind::Unsupported, "CUDA: this build has none")))
}

#[cfg(feature = "cuda")]
fn measured(device: &Device, size: usize) -> Result<Ceilings> {
    use crate::clt::kernels::cuda::{Gpu, Numbers, Operand, Product, Stored};
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    use std::time::Instant;

    let gpu = Gpu::of(device)?;
    let mut rng = StdRng::seed_from_u64(0);
    // Zeros would draw less power and run faster.
    let values: Vec<f32> = (0..size * size).map(|_| rng.random_range(-1.0..1.0f32)).collect();
    let best = |times: usize, work: &mut dyn FnMut() -> Result<()>| -> Result<f64> {
        let mut best = f64::INFINITY;
        for _ in 0..=times {
            gpu.wait()?;
            let start = Instant::now();
            (0..4).try_for_each(|_| work())?;
            gpu.wait()?;
            best = best.min(start.elapsed().as_secs_f64() / 4.0);
        }
        Ok(best)
    };
    let (mut from, mut to) = (gpu.copy(&values)?, gpu.zeros::<f32>(size * size)?);
    let copy = 8.0 * (size * size) as f64 / best(5, &mut || to.copy_from(&from))?;
    let mut rate = |stored: Stored| -> Result<f64> {
        let factor = Numbers::copy(&gpu, stored, &values)?;
        let operand = |turned| Operand { at: factor.at(), stored, stride: size, turned };
        let product = Product { rows: size, depth: size, columns: size, left: operand(false), right: operand(true), out: from.at(), stride: size, add: false };
        // SAFETY: all three have size² numbers.
        let seconds = best(5, &mut || unsafe { gpu.product(&product) })?;
        from.clear()?;
        Ok(2.0 * (size as f64).powi(3) / seconds)
    };
    Ok(Ceilings { copy, bf16: rate(Stored::Bf16)?, f32: rate(Stored::F32)? })
}
