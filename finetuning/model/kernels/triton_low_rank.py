"""Triton kernels of low-rank updates, behind `finetuning.model.kernels.ops`, which says what each computes.

First what `triton_rotary` and `triton_gate` share with them, whose passes have an update in them.

A program handles a tile of rows and columns, or several. Row strides are arguments, so that a matrix may be part of a wider
one; numbers of rows are not specialized, or the first one that 16 divides would be compiled for again in the middle of a run.
The rank of an update is padded to 16, the least that the matrix units take; padded columns are zero.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

LowRank = tuple[Tensor, Tensor]  # `finetuning.model.kernels.ops.Update`

MIN_RANK = 16
LARGE_RANK = 128  # padded; from it on, several tiles in flight are more than the shared memory of most cards
NARROW = 32  # columns of a tile with larger ones, where shared memory is scarce
MIN_DEPTH = 16  # of a product of tiles
UPDATE_ROWS, UPDATE_COLUMNS = 32, 128
# Rows and columns of a tile, tiles that a program handles one below the other, warps, tiles in flight.
UPDATE_BACKWARD_TILING = (64, 128, 16, 4, 3)
SUM_COLUMNS = 128  # that a program adds up
DT_ROWS = 32


@triton.jit
def load_rows(t, stride, rows, ranks, num_rows, rank: tl.constexpr):
    inside = (rows[:, None] < num_rows) & (ranks[None, :] < rank)
    return tl.load(t + rows[:, None] * stride + ranks[None, :], mask=inside, other=0.0)


@triton.jit
def load_transposed(b, columns, ranks, num_columns, rank: tl.constexpr):
    """Rows `columns` of b [*, rank], contiguous, as [rank, columns]."""
    inside = (columns[None, :] < num_columns) & (ranks[:, None] < rank)
    return tl.load(b + columns[None, :] * rank + ranks[:, None], mask=inside, other=0.0)


@triton.jit
def _update_tile(t, t_stride, b, rows, columns, num_rows, num_columns, rank: tl.constexpr, RANK: tl.constexpr):
    """t b^T for a tile, float32: t [*, rank] with a row stride, b [*, rank] contiguous."""
    ranks = tl.arange(0, RANK)
    t_tile = load_rows(t, t_stride, rows, ranks, num_rows, rank)
    return tl.dot(t_tile, load_transposed(b, columns, ranks, num_columns, rank))


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
        padded(rank),
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
    stages = in_flight(stages, rank)
    grid = (triton.cdiv(size, columns), triton.cdiv(num_rows, rows * tiles))
    dt_parts, db_parts = new_dt_parts(grid[0], grad_TO, rank), new_db_parts(grid[1], 1, size, rank, grad_TO.device)
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
        padded(rank),
        ROWS=rows,
        COLUMNS=columns,
        TILES=tiles,
        STAGES=stages,
        num_warps=warps,
    )
    add_dt(dt_parts, (grid[0], 0), dt_TR, rank)
    add_db(db_parts, (db_OR,), rank)


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
    b_tile = load_rows(b, rank, columns, ranks, size, rank)
    db = tl.zeros((COLUMNS, RANK), tl.float32)
    for tile in tl.range(0, TILES, num_stages=STAGES):
        rows = (tl.program_id(1).to(tl.int64) * TILES + tile) * ROWS + tl.arange(0, ROWS)
        inside = (rows[:, None] < num_rows) & (columns[None, :] < size)
        g = tl.load(grad + rows[:, None] * grad_stride + columns[None, :], mask=inside, other=0.0)
        store_dt(dt_parts, tl.program_id(0), tl.dot(g, b_tile), rows, ranks, num_rows, RANK)
        db = tl.dot(tl.trans(g), load_rows(t, t_stride, rows, ranks, num_rows, rank), db)
    store_db(db_parts, tl.program_id(1), db, columns, ranks, size, RANK)


# Gradients of an update t b^T. A program has a strip of columns and adds up db over its rows. dt is a sum over columns, so each
# program stores its part, in the dtype of the arriving gradient; strips of rows leave their parts of db, in float32.


def new_dt_parts(count: int, grad_TO: Tensor, rank: int) -> Tensor:
    return torch.empty(count, len(grad_TO), padded(rank), dtype=grad_TO.dtype, device=grad_TO.device)


def new_db_parts(count: int, num_sums: int, size: int, rank: int, device: torch.device) -> Tensor:
    return torch.empty(count, num_sums, size, padded(rank), dtype=torch.float32, device=device)


@triton.jit
def store_dt(parts, part, values, rows, ranks, num_rows, RANK: tl.constexpr):
    here = parts + (tl.cast(part, tl.int64) * num_rows + rows[:, None]) * RANK + ranks[None, :]
    tl.store(here, values.to(parts.dtype.element_ty), mask=rows[:, None] < num_rows)


@triton.jit
def store_db(parts, part, values, columns, ranks, size: tl.constexpr, RANK: tl.constexpr):
    here = parts + (tl.cast(part, tl.int64) * size + columns[:, None]) * RANK + ranks[None, :]
    tl.store(here, values, mask=columns[:, None] < size)


def add_dt(parts: Tensor, counts: tuple[int, int], dt_TR: Tensor, rank: int) -> None:
    """Sums of the first counts[0] parts, of the next counts[1], again of the next counts[1] and so on, side by side."""
    grid = (triton.cdiv(len(dt_TR), DT_ROWS), dt_TR.shape[1] // rank)
    _add_dt_parts[grid](parts, dt_TR, dt_TR.stride(0), len(dt_TR), *counts, rank, padded(rank), ROWS=DT_ROWS, num_warps=1)


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


def add_db(parts: Tensor, sums: tuple[Tensor, ...], rank: int, scale: float = 1.0) -> None:
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


def unpacked(update: LowRank | None, other: Tensor) -> tuple[Tensor, Tensor, int]:
    """t, b and rank; without an update rank 0, and any tensor in place of t and b, which are not read then."""
    return (other, other, 0) if update is None else (*update, update[1].shape[1])


def in_flight(stages: int, rank: int) -> int:
    """One tile with a large rank on a GPU with little shared memory."""
    return stages if padded(rank) < LARGE_RANK or _has_much_shared_memory() else 1


def narrow(size: int, rank: int, narrow: int = NARROW) -> int:
    """The side of a tile, `narrow` with the largest ranks; on Hopper they just fit (`tools/compile_kernels.py`)."""
    return size if padded(rank) <= LARGE_RANK or torch.cuda.get_device_capability()[0] == 9 else narrow


def _has_much_shared_memory() -> bool:
    """227 KiB, as Hopper and Blackwell for data centres; others have 163 or 99."""
    return torch.cuda.get_device_capability()[0] in (9, 10)


def padded(rank: int) -> int:
    return max(MIN_RANK, triton.next_power_of_2(rank)) if rank else 0
