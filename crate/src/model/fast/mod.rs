//! The forward pass's own CPU kernels: linear maps, gated MLP, causal attention, and what
//! lies between, with AVX-512; and the transpose of mixing, for the frozen backward.
//!
//! In and out: the tensors that candle would take and give. Each function answers `None` where it
//! has no kernel (another device or machine, few rows in f32, odd widths), and the caller goes on with
//! candle. Cost: 2 flops a weight and row, at 90 to 95 % of what the cores can
//! do; weights are read in place, so memory beyond inputs and outputs is one packed copy of the
//! activations.

#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, unused_imports, unused_variables))]

mod held;
#[cfg(target_arch = "x86_64")]
mod mix;
#[cfg(target_arch = "x86_64")]
mod product;
#[cfg(target_arch = "x86_64")]
mod rows;
#[cfg(target_arch = "x86_64")]
mod scattered;
#[cfg(target_arch = "x86_64")]
mod screen;
#[cfg(target_arch = "x86_64")]
mod tile;
#[cfg(target_arch = "x86_64")]
mod unmix;

#[cfg(target_arch = "x86_64")]
pub(crate) use screen::{exact_row, screens, Found, Grain, Rounded, Screen, CHUNK};

use super::parts::{Linear, Mlp};
use crate::error::Result;
use candle_core::{CpuStorage, DType, Storage, Tensor, D};

/// From how many rows on the kernels are used: below, most of a register's lanes would be idle.
const ROWS: usize = 8;

/// Calls `work` with the values of contiguous f32 tensors on the CPU; `None` for others, and for
/// tensors that candle differentiates: what is made here has no graph behind it.
fn with_values<const N: usize, T>(tensors: [&Tensor; N], work: impl FnOnce([&[f32]; N]) -> T) -> Option<T> {
    if tensors.iter().any(|tensor| tensor.track_op()) {
        return None;
    }
    let held = tensors.map(Tensor::storage_and_layout);
    let mut values = [&[] as &[f32]; N];
    for (values, (storage, layout)) in values.iter_mut().zip(&held) {
        let (Storage::Cpu(CpuStorage::F32(all)), Some((from, to))) = (&**storage, layout.contiguous_offsets()) else { return None };
        *values = &all[from..to];
    }
    Some(work(values))
}

/// Whether `x [..., depth]` has enough rows, and the machine what the kernels need.
#[cfg(target_arch = "x86_64")]
fn suits(x: &Tensor) -> Result<bool> {
    let depth = x.dim(D::Minus1)?;
    Ok(x.device().is_cpu() && depth > 0 && depth.is_multiple_of(4) && x.elem_count() >= ROWS * depth && is_x86_feature_detected!("avx512f"))
}

#[cfg(not(target_arch = "x86_64"))]
fn suits(_: &Tensor) -> Result<bool> {
    Ok(false)
}

/// The most rows that [`panel_times`] takes, if this machine and `depth` suit it.
pub(crate) fn panel_rows(depth: usize) -> Option<usize> {
    #[cfg(target_arch = "x86_64")]
    if depth > 0 && depth.is_multiple_of(4) && is_x86_feature_detected!("avx512f") {
        return Some(tile::MOST * tile::LANES);
    }
    None
}

/// `out [rows, outs] = x wᵀ + bias` on the calling thread, for at most [`panel_rows`] rows of `depth`;
/// `packed` is reused between calls.
pub(crate) fn panel_times(x: &[f32], depth: usize, w: &[f32], bias: &[f32], out: &mut [f32], packed: &mut Vec<f32>) {
    assert!(panel_rows(depth).is_some_and(|most| x.len() <= most * depth) && w.len() == bias.len() * depth && out.len() * depth == x.len() * bias.len());
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `panel_rows` found AVX-512F; lengths were checked.
    unsafe {
        product::one_panel(x, depth, w, bias, out, packed)
    }
}

/// `x`'s shape with another last dimension.
fn widened(x: &Tensor, width: usize) -> Vec<usize> {
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = width;
    }
    shape
}

/// `x [..., in]` times the map's `[out, in]`, with its bias.
pub(crate) fn linear(x: &Tensor, map: &Linear) -> Result<Option<Tensor>> {
    if !suits(x)? {
        return few(x, map);
    }
    #[cfg(target_arch = "x86_64")]
    {
        let x = x.contiguous()?;
        return match packed(&x)? {
            Some(packed) => applied(&packed, &x, map),
            None => Ok(None),
        };
    }
    #[allow(unreachable_code)]
    Ok(None)
}

/// `x [..., out]` times the map's `[out, in]` as it lies: the transpose of [`linear`].
pub(super) fn linear_back(x: &Tensor, weight: &Tensor) -> Result<Option<Tensor>> {
    if !suits(x)? || x.dim(D::Minus1)? != weight.dim(0)? {
        return Ok(None);
    }
    #[cfg(target_arch = "x86_64")]
    {
        let x = x.contiguous()?;
        let Some(packed) = packed(&x)? else { return Ok(None) };
        // SAFETY: as in `applied`.
        let y = with_values([weight], |[weight]| unsafe { packed.times_turned(weight) });
        let shape = widened(&x, weight.dim(1)?);
        return Ok(y.map(|y| Tensor::from_vec(y, shape, x.device())).transpose()?);
    }
    #[allow(unreachable_code)]
    Ok(None)
}

/// `x [m, depth] · rows [n, depth]ᵀ`, `[m, n]`; `None` where there is no kernel for it.
pub(super) fn times(x: &[f32], rows: &[f32], depth: usize) -> Option<Vec<f32>> {
    #[cfg(target_arch = "x86_64")]
    if depth > 0 && depth.is_multiple_of(4) && x.len() >= ROWS * depth && is_x86_feature_detected!("avx512f") {
        // SAFETY: machine and depth are checked above, lengths where they are used.
        return Some(unsafe { product::Panels::pack(x, depth).times(held::Held::F32(rows), None) });
    }
    None
}

/// `x [m, depth] · rows [n, depth]ᵀ`, `[m, n]`, of rows that lie anywhere; `None` where there is no kernel for it.
pub(super) fn times_rows(x: &[f32], rows: &[&[f32]], depth: usize) -> Option<Vec<f32>> {
    #[cfg(target_arch = "x86_64")]
    if depth > 0 && depth.is_multiple_of(16) && is_x86_feature_detected!("avx512f") {
        // SAFETY: machine and depth are checked above, lengths where they are used.
        return Some(unsafe { scattered::times(x, rows, depth) });
    }
    None
}

/// As [`linear`] for few rows, or without the panels' instructions, of a map held in a half type; f32
/// is candle's.
fn few(x: &Tensor, map: &Linear) -> Result<Option<Tensor>> {
    let (outs, depth) = map.weight.dims2()?;
    if map.weight.dtype() == DType::F32 || depth == 0 || x.dim(D::Minus1)? != depth {
        return Ok(None);
    }
    let x = x.contiguous()?;
    let times = |bias: Option<&[f32]>| with_values([&x], |[x]| held::with_held(&map.weight, |weight| held::times(x, depth, weight, bias))).flatten();
    let y = match &map.bias {
        Some(bias) => with_values([bias], |[bias]| times(Some(bias))).flatten(),
        None => times(None),
    };
    Ok(y.map(|y| Tensor::from_vec(y, widened(&x, outs), x.device())).transpose()?)
}

#[cfg(target_arch = "x86_64")]
fn packed(x: &Tensor) -> Result<Option<product::Panels>> {
    let depth = x.dim(D::Minus1)?;
    // SAFETY: `suits` has checked the machine and the depth.
    Ok(with_values([x], |[x]| unsafe { product::Panels::pack(x, depth) }))
}

/// One map over packed rows, shaped as `like [..., _]`.
#[cfg(target_arch = "x86_64")]
fn applied(packed: &product::Panels, like: &Tensor, map: &Linear) -> Result<Option<Tensor>> {
    let (outs, depth) = map.weight.dims2()?;
    if depth != packed.depth() {
        return Ok(None);
    }
    // SAFETY: `suits` has checked the machine; lengths are checked where they are used.
    let times = |bias: Option<&[f32]>| held::with_held(&map.weight, |weight| unsafe { packed.times(weight, bias) });
    let y = match &map.bias {
        Some(bias) => with_values([bias], |[bias]| times(Some(bias))).flatten(),
        None => times(None),
    };
    Ok(y.map(|y| Tensor::from_vec(y, widened(like, outs), like.device())).transpose()?)
}

/// A gated MLP without biases in gate and up.
pub(crate) fn gated_mlp(x: &Tensor, mlp: &Mlp) -> Result<Option<Tensor>> {
    let Some(gate) = &mlp.gate else { return Ok(None) };
    if !suits(x)? || gate.bias.is_some() || mlp.up.bias.is_some() {
        return Ok(None);
    }
    #[cfg(target_arch = "x86_64")]
    {
        let x = x.contiguous()?;
        if !product::has(mlp.activation) || !mlp.up.weight.dim(0)?.is_multiple_of(8) {
            return Ok(None);
        }
        let Some(packed) = packed(&x)? else { return Ok(None) };
        // SAFETY: as in `applied`.
        let gated = |gate: held::Held<'_>| held::with_held(&mlp.up.weight, |up| unsafe { packed.gated(gate, up, mlp.activation) });
        let hidden = held::with_held(&gate.weight, gated).flatten();
        drop(packed);
        return match hidden {
            Some(hidden) => applied(&hidden, &x, &mlp.down),
            None => Ok(None),
        };
    }
    #[allow(unreachable_code)]
    Ok(None)
}

/// Causal attention: `q [B, H, T, h]`, `k` and `v [B, K, past + T, h]` to `[B, T, H·h]`.
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Option<Tensor>> {
    let (batch, heads, tokens, width) = q.dims4()?;
    let (_, groups, keys, _) = k.dims4()?;
    if tokens < 2 || !width.is_multiple_of(8) || scale <= 0.0 || !suits(q)? {
        return Ok(None);
    }
    #[cfg(target_arch = "x86_64")]
    {
        let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
        let shape = mix::Shape { batch, heads, groups, width, tokens, start: keys - tokens, scale: scale as f32 };
        // SAFETY: as in `applied`.
        let y = with_values([&q, &k, &v], |[q, k, v]| unsafe { mix::causal(shape, q, k, v) });
        return Ok(y.map(|y| Tensor::from_vec(y, (batch, tokens, heads * width), q.device())).transpose()?);
    }
    #[allow(unreachable_code)]
    Ok(None)
}

/// How heads lie, and how many positions each target has.
#[derive(Clone, Copy)]
pub(crate) struct Unmix<'a> {
    pub heads: usize,
    pub groups: usize,
    /// Width of a head.
    pub width: usize,
    /// Positions of the pattern, `[heads, keys, keys]`.
    pub keys: usize,
    pub lengths: &'a [usize],
}

/// Adds to `out`, `Σ lengths` rows of `[groups · width]`, what the transpose of mixing makes of `mixed`, as many rows of
/// `[heads · width]`; false where there is no kernel for it, and nothing is done.
pub(super) fn unmix(shape: Unmix<'_>, pattern: &[f32], mixed: &[f32], out: &mut [f32]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if shape.width.is_multiple_of(16) && is_x86_feature_detected!("avx512f") {
        // SAFETY: machine and width are checked above, lengths where they are used.
        unsafe { unmix::unmix(shape, pattern, mixed, out) };
        return true;
    }
    false
}

/// A norm over the last dimension, as [`super::parts::Norm::forward`].
pub(crate) fn norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64, centre: bool) -> Result<Option<Tensor>> {
    if !suits(x)? {
        return Ok(None);
    }
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: `suits` has checked the machine.
        let y = match bias {
            Some(bias) => with_values([x, weight, bias], |[x, weight, bias]| unsafe { rows::norm(x, weight, Some(bias), eps as f32, centre) }),
            None => with_values([x, weight], |[x, weight]| unsafe { rows::norm(x, weight, None, eps as f32, centre) }),
        };
        return Ok(y.map(|y| Tensor::from_vec(y, x.shape(), x.device())).transpose()?);
    }
    #[allow(unreachable_code)]
    Ok(None)
}

/// `a + b` of one shape.
pub(crate) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    #[cfg(target_arch = "x86_64")]
    if a.dims() == b.dims() && suits(a)? {
        // SAFETY: `suits` has checked the machine.
        if let Some(y) = with_values([a, b], |[a, b]| unsafe { rows::add(a, b) }) {
            return Ok(Tensor::from_vec(y, a.shape(), a.device())?);
        }
    }
    Ok((a + b)?)
}

/// `x [B, T, count · h]` to `[B, count, T, h]`, contiguous.
pub(crate) fn by_head(x: &Tensor, count: usize) -> Result<Tensor> {
    let (batch, tokens, all) = x.dims3()?;
    let width = all / count;
    #[cfg(target_arch = "x86_64")]
    if suits(x)? {
        if let Some(y) = with_values([x], |[x]| rows::by_head(x, tokens, count, width)) {
            return Ok(Tensor::from_vec(y, (batch, count, tokens, width), x.device())?);
        }
    }
    Ok(x.reshape((batch, tokens, count, width))?.transpose(1, 2)?.contiguous()?)
}

/// Rotary positions of `x [B, heads, T, h]`, with tables `[T, h/2]`.
pub(crate) fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor, interleaved: bool) -> Result<Tensor> {
    let x = x.contiguous()?;
    #[cfg(target_arch = "x86_64")]
    if cos.rank() == 2 && 2 * cos.dim(1)? == x.dim(D::Minus1)? && suits(&x)? {
        let tokens = x.dim(2)?;
        // SAFETY: `suits` has checked the machine.
        if let Some(y) = with_values([&x, cos, sin], |[x, cos, sin]| unsafe { rows::rotate(x, cos, sin, tokens, interleaved) }) {
            return Ok(Tensor::from_vec(y, x.shape(), x.device())?);
        }
    }
    let rotate = if interleaved { candle_nn::rotary_emb::rope_i } else { candle_nn::rotary_emb::rope };
    Ok(rotate(&x, cos, sin)?)
}
