"""Triton kernels that turn queries and keys by their positions, and add the update of the product that they came from.

See `finetuning.model.kernels.ops` for what each computes, and `triton_low_rank` for tiles, strides and padded ranks.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from finetuning.model.kernels.triton_low_rank import (
    MIN_DEPTH,
    LowRank,
    add_db,
    add_dt,
    in_flight,
    load_rows,
    load_transposed,
    low_rank_delta_backward,
    new_db_parts,
    new_dt_parts,
    padded,
    store_db,
    store_dt,
    unpacked,
)

ROTATE_TILING = (32, 2, 3)  # rows, warps, tiles in flight
MAX_HEADS = 8  # that a program rotates one after the other
ROTATE_BACKWARD_TILING = (32, 32, 4, 3)  # rows, tiles that a program handles one below the other, warps, tiles in flight


def apply_rotary_to_heads(
    qkv_TC: Tensor, cos_TH: Tensor, sin_TH: Tensor, heads: tuple[int, int], update: LowRank | None
) -> Tensor:
    num_heads, num_key_value_heads = heads
    num_rows, size = qkv_TC.shape
    t, b, rank = unpacked(update, qkv_TC)
    out = torch.empty((num_rows, size), dtype=qkv_TC.dtype, device=qkv_TC.device)
    together, head_dim = _heads_together(heads), size // (num_heads + 2 * num_key_value_heads)
    rows, warps, stages = ROTATE_TILING
    stages = in_flight(stages, rank)
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
        padded(rank),
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
        t_tile = load_rows(t + part * rank, t_stride, rows, ranks, num_rows, rank)
    for index in tl.range(0, TOGETHER, num_stages=STAGES):
        first_columns = (first_head + index) * head_dim + halves
        second_columns = first_columns + half
        first = tl.load(qkv + rows[:, None] * qkv_stride + first_columns[None, :], mask=inside, other=0.0).to(tl.float32)
        second = tl.load(qkv + rows[:, None] * qkv_stride + second_columns[None, :], mask=inside, other=0.0).to(tl.float32)
        if RANK > 0:
            first += tl.dot(t_tile, load_transposed(b, first_columns, ranks, size, rank))
            second += tl.dot(t_tile, load_transposed(b, second_columns, ranks, size, rank))
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
    t, b, rank = unpacked(update, out_TC)
    rows, tiles, warps, stages = ROTATE_BACKWARD_TILING
    stages = in_flight(stages, rank)
    heads = num_heads + 2 * num_key_value_heads
    grid = (heads, triton.cdiv(num_rows, rows * tiles))
    dt_parts = db_parts = out_TC
    if update is not None:
        dt_parts = new_dt_parts(heads, out_TC, rank)
        db_parts = new_db_parts(grid[1], 1, heads * head_dim, rank, out_TC.device)
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
        padded(rank),
        ROWS=rows,
        TILES=tiles,
        STAGES=stages,
        num_warps=warps,
    )
    if gradients is not None:
        dt, db = gradients
        add_dt(dt_parts, (num_heads, num_key_value_heads), dt, rank)
        add_db(db_parts, (db,), rank)


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
        first_b = load_rows(b, rank, columns, ranks, size, rank)
        second_b = load_rows(b, rank, columns + half, ranks, size, rank)
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
            store_dt(dt_parts, head, dt, rows, ranks, num_rows, RANK)
            t_tile = load_rows(t + part * rank, t_stride, rows, ranks, num_rows, rank)
            first_db = tl.dot(tl.trans(rotated_first), t_tile, first_db)
            second_db = tl.dot(tl.trans(rotated_second), t_tile, second_db)
    if RANK > 0:
        store_db(db_parts, tl.program_id(1), first_db, columns, ranks, size, RANK)
        store_db(db_parts, tl.program_id(1), second_db, columns + half, ranks, size, RANK)
