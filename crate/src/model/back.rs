//! Kernels of the frozen backward on the CPU: one pass over memory each, on the thread that calls.
//!
//! candle's elementwise operations share one pool for the whole process, so blocks of targets that
//! run side by side would wait for each other (measured in attribution: a third of the time). These
//! do not. Other devices use candle's operations, see `Norm::back_frozen` and `attention::back`.

use crate::error::Result;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Error, InplaceOp2, Layout, Shape, Tensor};

type Kernel<T> = candle_core::Result<T>;

fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Kernel<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((from, to))) => Ok(&values[from..to]),
        _ => Err(Error::Msg("frozen backward: a contiguous f32 tensor was needed".into())),
    }
}

/// Gradient through a norm with its scale held: `centre(g · weight) · scale`, where `g` is
/// `[B, T, d]`, `weight [d]` and `scale [T, 1]`.
pub(super) fn norm(g: &Tensor, weight: &Tensor, scale: &Tensor, centre: bool) -> Result<Tensor> {
    Ok(g.contiguous()?.apply_op3_no_bwd(weight, &scale.contiguous()?, &NormBack { centre })?)
}

struct NormBack {
    centre: bool,
}

impl CustomOp3 for NormBack {
    fn name(&self) -> &'static str {
        "norm-back"
    }

    fn cpu_fwd(&self, g: &CpuStorage, gl: &Layout, w: &CpuStorage, wl: &Layout, s: &CpuStorage, sl: &Layout) -> Kernel<(CpuStorage, Shape)> {
        let (g, weight, scale) = (slice(g, gl)?, slice(w, wl)?, slice(s, sl)?);
        let mut out = vec![0.0_f32; g.len()];
        for (row, (out, g)) in out.chunks_exact_mut(weight.len()).zip(g.chunks_exact(weight.len())).enumerate() {
            let mut sum = 0.0;
            for ((out, g), weight) in out.iter_mut().zip(g).zip(weight) {
                *out = g * weight;
                sum += *out;
            }
            let (scale, mean) = (scale[row % scale.len()], if self.centre { sum / weight.len() as f32 } else { 0.0 });
            out.iter_mut().for_each(|out| *out = (*out - mean) * scale);
        }
        Ok((CpuStorage::F32(out), gl.shape().clone()))
    }
}

/// Gradient at the values, `[B, T, groups · h]`, given the gradient `mixed [B, T, heads · h]` at what
/// the patterns mixed: `Σ_{q ≥ key} P[head, q, key] · mixed[q, head]`, heads of a group summed.
/// `pattern` is `[heads, T', T']` with T' ≥ T.
pub(super) fn values(mixed: &Tensor, pattern: &Tensor, heads: usize, groups: usize) -> Result<Tensor> {
    Ok(mixed.contiguous()?.apply_op2_no_bwd(&pattern.contiguous()?, &ValuesBack { heads, groups })?)
}

struct ValuesBack {
    heads: usize,
    groups: usize,
}

impl CustomOp2 for ValuesBack {
    fn name(&self) -> &'static str {
        "values-back"
    }

    fn cpu_fwd(&self, m: &CpuStorage, ml: &Layout, p: &CpuStorage, pl: &Layout) -> Kernel<(CpuStorage, Shape)> {
        let (mixed, pattern) = (slice(m, ml)?, slice(p, pl)?);
        let (batch, tokens, from) = ml.shape().dims3()?;
        let (_, _, keys) = pl.shape().dims3()?;
        let width = from / self.heads;
        let to = self.groups * width;
        let mut out = vec![0.0_f32; batch * tokens * to];
        for (out, mixed) in out.chunks_exact_mut(tokens * to).zip(mixed.chunks_exact(tokens * from)) {
            for (key, out) in out.chunks_exact_mut(to).enumerate() {
                for query in key..tokens {
                    let row = &mixed[query * from..(query + 1) * from];
                    for (head, mixed) in row.chunks_exact(width).enumerate() {
                        let weight = pattern[(head * keys + query) * keys + key];
                        let group = head * self.groups / self.heads;
                        out[group * width..(group + 1) * width].iter_mut().zip(mixed).for_each(|(out, mixed)| *out += weight * mixed);
                    }
                }
            }
        }
        Ok((CpuStorage::F32(out), Shape::from((batch, tokens, to))))
    }
}

/// Adds `other` to `to`, in place: `to` must be the caller's alone.
pub(crate) fn add_to(to: &Tensor, other: &Tensor) -> Result<()> {
    Ok(to.inplace_op2(&other.contiguous()?, &AddTo)?)
}

struct AddTo;

impl InplaceOp2 for AddTo {
    fn name(&self) -> &'static str {
        "add-to"
    }

    fn cpu_fwd(&self, to: &mut CpuStorage, tl: &Layout, other: &CpuStorage, ol: &Layout) -> Kernel<()> {
        let other = slice(other, ol)?;
        let (CpuStorage::F32(to), Some((from, end))) = (to, tl.contiguous_offsets()) else {
            return Err(Error::Msg("frozen backward: a contiguous f32 tensor was needed".into()));
        };
        to[from..end].iter_mut().zip(other).for_each(|(to, other)| *to += other);
        Ok(())
    }
}
