"""Triton kernels of tiles, behind `finetuning.model.kernels.ops`, which says what each computes: what comes between two large
products, with low-rank updates.

A program handles a tile of rows and columns, or several. Row strides are arguments, so that a matrix may be part of a wider
one; numbers of rows are not specialized, or the first one that 16 divides would be compiled for again in the middle of a run.
The rank of an update is padded to 16, the least that the matrix units take; padded columns are zero.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from finetuning.model.kernels.triton_rows import exp

LowRank = tuple[Tensor, Tensor]  # `finetuning.model.kernels.ops.Update`

MIN_RANK = 16
LARGE_RANK = 128  # padded; from it on, several tiles in flight are more than the shared memory of most cards
NARROW = 32  # columns of a tile with larger ones, where shared memory is scarce
MIN_DEPTH = 16  # of a product of tiles
UPDATE_ROWS, UPDATE_COLUMNS = 32, 128
ROTATE_TILING = (32, 2, 3)  # rows, warps, tiles in flight
MAX_HEADS = 8  # that a program rotates one after the other
ROTATE_BACKWARD_TILING = (32, 32, 4, 3)  # rows, tiles that a program handles one below the other, warps, tiles in flight
# Rows and columns of a tile, tiles that a program handles one below the other, warps, tiles in flight.
UPDATE_BACKWARD_TILING = (64, 128, 16, 4, 3)
GATE_TILING = (32, 128, 4, 4, 3)
GATE_BACKWARD_TILING = (16, 128, 4, 4, 3)
GATE_SUMS_TILING = (32, 64, 32, 4, 3)
SUM_COLUMNS = 128  # that a program adds up
DT_ROWS = 32


@triton.jit
def _sigmoid(x):
    """As exact; with it, the gate's forward pass is bound by memory instead of instructions."""
    return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [1 + exp(-x)], tl.float32, True, 1)


@triton.jit
def _load_rows(t, stride, rows, ranks, num_rows, rank: tl.constexpr):
    inside = (rows[:, None] < num_rows) & (ranks[None, :] < rank)
    return tl.load(t + rows[:, None] * stride + ranks[None, :], mask=inside, other=0.0)


@triton.jit
def _load_transposed(b, columns, ranks, num_columns, rank: tl.constexpr):
    """Rows `columns` of b [*, rank], contiguous, as [rank, columns]."""
    inside = (columns[None, :] < num_columns) & (ranks[:, None] < rank)
    return tl.load(b + columns[None, :] * rank + ranks[:, None], mask=inside, other=0.0)


@triton.jit
def _update_tile(t, t_stride, b, rows, columns, num_rows, num_columns, rank: tl.constexpr, RANK: tl.constexpr):
    """t b^T for a tile, float32: t [*, rank] with a row stride, b [*, rank] contiguous."""
    ranks = tl.arange(0, RANK)
    t_tile = _load_rows(t, t_stride, rows, ranks, num_rows, rank)
    return tl.dot(t_tile, _load_transposed(b, columns, ranks, num_columns, rank))


def add_low_rank_delta(x_TD: Tensor, y_TD: Tensor, update: LowRank) -> Tensor:
    num_rows, size = x_TD.shape
    t, b = update
    rank = b.shape[1]
    out = torch.empty_like(x_TD)
    grid = (triton.cdiv(num_rows, UPDATE_ROWS), triton.cdiv(size, UPDATE_COLUMNS))
    _add_update[grid](
        x_TD,
        y_TD,
        y_TD.stride(0),
        t,
        t.stride(0),
        b,
        out,
        num_rows,
        size,
        rank,
        _padded(rank),
        ROWS=UPDATE_ROWS,
        COLUMNS=UPDATE_COLUMNS,
        num_warps=8,
    )
    return out


@triton.jit(do_not_specialize=["num_rows"])
def _add_update(
    x,
    y,
    y_stride,
    t,
    t_stride,
    b,
    out,
    num_rows,
    size: tl.constexpr,
    rank: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows[:, None] < num_rows) & (columns[None, :] < size)
    result = tl.load(x + rows[:, None] * size + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    result += tl.load(y + rows[:, None] * y_stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    result += _update_tile(t, t_stride, b, rows, columns, num_rows, size, rank, RANK)
    tl.store(out + rows[:, None] * size + columns[None, :], result.to(out.dtype.element_ty), mask=inside)


def low_rank_delta_backward(grad_TO: Tensor, update: LowRank, dt_TR: Tensor, db_OR: Tensor) -> None:
    num_rows, size = grad_TO.shape
    t, b = update
    rank = b.shape[1]
    rows, columns, tiles, warps, stages = UPDATE_BACKWARD_TILING
    stages = _in_flight(stages, rank)
    grid = (triton.cdiv(size, columns), triton.cdiv(num_rows, rows * tiles))
    dt_parts, db_parts = _dt_parts(grid[0], grad_TO, rank), _db_parts(grid[1], 1, size, rank, grad_TO.device)
    _update_backward[grid](
        grad_TO,
        grad_TO.stride(0),
        t,
        t.stride(0),
        b,
        dt_parts,
        db_parts,
        num_rows,
        size,
        rank,
        _padded(rank),
        ROWS=rows,
        COLUMNS=columns,
        TILES=tiles,
        STAGES=stages,
        num_warps=warps,
    )
    _add_dt(dt_parts, (grid[0], 0), dt_TR, rank)
    _add_db(db_parts, (db_OR,), rank)


@triton.jit(do_not_specialize=["num_rows"])
def _update_backward(
    grad,
    grad_stride,
    t,
    t_stride,
    b,
    dt_parts,
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
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    ranks = tl.arange(0, RANK)
    b_tile = _load_rows(b, rank, columns, ranks, size, rank)
    db = tl.zeros((COLUMNS, RANK), tl.float32)
    for tile in tl.range(0, TILES, num_stages=STAGES):
        rows = (tl.program_id(1).to(tl.int64) * TILES + tile) * ROWS + tl.arange(0, ROWS)
        inside = (rows[:, None] < num_rows) & (columns[None, :] < size)
        g = tl.load(grad + rows[:, None] * grad_stride + columns[None, :], mask=inside, other=0.0)
        _store_dt(dt_parts, tl.program_id(0), tl.dot(g, b_tile), rows, ranks, num_rows, RANK)
        db = tl.dot(tl.trans(g), _load_rows(t, t_stride, rows, ranks, num_rows, rank), db)
    _store_db(db_parts, tl.program_id(1), db, columns, ranks, size, RANK)


# Gradients of an update t b^T. A program has a strip of columns and adds up db over its rows. dt is a sum over columns, so each
# program stores its part, in the dtype of the arriving gradient; strips of rows leave their parts of db, in float32.


def _dt_parts(count: int, grad_TO: Tensor, rank: int) -> Tensor:
    return torch.empty(count, len(grad_TO), _padded(rank), dtype=grad_TO.dtype, device=grad_TO.device)


def _db_parts(count: int, num_sums: int, size: int, rank: int, device: torch.device) -> Tensor:
    return torch.empty(count, num_sums, size, _padded(rank), dtype=torch.float32, device=device)


@triton.jit
def _store_dt(parts, part, values, rows, ranks, num_rows, RANK: tl.constexpr):
    here = parts + (tl.cast(part, tl.int64) * num_rows + rows[:, None]) * RANK + ranks[None, :]
    tl.store(here, values.to(parts.dtype.element_ty), mask=rows[:, None] < num_rows)


@triton.jit
def _store_db(parts, part, values, columns, ranks, size: tl.constexpr, RANK: tl.constexpr):
    here = parts + (tl.cast(part, tl.int64) * size + columns[:, None]) * RANK + ranks[None, :]
    tl.store(here, values, mask=columns[:, None] < size)


def _add_dt(parts: Tensor, counts: tuple[int, int], dt_TR: Tensor, rank: int) -> None:
    """Sums of the first counts[0] parts, of the next counts[1], again of the next counts[1] and so on, side by side."""
    grid = (triton.cdiv(len(dt_TR), DT_ROWS), dt_TR.shape[1] // rank)
    _add_dt_parts[grid](parts, dt_TR, dt_TR.stride(0), len(dt_TR), *counts, rank, _padded(rank), ROWS=DT_ROWS, num_warps=1)


@triton.jit(do_not_specialize=["num_rows", "first_count", "other_count"])
def _add_dt_parts(
    parts, dt, dt_stride, num_rows, first_count, other_count, rank: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1)
    ranks = tl.arange(0, RANK)
    begin = tl.where(group == 0, 0, first_count + (group - 1) * other_count)
    here = parts + (begin.to(tl.int64) * num_rows + rows[:, None]) * RANK + ranks[None, :]
    total = tl.zeros((ROWS, RANK), tl.float32)
    for _ in tl.range(0, tl.where(group == 0, first_count, other_count), num_stages=4):
        total += tl.load(here, mask=rows[:, None] < num_rows, other=0.0).to(tl.float32)
        here += num_rows * RANK
    inside = (rows[:, None] < num_rows) & (ranks[None, :] < rank)
    target = dt + rows[:, None] * dt_stride + group * rank + ranks[None, :]
    tl.store(target, total.to(dt.dtype.element_ty), mask=inside)


def _add_db(parts: Tensor, sums: tuple[Tensor, ...], rank: int, scale: float = 1.0) -> None:
    """Sums of the parts [*, S, size, RANK] into S tensors [size, rank]; the third, times `scale`, transposed."""
    _, count, size, padded = parts.shape
    first, second, third = (*sums, *sums, *sums)[:3]
    _add_db_parts[(triton.cdiv(size, SUM_COLUMNS), count)](
        parts, first, second, third, len(parts), scale, count, size, rank, padded, COLUMNS=SUM_COLUMNS, num_warps=4
    )


@triton.jit(do_not_specialize=["num_parts"])
def _add_db_parts(
    parts,
    first,
    second,
    third,
    num_parts,
    scale,
    count: tl.constexpr,
    size: tl.constexpr,
    rank: tl.constexpr,
    RANK: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    which = tl.program_id(1)
    ranks = tl.arange(0, RANK)
    total = tl.zeros((COLUMNS, RANK), tl.float32)
    here = parts + (which * size + columns[:, None]) * RANK + ranks[None, :]
    for _ in range(num_parts):
        total += tl.load(here, mask=columns[:, None] < size, other=0.0)
        here += count * size * RANK
    inside = (columns[:, None] < size) & (ranks[None, :] < rank)
    target = columns[:, None] * rank + ranks[None, :]
    if which == 0:
        tl.store(first + target, total.to(first.dtype.element_ty), mask=inside)
    elif which == 1:
        tl.store(second + target, total.to(second.dtype.element_ty), mask=inside)
    else:
        transposed = ranks[None, :] * size + columns[:, None]
        tl.store(third + transposed, (total * scale).to(third.dtype.element_ty), mask=inside)


def apply_rotary_to_heads(
    qkv_TC: Tensor, cos_TH: Tensor, sin_TH: Tensor, heads: tuple[int, int], update: LowRank | None
) -> Tensor:
    num_heads, num_key_value_heads = heads
    num_rows, size = qkv_TC.shape
    t, b, rank = _unpacked(update, qkv_TC)
    out = torch.empty((num_rows, size), dtype=qkv_TC.dtype, device=qkv_TC.device)
    together, head_dim = _heads_together(heads), size // (num_heads + 2 * num_key_value_heads)
    rows, warps, stages = ROTATE_TILING
    stages = _in_flight(stages, rank)
    grid = (triton.cdiv(num_rows, rows), (num_heads + 2 * num_key_value_heads) // together)
    _apply_rotary_to_heads[grid](
        qkv_TC,
        qkv_TC.stride(0),
        t,
        t.stride(0),
        b,
        cos_TH,
        sin_TH,
        out,
        num_rows,
        size,
        num_heads,
        num_key_value_heads,
        head_dim,
        rank,
        _padded(rank),
        ROWS=rows,
        TOGETHER=together,
        STAGES=stages,
        num_warps=warps,
    )
    return out


def _heads_together(heads: tuple[int, int]) -> int:
    """Heads that a program rotates: of one kind, because as many divide query heads and key/value heads."""
    return math.gcd(*heads, MAX_HEADS)


@triton.jit(do_not_specialize=["num_rows"])
def _apply_rotary_to_heads(
    qkv,
    qkv_stride,
    t,
    t_stride,
    b,
    cos,
    sin,
    out,
    num_rows,
    size: tl.constexpr,
    num_heads: tl.constexpr,
    num_key_value_heads: tl.constexpr,
    head_dim: tl.constexpr,
    rank: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    TOGETHER: tl.constexpr,
    STAGES: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    first_head = tl.program_id(1) * TOGETHER
    half: tl.constexpr = head_dim // 2
    halves = tl.arange(0, half)
    inside = (rows[:, None] < num_rows) & (halves[None, :] < half)
    c = tl.load(cos + rows[:, None] * head_dim + halves[None, :], mask=inside, other=0.0)
    s = tl.load(sin + rows[:, None] * head_dim + halves[None, :], mask=inside, other=0.0)
    if first_head >= num_heads + num_key_value_heads:  # values are not rotated
        c = tl.full(c.shape, 1.0, tl.float32)
        s = tl.zeros(s.shape, tl.float32)
    if RANK > 0:
        part = (first_head >= num_heads).to(tl.int32) + (first_head >= num_heads + num_key_value_heads).to(tl.int32)
        ranks = tl.arange(0, RANK)
        t_tile = _load_rows(t + part * rank, t_stride, rows, ranks, num_rows, rank)
    for index in tl.range(0, TOGETHER, num_stages=STAGES):
        first_columns = (first_head + index) * head_dim + halves
        second_columns = first_columns + half
        first = tl.load(qkv + rows[:, None] * qkv_stride + first_columns[None, :], mask=inside, other=0.0).to(tl.float32)
        second = tl.load(qkv + rows[:, None] * qkv_stride + second_columns[None, :], mask=inside, other=0.0).to(tl.float32)
        if RANK > 0:
            first += tl.dot(t_tile, _load_transposed(b, first_columns, ranks, size, rank))
            second += tl.dot(t_tile, _load_transposed(b, second_columns, ranks, size, rank))
        rotated_first = (first * c - second * s).to(out.dtype.element_ty)
        rotated_second = (second * c + first * s).to(out.dtype.element_ty)
        tl.store(out + rows[:, None] * size + first_columns[None, :], rotated_first, mask=inside)
        tl.store(out + rows[:, None] * size + second_columns[None, :], rotated_second, mask=inside)


def apply_rotary_to_heads_backward(
    grad_q_TNH: Tensor,
    grad_k_TKH: Tensor,
    grad_v_TKH: Tensor,
    cos_TH: Tensor,
    sin_TH: Tensor,
    out_TC: Tensor,
    update: LowRank | None,
    gradients: tuple[Tensor, Tensor] | None,
) -> None:
    num_rows, num_heads, head_dim = grad_q_TNH.shape
    num_key_value_heads = grad_k_TKH.shape[1]
    assert all(grad.stride()[1:] == (head_dim, 1) for grad in (grad_q_TNH, grad_k_TKH, grad_v_TKH))
    if update is not None and gradients is not None and head_dim < 2 * MIN_DEPTH:  # too small for products of half a head
        apply_rotary_to_heads_backward(grad_q_TNH, grad_k_TKH, grad_v_TKH, cos_TH, sin_TH, out_TC, None, None)
        sizes = [grad[0].numel() for grad in (grad_q_TNH, grad_k_TKH, grad_v_TKH)]
        per_kind = (
            out_TC.split(sizes, -1),
            update[0].chunk(3, -1),
            update[1].split(sizes),
            gradients[0].chunk(3, -1),
            gradients[1].split(sizes),
        )
        for grad, t, b, dt, db in zip(*per_kind, strict=True):
            low_rank_delta_backward(grad, (t, b), dt, db)
        return
    t, b, rank = _unpacked(update, out_TC)
    rows, tiles, warps, stages = ROTATE_BACKWARD_TILING
    stages = _in_flight(stages, rank)
    heads = num_heads + 2 * num_key_value_heads
    grid = (heads, triton.cdiv(num_rows, rows * tiles))
    dt_parts = db_parts = out_TC
    if update is not None:
        dt_parts = _dt_parts(heads, out_TC, rank)
        db_parts = _db_parts(grid[1], 1, heads * head_dim, rank, out_TC.device)
    _rotate_heads_backward[grid](
        grad_q_TNH,
        grad_q_TNH.stride(0),
        grad_k_TKH,
        grad_k_TKH.stride(0),
        grad_v_TKH,
        grad_v_TKH.stride(0),
        cos_TH,
        sin_TH,
        out_TC,
        out_TC.stride(0),
        t,
        t.stride(0),
        b,
        dt_parts,
        db_parts,
        num_rows,
        num_heads,
        num_key_value_heads,
        head_dim,
        rank,
        _padded(rank),
        ROWS=rows,
        TILES=tiles,
        STAGES=stages,
        num_warps=warps,
    )
    if gradients is not None:
        dt, db = gradients
        _add_dt(dt_parts, (num_heads, num_key_value_heads), dt, rank)
        _add_db(db_parts, (db,), rank)


@triton.jit(do_not_specialize=["num_rows"])
def _rotate_heads_backward(
    grad_q,
    q_stride,
    grad_k,
    k_stride,
    grad_v,
    v_stride,
    cos,
    sin,
    out,
    out_stride,
    t,
    t_stride,
    b,
    dt_parts,
    db_parts,
    num_rows,
    num_heads: tl.constexpr,
    num_key_value_heads: tl.constexpr,
    head_dim: tl.constexpr,
    rank: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
    STAGES: tl.constexpr,
):
    head = tl.program_id(0)
    half: tl.constexpr = head_dim // 2
    halves = tl.arange(0, half)
    if head < num_heads:
        source = grad_q + head * head_dim
        stride = q_stride
    elif head < num_heads + num_key_value_heads:
        source = grad_k + (head - num_heads) * head_dim
        stride = k_stride
    else:
        source = grad_v + (head - num_heads - num_key_value_heads) * head_dim
        stride = v_stride
    rotates = head < num_heads + num_key_value_heads  # values are not rotated
    columns = head * head_dim + halves
    if RANK > 0:
        ranks = tl.arange(0, RANK)
        size: tl.constexpr = (num_heads + 2 * num_key_value_heads) * head_dim
        part = (head >= num_heads).to(tl.int32) + (head >= num_heads + num_key_value_heads).to(tl.int32)
        first_b = _load_rows(b, rank, columns, ranks, size, rank)
        second_b = _load_rows(b, rank, columns + half, ranks, size, rank)
        first_db = tl.zeros((half, RANK), tl.float32)
        second_db = tl.zeros((half, RANK), tl.float32)
    for tile in tl.range(0, TILES, num_stages=STAGES):
        rows = (tl.program_id(1).to(tl.int64) * TILES + tile) * ROWS + tl.arange(0, ROWS)
        inside = (rows[:, None] < num_rows) & (halves[None, :] < half)
        places = source + rows[:, None] * stride + halves[None, :]
        first = tl.load(places, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(places + half, mask=inside, other=0.0).to(tl.float32)
        angles = rows[:, None] * head_dim + halves[None, :]
        c = tl.where(rotates, tl.load(cos + angles, mask=inside, other=0.0), 1.0)
        s = tl.where(rotates, tl.load(sin + angles, mask=inside, other=0.0), 0.0)
        rotated_first = (first * c + second * s).to(out.dtype.element_ty)
        rotated_second = (second * c - first * s).to(out.dtype.element_ty)
        target = out + rows[:, None] * out_stride + columns[None, :]
        tl.store(target, rotated_first, mask=inside)
        tl.store(target + half, rotated_second, mask=inside)
        if RANK > 0:
            dt = tl.dot(rotated_second, second_b, tl.dot(rotated_first, first_b))
            _store_dt(dt_parts, head, dt, rows, ranks, num_rows, RANK)
            t_tile = _load_rows(t + part * rank, t_stride, rows, ranks, num_rows, rank)
            first_db = tl.dot(tl.trans(rotated_first), t_tile, first_db)
            second_db = tl.dot(tl.trans(rotated_second), t_tile, second_db)
    if RANK > 0:
        _store_db(db_parts, tl.program_id(1), first_db, columns, ranks, size, RANK)
        _store_db(db_parts, tl.program_id(1), second_db, columns + half, ranks, size, RANK)


def gate(gate_TF: Tensor, up_TF: Tensor, updates: tuple[LowRank, LowRank] | None) -> Tensor:
    num_rows, size = gate_TF.shape
    (t_gate, b_gate, rank), (t_up, b_up, _) = (_unpacked(u, gate_TF) for u in updates or (None, None))
    out = torch.empty((num_rows, size), dtype=gate_TF.dtype, device=gate_TF.device)
    rows, columns, tiles, warps, stages = GATE_TILING
    columns, stages = _narrow(columns, rank), _in_flight(stages, rank)
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
        _padded(rank),
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
        b_gate_tile = _load_transposed(b_gate, columns, ranks, size, rank)
        b_up_tile = _load_transposed(b_up, columns, ranks, size, rank)
    for tile in tl.range(0, TILES, num_stages=STAGES):
        rows = (tl.program_id(1).to(tl.int64) * TILES + tile) * ROWS + tl.arange(0, ROWS)
        inside = (rows[:, None] < num_rows) & (columns[None, :] < size)
        places = rows[:, None] * stride + columns[None, :]
        g = tl.load(gate + places, mask=inside, other=0.0).to(tl.float32)
        u = tl.load(up + places, mask=inside, other=0.0).to(tl.float32)
        if RANK > 0:
            g += tl.dot(_load_rows(t_gate, t_stride, rows, ranks, num_rows, rank), b_gate_tile)
            u += tl.dot(_load_rows(t_up, t_stride, rows, ranks, num_rows, rank), b_up_tile)
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
    rows, columns, stages = _narrow(rows, rank, MIN_DEPTH), _narrow(columns, rank), _in_flight(stages, rank)
    grid = (triton.cdiv(size, columns), triton.cdiv(num_rows, rows * tiles))
    parts = _db_parts(grid[1], 3, size, rank, grad_TF.device)
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
        _padded(rank),
        ROWS=rows,
        COLUMNS=columns,
        TILES=tiles,
        STAGES=stages,
        num_warps=warps,
    )
    _add_db(parts, gradients, rank, scale)


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
        b_gate_tile = _load_transposed(b_gate, columns, ranks, size, rank)
        b_up_tile = _load_transposed(b_up, columns, ranks, size, rank)
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
            t_gate_tile = _load_rows(t_gate, t_stride, rows, ranks, num_rows, rank)
            t_up_tile = _load_rows(t_up, t_stride, rows, ranks, num_rows, rank)
            dt_tile = _load_rows(dt, dt_stride, rows, ranks, num_rows, rank)
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
        _store_db(db_parts, first, sum_gate, columns, ranks, size, RANK)
        _store_db(db_parts, first + 1, sum_up, columns, ranks, size, RANK)
        _store_db(db_parts, first + 2, sum_a, columns, ranks, size, RANK)


def _unpacked(update: LowRank | None, other: Tensor) -> tuple[Tensor, Tensor, int]:
    """t, b and rank; without an update rank 0, and any tensor in place of t and b, which are not read then."""
    return (other, other, 0) if update is None else (*update, update[1].shape[1])


def _in_flight(stages: int, rank: int) -> int:
    """One tile with a large rank on a GPU with little shared memory."""
    return stages if _padded(rank) < LARGE_RANK or _has_much_shared_memory() else 1


def _narrow(size: int, rank: int, narrow: int = NARROW) -> int:
    """The side of a tile, `narrow` with the largest ranks on a GPU with little shared memory."""
    return size if _padded(rank) <= LARGE_RANK or _has_much_shared_memory() else narrow


def _has_much_shared_memory() -> bool:
    """227 KiB, as Hopper and Blackwell for data centres; others have 163 or 99 (`tools/compile_kernels.py`)."""
    return torch.cuda.get_device_capability()[0] in (9, 10)


def _padded(rank: int) -> int:
    return max(MIN_RANK, triton.next_power_of_2(rank)) if rank else 0
