"""Triton kernels of gpu_peers.py: a source layer's decoder rows [F, D] with lists of (token, feature, value).

Columns are taken in blocks, and a block is the slow index of each grid: the part of the rows or of the gradients that is
gathered from then stays in the card's L2. MANY list entries are read at once, so that as many loads are under way. No atomics.
"""

import triton
import triton.language as tl


@triton.jit
def decode(offsets, features, values, rows, total, D, stride, MANY: tl.constexpr, BLOCK: tl.constexpr):
    token, column = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < D
    end = tl.load(offsets + token + 1)
    sums = tl.zeros((MANY, BLOCK), tl.float32)
    for i in range(tl.load(offsets + token), end, MANY):
        at = i + tl.arange(0, MANY)
        feature = tl.load(features + at, mask=at < end, other=0).to(tl.int64)
        value = tl.load(values + at, mask=at < end, other=0.0).to(tl.float32)
        sums += value[:, None] * tl.load(rows + feature[:, None] * D + column[None, :], mask=(at < end)[:, None] & mask[None, :], other=0.0).to(tl.float32)
    place = total + token.to(tl.int64) * stride + column
    tl.store(place, tl.load(place, mask=mask, other=0.0) + tl.sum(sums, 0), mask=mask)


@triton.jit
def gradients(offsets, tokens, values, grad, rows, row_grad, dots, bias_grad, count, D, stride, DECODER: tl.constexpr, MANY: tl.constexpr, BLOCK: tl.constexpr):
    """A feature's row gradient; of a decoder also products of row and gradient a list entry, of an encoder the bias gradient."""
    feature, part = tl.program_id(0), tl.program_id(1)
    column = part * BLOCK + tl.arange(0, BLOCK)
    mask = column < D
    end = tl.load(offsets + feature + 1)
    place = feature.to(tl.int64) * D + column
    sums = tl.zeros((MANY, BLOCK), tl.float32)
    bias = tl.zeros((MANY,), tl.float32)
    if DECODER:
        row = tl.load(rows + place, mask=mask, other=0.0).to(tl.float32)
    for i in range(tl.load(offsets + feature), end, MANY):
        at = i + tl.arange(0, MANY)
        token = tl.load(tokens + at, mask=at < end, other=0).to(tl.int64)
        value = tl.load(values + at, mask=at < end, other=0.0).to(tl.float32)
        g = tl.load(grad + token[:, None] * stride + column[None, :], mask=(at < end)[:, None] & mask[None, :], other=0.0).to(tl.float32)
        sums += value[:, None] * g
        bias += value
        if DECODER:
            tl.store(dots + part.to(tl.int64) * count + at, tl.sum(g * row[None, :], 1), mask=at < end)
    tl.store(row_grad + place, tl.sum(sums, 0).to(row_grad.dtype.element_ty), mask=mask)
    if not DECODER:
        if part == 0:
            tl.store(bias_grad + feature, tl.sum(bias, 0).to(bias_grad.dtype.element_ty))
