//! Parameters of a CLT in training with their moments, and the pieces of them that one thread changes.

use crate::clt::kernels::{unpack_block, MomentRows, Rows, Scales, BLOCK};
use rand::rngs::StdRng;
use rand::Rng;

/// A matrix (or vector: rows of one) with Adam's two moments.
#[derive(Clone, Debug, Default)]
pub(crate) struct Param {
    pub w: Vec<f32>,
    pub moments: Moments,
    /// Length of a row.
    pub row: usize,
}

/// Adam's moments of a parameter.
#[derive(Clone, Debug)]
pub(crate) enum Moments {
    F32 { m: Vec<f32>, v: Vec<f32> },
    /// Eight bits each, with an exponent for each moment and block of a row.
    Eight { m: Vec<u8>, v: Vec<u8>, scales: Vec<Scales> },
}

impl Default for Moments {
    fn default() -> Self {
        Moments::F32 { m: Vec::new(), v: Vec::new() }
    }
}

impl Param {
    /// Zeros, `rows` of `row`; moments in eight bits when `eight`.
    pub fn zeros(rows: usize, row: usize, eight: bool) -> Self {
        let n = rows * row;
        let moments = if eight {
            Moments::Eight { m: zeros(n), v: zeros(n), scales: vec![[0; 2]; rows * row.div_ceil(BLOCK)] }
        } else {
            Moments::F32 { m: zeros(n), v: zeros(n) }
        };
        Param { w: zeros(n), moments, row }
    }

    /// A vector; its moments are f32.
    pub fn vector(n: usize) -> Self {
        Param::zeros(n, 1, false)
    }

    /// Fills the weights evenly from within ±`bound`.
    pub fn uniform(mut self, bound: f32, rng: &mut StdRng) -> Self {
        self.w.iter_mut().for_each(|w| *w = rng.random_range(-bound..bound));
        self
    }

    /// First and second moment of columns `at..at + into.0.len()` of a row.
    pub fn moments_of(&self, index: usize, m_into: &mut [f32], v_into: &mut [f32]) {
        let begin = index * self.row;
        match &self.moments {
            Moments::F32 { m, v } => {
                m_into.copy_from_slice(&m[begin..begin + self.row]);
                v_into.copy_from_slice(&v[begin..begin + self.row]);
            }
            Moments::Eight { m, v, scales } => {
                let scales = &scales[index * self.row.div_ceil(BLOCK)..];
                for (block, scales) in (0..self.row).step_by(BLOCK).zip(scales) {
                    let n = BLOCK.min(self.row - block);
                    let padded = |codes: &[u8]| {
                        let mut padded = [0; BLOCK];
                        padded[..n].copy_from_slice(&codes[begin + block..begin + block + n]);
                        padded
                    };
                    let moments = unpack_block(&padded(m), &padded(v), *scales);
                    m_into[block..block + n].copy_from_slice(&moments.m[..n]);
                    v_into[block..block + n].copy_from_slice(&moments.v[..n]);
                }
            }
        }
    }

    /// The whole, to be cut into pieces.
    pub fn cutter(&mut self) -> Piece<'_> {
        let moments = match &mut self.moments {
            Moments::F32 { m, v } => MomentRows::F32 { m, v },
            Moments::Eight { m, v, scales } => MomentRows::Eight { m, v, scales, first: 0 },
        };
        Piece { w: &mut self.w, moments, row: self.row }
    }
}

/// Some rows of a parameter.
pub(crate) struct Piece<'a> {
    pub w: &'a mut [f32],
    moments: MomentRows<'a>,
    pub row: usize,
}

/// Takes the first `n` off a slice.
pub(crate) fn cut<'a, T>(slice: &mut &'a mut [T], n: usize) -> &'a mut [T] {
    let (first, rest) = std::mem::take(slice).split_at_mut(n);
    *slice = rest;
    first
}

impl<'a> Piece<'a> {
    /// Takes the first `rows` off.
    pub fn take(&mut self, rows: usize) -> Piece<'a> {
        let n = rows * self.row;
        let moments = match &mut self.moments {
            MomentRows::F32 { m, v } => MomentRows::F32 { m: cut(m, n), v: cut(v, n) },
            MomentRows::Eight { m, v, scales, first } => {
                let taken = MomentRows::Eight { m: cut(m, n), v: cut(v, n), scales: cut(scales, rows * self.row.div_ceil(BLOCK)), first: *first };
                *first += rows;
                taken
            }
        };
        Piece { w: cut(&mut self.w, n), moments, row: self.row }
    }

    /// Columns `at..at + d` of the rows from `first` on, as the optimiser's kernels take them.
    pub fn rows(&mut self, first: usize, at: usize, d: usize) -> Rows<'_> {
        let begin = first * self.row;
        let moments = match &mut self.moments {
            MomentRows::F32 { m, v } => MomentRows::F32 { m: &mut m[begin..], v: &mut v[begin..] },
            MomentRows::Eight { m, v, scales, first: number } => {
                MomentRows::Eight { m: &mut m[begin..], v: &mut v[begin..], scales: &mut scales[first * self.row.div_ceil(BLOCK)..], first: *number + first }
            }
        };
        Rows { w: &mut self.w[begin..], moments, stride: self.row, at, d }
    }

    /// All of a vector as one row.
    pub fn vector(&mut self) -> Rows<'_> {
        let d = self.w.len();
        let mut rows = self.rows(0, 0, d);
        rows.stride = d;
        rows
    }
}

/// Zeros that ask the system for large pages before they are touched: rows of a tile lie far
/// apart, and with small pages each would miss the translation buffer.
pub(crate) fn zeros<T: Copy + Default>(n: usize) -> Vec<T> {
    let values = vec![T::default(); n];
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 1 << 21;
        let (start, bytes) = (values.as_ptr() as usize, std::mem::size_of_val(values.as_slice()));
        let aligned = start.next_multiple_of(PAGE);
        if let Some(length) = (start + bytes).checked_sub(aligned).filter(|&length| length >= PAGE) {
            // SAFETY: advice on memory that is ours; it changes no content, and a refusal harms nothing.
            unsafe { libc::madvise(aligned as *mut libc::c_void, length, libc::MADV_HUGEPAGE) };
        }
    }
    values
}
