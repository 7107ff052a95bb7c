"""Triton kernels between the products of an MLP: silu(gate) * up, with the updates of both, and its gradients.

See `finetuning.model.kernels.ops` for what each computes, and `triton_low_rank` for tiles, strides and padded ranks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from finetuning.model.kernels.triton_low_rank import (
    MIN_DEPTH,
    LowRank,
    add_db,
    in_flight,
    load_rows,
    load_transposed,
    narrow,
    new_db_parts,
    padded,
    store_db,
    unpacked,
)
from finetuning.model.kernels.triton_rows import exp

# Rows and columns of a tile, tiles that a program handles one below the other, warps, tiles in flight.
GATE_TILING = (32, 128, 4, 4, 3)
GATE_BACKWARD_TILING = (16, 128, 4, 4, 3)
GATE_SUMS_TILING = (32, 64, 32, 4, 3)


@triton.jit
def _sigmoid(x):
    """As exact; with it, the gate's forward pass is bound by memory instead of instructions."""
    return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [1 + exp(-x)], tl.float32, True, 1)


def gate(gate_TF: Tensor, up_TF: Tensor, updates: tuple[LowRank, LowRank] | None) -> Tensor:
    num_rows, size = gate_TF.shape
    (t_gate, b_gate, rank), (t_up, b_up, _) = (unpacked(u, gate_TF) for u in updates or (None, None))
    out = torch.empty((num_rows, size), dtype=gate_TF.dtype, device=gate_TF.device)
    rows, columns, tiles, warps, stages = GATE_TILING
    columns, stages = narrow(columns, rank), in_flight(stages, rank)
    grid = (triton.cdiv(size, columns), triton.cdiv(num_rows, rows * tiles))
    _gate[grid](
        gate_TF,
        up_TF,
        gate_TF.stride(0),
        t_gate,
        t_up,
        t_gate.stride(0),
        b_gate,
        b_up,
        out,
        num_rows,
        size,
        rank,
        padded(rank),
        ROWS=rows,
        COLUMNS=columns,
        TILES=tiles,
        STAGES=stages,
        num_warps=warps,
    )
    return out


@triton.jit(do_not_specialize=["num_rows"])
def _gate(
    gate,
    up,
    stride,
    t_gate,
    t_up,
    t_stride,
    b_gate,
    b_up,
    out,
    num_rows,
    size: tl.constexpr,
    rank: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILES: tl.constexpr,
    STAGES: tl.constexpr,
):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    if RANK > 0:
        ranks = tl.arange(0, RANK)
        b_gate_tile = load_transposed(b_gate, columns, ranks, size, rank)
        b_up_tile = load_transposed(b_up, columns, ranks, size, rank)
    for tile in tl.range(0, TILES, num_stages=STAGES):
        rows = (tl.program_id(1).to(tl.int64) * TILES + tile) * ROWS + tl.arange(0, ROWS)
        inside = (rows[:, None] < num_rows) & (columns[None, :] < size)
        places = rows[:, None] * stride + columns[None, :]
        g = tl.load(gate + places, mask=inside, other=0.0).to(tl.float32)
        u = tl.load(up + places, mask=inside, other=0.0).to(tl.float32)
        if RANK > 0:
            g += tl.dot(load_rows(t_gate, t_stride, rows, ranks, num_rows, rank), b_gate_tile)
            u += tl.dot(load_rows(t_up, t_stride, rows, ranks, num_rows, rank), b_up_tile)
        result = g * _sigmoid(g) * u
        tl.store(out + rows[:, None] * size + columns[None, :], result.to(out.dtype.element_ty), mask=inside)


def gate_backward(grad_TF: Tensor, gate_TF: Tensor, up_TF: Tensor, grad_gate_TF: Tensor, grad_up_TF: Tensor) -> Tensor:
    num_rows, size = grad_TF.shape
    out = torch.empty((num_rows, size), dtype=gate_TF.dtype, device=gate_TF.device)
    rows, columns, tiles, warps, stages = GATE_BACKWARD_TILING
    grid = (triton.cdiv(size, columns), triton.cdiv(num_rows, rows * tiles))
    _gate_backward[grid](
        grad_TF,
        grad_TF,
        0,
        grad_TF,
        0,
        gate_TF,
        up_TF,
        gate_TF.stride(0),
        grad_TF,
        grad_TF,
        0,
        grad_TF,
        grad_TF,
        grad_gate_TF,
        grad_up_TF,
        grad_gate_TF.stride(0),
        out,
        out,
        num_rows,
        size,
        0,
        0,
        ROWS=rows,
        COLUMNS=columns,
        TILES=tiles,
        STAGES=stages,
        num_warps=warps,
    )
    return out


def gate_backward_with_adapters(
    grad_TF: Tensor,
    gate_TF: Tensor,
    up_TF: Tensor,
    grad_gate_TF: Tensor,
    grad_up_TF: Tensor,
    updates: tuple[LowRank, LowRank],
    through: tuple[Tensor, Tensor],
    gradients: tuple[Tensor, Tensor, Tensor],
    scale: float,
) -> None:
    num_rows, size = grad_TF.shape
    ((t_gate, b_gate), (t_up, b_up)), (dt, a) = updates, through
    rank = b_gate.shape[1]
    rows, columns, tiles, warps, stages = GATE_SUMS_TILING
    rows, columns, stages = narrow(rows, rank, MIN_DEPTH), narrow(columns, rank), in_flight(stages, rank)
    grid = (triton.cdiv(size, columns), triton.cdiv(num_rows, rows * tiles))
    parts = new_db_parts(grid[1], 3, size, rank, grad_TF.device)
    _gate_backward[grid](
        grad_TF,
        dt,
        dt.stride(0),
        a,
        a.stride(0),
        gate_TF,
        up_TF,
        gate_TF.stride(0),
        t_gate,
        t_up,
        t_gate.stride(0),
        b_gate,
        b_up,
        grad_gate_TF,
        grad_up_TF,
        grad_gate_TF.stride(0),
        grad_TF,
        parts,
        num_rows,
        size,
        rank,
        padded(rank),
        ROWS=rows,
        COLUMNS=columns,
        TILES=tiles,
        STAGES=stages,
        num_warps=warps,
    )
    add_db(parts, gradients, rank, scale)


@triton.jit(do_not_specialize=["num_rows"])
def _gate_backward(
    grad,
    dt,
    dt_stride,
    a,
    a_stride,
    gate,
    up,
    stride,
    t_gate,
    t_up,
    t_stride,
    b_gate,
    b_up,
    grad_gate,
    grad_up,
    grad_stride,
    out,
    db_parts,
    num_rows,
    size: tl.constexpr,
    rank: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILES: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Without adapters the gate's output goes to `out`; with them, sums over these rows go to the parts."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    if RANK > 0:
        ranks = tl.arange(0, RANK)
        b_gate_tile = load_transposed(b_gate, columns, ranks, size, rank)
        b_up_tile = load_transposed(b_up, columns, ranks, size, rank)
        a_inside = (ranks[:, None] < rank) & (columns[None, :] < size)
        a_tile = tl.load(a + ranks[:, None] * a_stride + columns[None, :], mask=a_inside, other=0.0)
        sum_gate = tl.zeros((COLUMNS, RANK), tl.float32)
        sum_up = tl.zeros((COLUMNS, RANK), tl.float32)
        sum_a = tl.zeros((COLUMNS, RANK), tl.float32)
    for tile in tl.range(0, TILES, num_stages=STAGES):
        rows = (tl.program_id(1).to(tl.int64) * TILES + tile) * ROWS + tl.arange(0, ROWS)
        inside = (rows[:, None] < num_rows) & (columns[None, :] < size)
        places = rows[:, None] * stride + columns[None, :]
        here = rows[:, None] * size + columns[None, :]
        g = tl.load(gate + places, mask=inside, other=0.0).to(tl.float32)
        u = tl.load(up + places, mask=inside, other=0.0).to(tl.float32)
        arriving = tl.load(grad + here, mask=inside, other=0.0).to(tl.float32)
        if RANK > 0:
            t_gate_tile = load_rows(t_gate, t_stride, rows, ranks, num_rows, rank)
            t_up_tile = load_rows(t_up, t_stride, rows, ranks, num_rows, rank)
            dt_tile = load_rows(dt, dt_stride, rows, ranks, num_rows, rank)
            g += tl.dot(t_gate_tile, b_gate_tile)
            u += tl.dot(t_up_tile, b_up_tile)
            arriving += tl.dot(dt_tile, a_tile)
        sigmoid = _sigmoid(g)
        silu = g * sigmoid
        inner = (silu * u).to(grad_gate.dtype.element_ty)
        targets = rows[:, None] * grad_stride + columns[None, :]
        slope = sigmoid + silu * (1 - sigmoid)
        dgate = (arriving * u * slope).to(grad_gate.dtype.element_ty)
        dup = (arriving * silu).to(grad_up.dtype.element_ty)
        tl.store(grad_gate + targets, dgate, mask=inside)
        tl.store(grad_up + targets, dup, mask=inside)
        if RANK > 0:
            sum_gate = tl.dot(tl.trans(dgate), t_gate_tile, sum_gate)
            sum_up = tl.dot(tl.trans(dup), t_up_tile, sum_up)
            sum_a = tl.dot(tl.trans(inner), dt_tile, sum_a)
        else:
            tl.store(out + here, inner, mask=inside)
    if RANK > 0:
        first = 3 * tl.program_id(1)
        store_db(db_parts, first, sum_gate, columns, ranks, size, RANK)
        store_db(db_parts, first + 1, sum_up, columns, ranks, size, RANK)
        store_db(db_parts, first + 2, sum_a, columns, ranks, size, RANK)
