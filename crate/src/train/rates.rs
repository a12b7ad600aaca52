//! Rates of this machine's cores: a measurement of some 0.2 s, once a process. Of many short runs the best counts, so that what
//! else runs meanwhile is left out where it can be.

use crate::clt::kernels::{gemm, Matrix};
use rayon::prelude::*;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What all cores do together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rates {
    pub threads: usize,
    /// Flops a second of products in f32 that stay in the cores' caches.
    pub products: f64,
    /// Bytes a second that a copy reads and writes.
    pub bandwidth: f64,
}

/// This machine's rates, measured when they are asked for first.
pub(super) fn here() -> Rates {
    static RATES: OnceLock<Rates> = OnceLock::new();
    *RATES.get_or_init(|| Rates { threads: rayon::current_num_threads(), products: products(), bandwidth: bandwidth() })
}

fn products() -> f64 {
    const N: usize = 384;
    let rates = rayon::broadcast(|_| {
        let (left, right, mut out) = (vec![0.5f32; N * N], vec![0.25f32; N * N], vec![0f32; N * N]);
        let whole = Matrix::rows(0, N);
        // SAFETY: `out` is this thread's own.
        let mut once = || unsafe { gemm(N, N, N, out.as_mut_ptr(), whole, false, &left, whole, &right, whole) };
        let (start, mut best) = (Instant::now(), f64::INFINITY);
        while start.elapsed() < Duration::from_millis(60) || best.is_infinite() {
            let begin = Instant::now();
            once();
            best = best.min(begin.elapsed().as_secs_f64());
        }
        std::hint::black_box(&out);
        2.0 * (N * N * N) as f64 / best.max(1e-9)
    });
    rates.into_iter().sum()
}

fn bandwidth() -> f64 {
    // More than the caches hold.
    const NUMBERS: usize = 12 << 20;
    let (from, mut into) = (vec![1f32; NUMBERS], vec![2f32; NUMBERS]);
    let part = NUMBERS.div_ceil(4 * rayon::current_num_threads());
    let mut best = f64::INFINITY;
    for _ in 0..8 {
        let start = Instant::now();
        into.par_chunks_mut(part).zip(from.par_chunks(part)).for_each(|(into, from)| into.copy_from_slice(from));
        best = best.min(start.elapsed().as_secs_f64());
    }
    std::hint::black_box(&into);
    8.0 * NUMBERS as f64 / best.max(1e-9)
}
