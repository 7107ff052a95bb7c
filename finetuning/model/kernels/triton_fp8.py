"""Triton kernels that bring matrices into fp8, behind `finetuning.model.kernels.ops`, which says what each computes.

Like those of `triton_low_rank`: row strides are arguments, so that a matrix may be part of a wider one.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

MAXIMUM_ROWS, MAXIMUM_COLUMNS = 256, 128  # that a program finds the maximum of, and its columns
QUANTISE_ROWS, QUANTISE_COLUMNS = 128, 64
TRANSPOSE_TILE = 128


@triton.jit
def store_quantized(values, places, factor_place, inside, largest: tl.constexpr, min_scale: tl.constexpr):
    """A whole row in fp8, and its factor."""
    factor = tl.maximum(tl.max(tl.abs(values)).to(tl.float32) / largest, min_scale)
    # One division a row: one for each value took a third longer than the row's way through memory.
    tl.store(places, (values.to(tl.float32) * (1 / factor)).to(places.dtype.element_ty), mask=inside)
    tl.store(factor_place, factor)


def quantize_rows(
    x_TD: Tensor, columns_D: Tensor | None, out_TD: Tensor, largest: float, min_scale: float
) -> tuple[Tensor, Tensor]:
    num_rows, size = x_TD.shape
    factors = torch.empty((num_rows, 1), dtype=torch.float32, device=x_TD.device)
    block = triton.next_power_of_2(size)
    _quantize_rows[(num_rows,)](
        x_TD,
        x_TD.stride(0),
        out_TD,
        out_TD.stride(0),
        factors,
        factors if columns_D is None else columns_D,
        size,
        largest=largest,
        min_scale=min_scale,
        BLOCK=block,
        MULTIPLY=columns_D is not None,
        num_warps=4 if block <= 8192 else 8,
    )
    return out_TD, factors


@triton.jit
def _quantize_rows(
    x,
    stride,
    out,
    out_stride,
    factors,
    multipliers,
    size: tl.constexpr,
    largest: tl.constexpr,
    min_scale: tl.constexpr,
    BLOCK: tl.constexpr,
    MULTIPLY: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    values = tl.load(x + row * stride + columns, mask=inside, other=0.0)  # as they are: a row in float32 leaves no registers
    if MULTIPLY:
        values = values * tl.load(multipliers + columns, mask=inside, other=0.0)
    store_quantized(values, out + row * out_stride + columns, factors + row, inside, largest, min_scale)


def quantize_beside(a_RI: Tensor, factors_I1: Tensor, out_IR: Tensor, largest: float, min_scale: float) -> Tensor:
    rank, size = a_RI.shape
    multipliers = torch.empty(rank, dtype=torch.float32, device=a_RI.device)
    _quantize_beside[(rank,)](
        a_RI,
        factors_I1,
        out_IR,
        out_IR.stride(0),
        multipliers,
        size,
        largest=largest,
        min_scale=min_scale,
        BLOCK=triton.next_power_of_2(size),
        num_warps=8,
    )
    return multipliers


@triton.jit
def _quantize_beside(
    a,
    factors,
    out,
    stride,
    multipliers,
    size: tl.constexpr,
    largest: tl.constexpr,
    min_scale: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rank = tl.program_id(0)
    places = tl.arange(0, BLOCK)
    inside = places < size
    values = tl.load(a + rank * size + places, mask=inside, other=0.0).to(tl.float32)
    values /= tl.load(factors + places, mask=inside, other=1.0)
    store_quantized(values, out + places.to(tl.int64) * stride + rank, multipliers + rank, inside, largest, min_scale)


def quantize_columns(x_TD: Tensor, largest: float, min_scale: float) -> tuple[Tensor, Tensor]:
    num_rows, size = x_TD.shape
    out = torch.empty((size, num_rows), dtype=torch.float8_e4m3fn, device=x_TD.device)
    highest = torch.zeros(size, dtype=torch.float32, device=x_TD.device)
    grid = (triton.cdiv(size, MAXIMUM_COLUMNS), triton.cdiv(num_rows, MAXIMUM_ROWS))
    _column_maximum[grid](
        x_TD, x_TD.stride(0), highest, num_rows, size, ROWS=16, COLUMNS=MAXIMUM_COLUMNS, TILES=MAXIMUM_ROWS // 16, num_warps=4
    )
    factors = (highest / largest).clamp_min_(min_scale)[:, None]
    grid = (triton.cdiv(size, QUANTISE_COLUMNS), triton.cdiv(num_rows, QUANTISE_ROWS))
    _quantize_columns[grid](
        x_TD, x_TD.stride(0), out, factors, num_rows, size, ROWS=QUANTISE_ROWS, COLUMNS=QUANTISE_COLUMNS, num_warps=8
    )
    return out, factors


@triton.jit
def _column_maximum(
    x, stride, highest, num_rows, size: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILES: tl.constexpr
):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    found = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tile in tl.range(0, TILES, num_stages=3):
        rows = (tl.program_id(1).to(tl.int64) * TILES + tile) * ROWS + tl.arange(0, ROWS)
        inside = (rows[:, None] < num_rows) & (columns[None, :] < size)
        values = tl.load(x + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)
        found = tl.maximum(found, tl.abs(values))
    tl.atomic_max(highest + columns, tl.max(found, 0), mask=columns < size)


@triton.jit
def _quantize_columns(x, stride, out, factors, num_rows, size: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    rows = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows[:, None] < num_rows) & (columns[None, :] < size)
    values = tl.load(x + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(factors + columns, mask=columns < size, other=1.0)
    transposed = tl.trans((values * (1 / factor)[None, :]).to(out.dtype.element_ty))
    inside = (columns[:, None] < size) & (rows[None, :] < num_rows)
    tl.store(out + columns[:, None] * num_rows + rows[None, :], transposed, mask=inside)


def transpose(x_OI: Tensor) -> Tensor:
    num_rows, size = x_OI.shape
    out = torch.empty((size, num_rows), dtype=torch.uint8, device=x_OI.device)
    grid = (triton.cdiv(size, TRANSPOSE_TILE), triton.cdiv(num_rows, TRANSPOSE_TILE))
    _transpose[grid](x_OI.view(torch.uint8), x_OI.stride(0), out, num_rows, size, TILE=TRANSPOSE_TILE, num_warps=8)
    return out.view(x_OI.dtype)


@triton.jit
def _transpose(x, stride, out, num_rows, size, TILE: tl.constexpr):
    rows = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    columns = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = (rows[:, None] < num_rows) & (columns[None, :] < size)
    values = tl.load(x + rows[:, None] * stride + columns[None, :], mask=inside, other=0)
    inside = (columns[:, None] < size) & (rows[None, :] < num_rows)
    tl.store(out + columns[:, None] * num_rows + rows[None, :], tl.trans(values), mask=inside)
