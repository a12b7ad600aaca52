//! Kernels of the frozen backward on the CPU: one pass over memory each, on the thread that calls.
//!
//! candle's elementwise operations share one pool for the whole process, so blocks of targets that
//! run side by side would wait for each other (measured in attribution: a third of the time). These
//! do not. Other devices use candle's operations, see `Norm::back_frozen` and `attention::back`.

use super::fast;
use super::flow::Flow;
use crate::error::Result;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Error, InplaceOp2, Layout, Shape, Tensor};
use std::ops::Range;
use std::sync::Arc;

type Kernel<T> = candle_core::Result<T>;
type Spans = Arc<[Range<usize>]>;

fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Kernel<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((from, to))) => Ok(&values[from..to]),
        _ => Err(Error::Msg("frozen backward: a contiguous f32 tensor was needed".into())),
    }
}

/// Gradient through a norm with its scale held: `centre(g · weight) · scale`, where `weight` is `[d]`
/// and `scale [T, 1]`.
pub(super) fn norm(g: &Flow, weight: &Tensor, scale: &Tensor, centre: bool) -> Result<Flow> {
    Ok(g.with(g.rows.contiguous()?.apply_op3_no_bwd(weight, &scale.contiguous()?, &NormBack { centre, spans: g.spans.clone() })?))
}

struct NormBack {
    centre: bool,
    spans: Spans,
}

impl CustomOp3 for NormBack {
    fn name(&self) -> &'static str {
        "norm-back"
    }

    fn cpu_fwd(&self, g: &CpuStorage, gl: &Layout, w: &CpuStorage, wl: &Layout, s: &CpuStorage, sl: &Layout) -> Kernel<(CpuStorage, Shape)> {
        let (g, weight, scale) = (slice(g, gl)?, slice(w, wl)?, slice(s, sl)?);
        let mut out = Vec::with_capacity(g.len());
        let positions = self.spans.iter().flat_map(|span| span.clone());
        for (position, g) in positions.zip(g.chunks_exact(weight.len())) {
            let (scale, mean) = (scale[position], if self.centre { dot(g, weight) / weight.len() as f32 } else { 0.0 });
            out.extend(g.iter().zip(weight).map(|(g, weight)| (g * weight - mean) * scale));
        }
        Ok((CpuStorage::F32(out), gl.shape().clone()))
    }
}

/// Sum of products, in lanes.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0_f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

/// `a [m, width] · rows [n, width]ᵀ`, `[m, n]`, of rows that lie anywhere; in parallel where the calling
/// pool has threads.
pub(crate) fn products(a: &[f32], rows: &[&[f32]], width: usize) -> Vec<f32> {
    fast::times_rows(a, rows, width).unwrap_or_else(|| matrix_products(a, &rows.concat(), width))
}

/// The same of a matrix `rows`.
pub(crate) fn matrix_products(a: &[f32], rows: &[f32], width: usize) -> Vec<f32> {
    if let Some(out) = fast::times(a, rows, width) {
        return out;
    }
    let (m, n) = (a.len() / width.max(1), rows.len() / width.max(1));
    let mut out = vec![0.0_f32; m * n];
    // SAFETY: `out` is [m, n], `a` [m, width] and `rows` [n, width], as reckoned above; nothing aliases `out`.
    unsafe {
        gemm::gemm(
            m, n, width,
            out.as_mut_ptr(), 1, n as isize, false,
            a.as_ptr(), 1, width as isize,
            rows.as_ptr(), width as isize, 1,
            0.0, 1.0, false, false, false,
            gemm::Parallelism::Rayon(0),
        );
    }
    out
}

/// How heads share values.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    pub heads: usize,
    pub groups: usize,
}

/// Gradient at the values, rows of `[groups · h]`, given the gradient `mixed`, rows of `[heads · h]`, at
/// what the patterns mixed: `Σ_{q ≥ key} P[head, q, key] · mixed[q, head]`, heads of a group summed.
/// `pattern` is `[heads, T, T]`; spans must start at 0.
pub(super) fn values(mixed: &Flow, pattern: &Tensor, heads: Heads) -> Result<Flow> {
    Ok(mixed.with(mixed.rows.contiguous()?.apply_op2_no_bwd(&pattern.contiguous()?, &ValuesBack { heads, spans: mixed.spans.clone() })?))
}

struct ValuesBack {
    heads: Heads,
    spans: Spans,
}

impl CustomOp2 for ValuesBack {
    fn name(&self) -> &'static str {
        "values-back"
    }

    fn cpu_fwd(&self, m: &CpuStorage, ml: &Layout, p: &CpuStorage, pl: &Layout) -> Kernel<(CpuStorage, Shape)> {
        let (mixed, pattern) = (slice(m, ml)?, slice(p, pl)?);
        let Heads { heads, groups } = self.heads;
        let (rows, from) = ml.shape().dims2()?;
        let (_, _, keys) = pl.shape().dims3()?;
        let width = from / heads;
        let to = groups * width;
        let lengths: Vec<usize> = self.spans.iter().map(|span| span.end).collect();
        let mut out = vec![0.0_f32; rows * to];
        if !fast::unmix(fast::Unmix { heads, groups, width, keys, lengths: &lengths }, pattern, mixed, &mut out) {
            let mut first = 0;
            for length in lengths {
                let (mixed, out) = (&mixed[first * from..(first + length) * from], &mut out[first * to..(first + length) * to]);
                first += length;
                for (key, out) in out.chunks_exact_mut(to).enumerate() {
                    for (query, row) in mixed.chunks_exact(from).enumerate().skip(key) {
                        for (head, mixed) in row.chunks_exact(width).enumerate() {
                            let weight = pattern[(head * keys + query) * keys + key];
                            let group = head * groups / heads;
                            out[group * width..(group + 1) * width].iter_mut().zip(mixed).for_each(|(out, mixed)| *out += weight * mixed);
                        }
                    }
                }
            }
        }
        Ok((CpuStorage::F32(out), Shape::from((rows, to))))
    }
}

/// What single rows become: target b stands at query `spans[b].start` only, so the keys up to it see
/// `Σ_head P[head, query, key] · through[b, head]`, where `through [B, heads, d]` is what each head makes
/// of the row. Gives spans from 0 on; heads instead of d² products a position.
pub(super) fn spread(points: &Flow, through: &Tensor, pattern: &Tensor) -> Result<Flow> {
    let spans: Spans = points.spans.iter().map(|span| 0..span.end).collect();
    let rows = through.contiguous()?.apply_op2_no_bwd(&pattern.contiguous()?, &Spread { spans: spans.clone() })?;
    Ok(Flow { rows, spans })
}

struct Spread {
    spans: Spans,
}

impl CustomOp2 for Spread {
    fn name(&self) -> &'static str {
        "spread"
    }

    fn cpu_fwd(&self, t: &CpuStorage, tl: &Layout, p: &CpuStorage, pl: &Layout) -> Kernel<(CpuStorage, Shape)> {
        let (through, pattern) = (slice(t, tl)?, slice(p, pl)?);
        let (_, heads, width) = tl.shape().dims3()?;
        let (_, _, keys) = pl.shape().dims3()?;
        let rows: usize = self.spans.iter().map(Range::len).sum();
        let mut out = vec![0.0_f32; rows * width];
        let mut rest = out.as_mut_slice();
        for (span, through) in self.spans.iter().zip(through.chunks_exact(heads * width)) {
            let (now, later) = rest.split_at_mut(span.len() * width);
            rest = later;
            let query = (span.end - 1) * keys;
            if pattern.len() < (heads - 1) * keys * keys + query + span.len() {
                return Err(Error::Msg(format!("frozen backward: position {} beyond the run's pattern", span.end - 1)));
            }
            // SAFETY: `now` is [length, width], `through` [heads, width]; the pattern's entries of this query
            // reach (heads − 1)·keys² + query + length, checked above; nothing aliases `now`.
            unsafe {
                gemm::gemm(
                    span.len(), width, heads,
                    now.as_mut_ptr(), 1, width as isize, false,
                    pattern.as_ptr().add(query), (keys * keys) as isize, 1,
                    through.as_ptr(), 1, width as isize,
                    0.0, 1.0, false, false, false,
                    gemm::Parallelism::None,
                );
            }
        }
        Ok((CpuStorage::F32(out), Shape::from((rows, width))))
    }
}

/// Adds `other` to `to`, in place, where `to` has rows from position 0 on up to where `other`'s end: `to`
/// must be the caller's alone.
pub(super) fn add_to(to: &Flow, other: &Flow) -> Result<()> {
    Ok(to.rows.inplace_op2(&other.rows.contiguous()?, &AddTo { spans: other.spans.clone() })?)
}

struct AddTo {
    spans: Spans,
}

impl InplaceOp2 for AddTo {
    fn name(&self) -> &'static str {
        "add-to"
    }

    fn cpu_fwd(&self, to: &mut CpuStorage, tl: &Layout, other: &CpuStorage, ol: &Layout) -> Kernel<()> {
        let other = slice(other, ol)?;
        let (_, width) = ol.shape().dims2()?;
        let (CpuStorage::F32(to), Some((from, end))) = (to, tl.contiguous_offsets()) else {
            return Err(Error::Msg("frozen backward: a contiguous f32 tensor was needed".into()));
        };
        let (mut to, mut other) = (&mut to[from..end], other);
        for span in self.spans.iter() {
            let (now, later) = to.split_at_mut(span.end * width);
            let (more, others) = other.split_at(span.len() * width);
            now[span.start * width..].iter_mut().zip(more).for_each(|(to, other)| *to += other);
            (to, other) = (later, others);
        }
        Ok(())
    }
}
