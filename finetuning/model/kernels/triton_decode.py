"""Triton kernels for one new token of each sequence, behind `finetuning.model.kernels.decode_ops`: what they compute is there.

Such a step reads every weight and every key once and computes little, so what counts is that memory is never idle: programs
are small and many, each keeps several loads in flight, and what follows a product is done where its result is at hand.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

Cache = tuple[Tensor, Tensor]  # `finetuning.model.kernels.decode_ops.Cache`

MIN_DOT = 16  # rows and columns of a product of tiles
COLUMNS_AT_ONCE = 8192  # of the vocabulary, that a program looks at

# Rows of weights, inputs and warps of a program. One H200, 2026-11-29, Llama 3.1-8B: 73 % (o) to 99 % (gate, up) of the speed
# of memory; tiles of 4 x 1024, 8 x 512 and 1 x 4096 are slower for most layers, cuBLAS by 3 to 14 points for all but down.
VECTOR_ROWS, VECTOR_INPUTS, VECTOR_WARPS = 2, 4096, 4
ATTENTION_WARPS, ATTENTION_STAGES = 4, 3  # 2 or 8 warps, 2 or 4 tiles in flight: within 3 %
PROGRAMS = 1024  # that attention has at least, if there is enough to look at
MAX_SPLITS = 64


@lru_cache(maxsize=1)
def _starts_early() -> bool:
    """Whether a kernel may start before the one ahead of it has ended (programmatic dependent launch, from Hopper on)."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)


def _early_start() -> dict[str, bool]:
    """Arguments of kernels that begin with `_wait_for_inputs`."""
    return {"EARLY": _starts_early(), "launch_pdl": _starts_early()}


@triton.jit
def _wait_for_inputs(EARLY: tl.constexpr):
    """Lets the next kernel start, and waits for what the kernel ahead writes; what stands before this must not depend on it."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


def vector_product(
    x_1I: Tensor,
    weight_OI: Tensor,
    *,
    norm: tuple[Tensor, float] | None = None,
    residual_1O: Tensor | None = None,
    gated: bool = False,
) -> Tensor:
    outputs, size = weight_OI.shape
    outputs = outputs // 2 if gated else outputs
    out = torch.empty(1, outputs, dtype=x_1I.dtype, device=x_1I.device) if residual_1O is None else residual_1O
    block_outputs = VECTOR_ROWS // 2 if gated else VECTOR_ROWS
    weight_D, eps = norm or (x_1I, 0.0)
    _vector_product[(triton.cdiv(outputs, block_outputs),)](
        x_1I,
        weight_OI,
        weight_D,
        out,
        eps,
        outputs,
        size,
        OUTPUTS=block_outputs,
        INPUTS=min(VECTOR_INPUTS, triton.next_power_of_2(size)),
        WHOLE=triton.next_power_of_2(size),
        NORMED=norm is not None,
        ADDS=residual_1O is not None,
        GATED=gated,
        num_warps=VECTOR_WARPS,
        **_early_start(),
    )
    return out


@triton.jit
def _vector_product(
    x,
    weight,
    norm,
    out,
    eps,
    outputs: tl.constexpr,
    size: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    WHOLE: tl.constexpr,
    NORMED: tl.constexpr,
    ADDS: tl.constexpr,
    GATED: tl.constexpr,
    EARLY: tl.constexpr,
):
    rows = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    inputs = tl.arange(0, INPUTS)
    here = weight + rows[:, None].to(tl.int64) * size + inputs[None, :]
    inside = (rows[:, None] < outputs) & (inputs[None, :] < size)
    tile = tl.load(here, mask=inside, other=0.0, eviction_policy="evict_first")
    tile_up = tile
    if GATED:
        tile_up = tl.load(here + outputs * size, mask=inside, other=0.0, eviction_policy="evict_first")
    _wait_for_inputs(EARLY)
    factor = 1.0
    if NORMED:
        columns = tl.arange(0, WHOLE)
        values = tl.load(x + columns, mask=columns < size, other=0.0).to(tl.float32)
        factor = tl.rsqrt(tl.sum(values * values) / size + eps)
    total = tl.zeros((OUTPUTS, INPUTS), tl.float32)
    total_up = tl.zeros((OUTPUTS, INPUTS), tl.float32)
    for start in tl.static_range(0, size, INPUTS):
        columns = start + inputs
        if start > 0:
            inside = (rows[:, None] < outputs) & (columns[None, :] < size)
            tile = tl.load(here + start, mask=inside, other=0.0, eviction_policy="evict_first")
            if GATED:
                tile_up = tl.load(here + outputs * size + start, mask=inside, other=0.0, eviction_policy="evict_first")
        values = tl.load(x + columns, mask=columns < size, other=0.0)
        if NORMED:
            scale = tl.load(norm + columns, mask=columns < size, other=0.0)
            values = (values.to(tl.float32) * factor).to(scale.dtype)
            values = (values.to(tl.float32) * scale.to(tl.float32)).to(scale.dtype)
        wide = values.to(tl.float32)[None, :]
        total += tile.to(tl.float32) * wide
        if GATED:
            total_up += tile_up.to(tl.float32) * wide
    result = tl.sum(total, 1)
    if GATED:
        # Rounded as between separate products.
        gate = result.to(out.dtype.element_ty).to(tl.float32)
        up = tl.sum(total_up, 1).to(out.dtype.element_ty).to(tl.float32)
        result = gate * _sigmoid(gate) * up
    if ADDS:
        result = result.to(out.dtype.element_ty).to(tl.float32)
        result += tl.load(out + rows, mask=rows < outputs, other=0.0).to(tl.float32)
    tl.store(out + rows, result.to(out.dtype.element_ty), mask=rows < outputs)


def rotate_and_store(
    qkv_SC: Tensor,
    tables: tuple[Tensor, Tensor],
    position_S: Tensor,
    pages_SP: Tensor,
    cache: Cache,
    num_heads: int,
) -> Tensor:
    slots = len(qkv_SC)
    keys, values = cache
    _, num_key_value_heads, page, head_dim = keys.shape
    q_SNH = torch.empty(slots, num_heads, head_dim, dtype=qkv_SC.dtype, device=qkv_SC.device)
    _rotate_and_store[(slots, num_heads + 2 * num_key_value_heads)](
        qkv_SC,
        qkv_SC.stride(0),
        *tables,
        position_S,
        pages_SP,
        pages_SP.stride(0),
        q_SNH,
        keys,
        values,
        HEADS=num_heads,
        KEY_VALUE_HEADS=num_key_value_heads,
        half=head_dim // 2,
        HALF=triton.next_power_of_2(head_dim // 2),
        PAGE=page,
        num_warps=1,
        **_early_start(),
    )
    return q_SNH


@triton.jit
def _rotate_and_store(
    qkv,
    qkv_stride,
    cosines,
    sines,
    positions,
    pages,
    pages_stride,
    q,
    keys,
    values,
    HEADS: tl.constexpr,
    KEY_VALUE_HEADS: tl.constexpr,
    half: tl.constexpr,
    HALF: tl.constexpr,
    PAGE: tl.constexpr,
    EARLY: tl.constexpr,
):
    _wait_for_inputs(EARLY)
    slot = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    position = tl.load(positions + slot).to(tl.int64)
    columns = tl.arange(0, HALF)
    inside = columns < half
    source = qkv + slot * qkv_stride + head * 2 * half + columns
    first = tl.load(source, mask=inside, other=0.0)
    second = tl.load(source + half, mask=inside, other=0.0)
    if head < HEADS + KEY_VALUE_HEADS:
        cos = tl.load(cosines + position * half + columns, mask=inside, other=0.0)
        sin = tl.load(sines + position * half + columns, mask=inside, other=0.0)
        wide_first, wide_second = first.to(tl.float32), second.to(tl.float32)
        first = (wide_first * cos - wide_second * sin).to(first.dtype)
        second = (wide_second * cos + wide_first * sin).to(second.dtype)
    if head < HEADS:
        target = q + (slot * HEADS + head) * 2 * half + columns
    else:
        page = tl.load(pages + slot * pages_stride + position // PAGE).to(tl.int64)
        inner = (head - HEADS) % KEY_VALUE_HEADS
        offset = ((page * KEY_VALUE_HEADS + inner) * PAGE + position % PAGE) * 2 * half + columns
        target = keys + offset
        if head >= HEADS + KEY_VALUE_HEADS:
            target = values + offset
    tl.store(target, first, mask=inside)
    tl.store(target + half, second, mask=inside)


def paged_attention(
    q_SNH: Tensor,
    cache: Cache,
    pages_SP: Tensor,
    position_S: Tensor,
    splits: int | None = None,
) -> Tensor:
    keys, values = cache
    slots, num_heads, head_dim = q_SNH.shape
    _, num_key_value_heads, page, _ = keys.shape
    group = num_heads // num_key_value_heads
    if splits is None:
        splits = triton.next_power_of_2(triton.cdiv(PROGRAMS, slots * num_key_value_heads))
    splits = min(splits, MAX_SPLITS, triton.next_power_of_2(pages_SP.shape[1]))
    out = torch.empty_like(q_SNH)
    parts = torch.empty((slots, num_heads, splits, head_dim) if splits > 1 else 1, dtype=torch.float32, device=q_SNH.device)
    sizes = torch.empty((slots, num_heads, splits) if splits > 1 else 1, dtype=torch.float32, device=q_SNH.device)
    _paged_attention[(slots, num_key_value_heads, splits)](
        q_SNH,
        keys,
        values,
        pages_SP,
        pages_SP.stride(0),
        position_S,
        parts,
        sizes,
        out,
        head_dim**-0.5 * 1.4426950408889634,  # exponents of 2
        KEY_VALUE_HEADS=num_key_value_heads,
        group=group,
        GROUP=max(MIN_DOT, triton.next_power_of_2(group)),
        head=head_dim,
        HEAD=max(MIN_DOT, triton.next_power_of_2(head_dim)),
        PAGE=page,
        SPLITS=splits,
        STAGES=ATTENTION_STAGES if q_SNH.itemsize == 2 else 1,
        num_warps=ATTENTION_WARPS,
        **_early_start(),
    )
    if splits > 1:
        _join_parts[(slots * num_heads,)](
            parts,
            sizes,
            out,
            head=head_dim,
            HEAD=triton.next_power_of_2(head_dim),
            SPLITS=splits,
            num_warps=1,
            **_early_start(),
        )
    return out


@triton.jit
def _paged_attention(
    q,
    keys,
    values,
    pages,
    pages_stride,
    positions,
    parts,
    sizes,
    out,
    scale,
    KEY_VALUE_HEADS: tl.constexpr,
    group: tl.constexpr,
    GROUP: tl.constexpr,
    head: tl.constexpr,
    HEAD: tl.constexpr,
    PAGE: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
):
    _wait_for_inputs(EARLY)
    slot, inner, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    seen = tl.load(positions + slot) + 1
    each = tl.cdiv(tl.cdiv(seen, PAGE), SPLITS)
    begin = split * each
    end = tl.minimum(begin + each, tl.cdiv(seen, PAGE))
    queries, columns, offsets = tl.arange(0, GROUP), tl.arange(0, HEAD), tl.arange(0, PAGE)
    first = (slot * KEY_VALUE_HEADS + inner) * group  # query head, counted over all slots
    inside = (queries[:, None] < group) & (columns[None, :] < head)
    tile_q = tl.load(q + (first + queries[:, None]) * head + columns[None, :], mask=inside, other=0.0)
    highest = tl.full((GROUP,), -float("inf"), tl.float32)
    total = tl.zeros((GROUP,), tl.float32)
    result = tl.zeros((GROUP, HEAD), tl.float32)
    for index in tl.range(begin, end, num_stages=STAGES):
        page = tl.load(pages + slot * pages_stride + index).to(tl.int64)
        places = (page * KEY_VALUE_HEADS + inner) * PAGE * head + offsets[:, None] * head + columns[None, :]
        tile_k = tl.load(keys + places, mask=columns[None, :] < head, other=0.0)
        scores = tl.dot(tile_q, tl.trans(tile_k), input_precision="ieee") * scale
        scores = tl.where(index * PAGE + offsets[None, :] < seen, scores, -float("inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(weights, 1)
        tile_v = tl.load(values + places, mask=columns[None, :] < head, other=0.0)
        result = tl.dot(weights.to(tile_v.dtype), tile_v, result * shrink[:, None], input_precision="ieee")
        highest = higher
    if SPLITS == 1:
        result = result / total[:, None]
        tl.store(out + (first + queries[:, None]) * head + columns[None, :], result.to(out.dtype.element_ty), mask=inside)
    else:
        # What a part weighs, as an exponent of 2; that of a part without positions is zero.
        size = tl.where(total > 0, highest + tl.log2(total), -float("inf"))
        result = result / tl.where(total > 0, total, 1.0)[:, None]
        place = (first + queries) * SPLITS + split
        tl.store(sizes + place, size, mask=queries < group)
        tl.store(parts + place[:, None] * head + columns[None, :], result, mask=inside)


@triton.jit
def _join_parts(parts, sizes, out, head: tl.constexpr, HEAD: tl.constexpr, SPLITS: tl.constexpr, EARLY: tl.constexpr):
    _wait_for_inputs(EARLY)
    row = tl.program_id(0).to(tl.int64)
    splits, columns = tl.arange(0, SPLITS), tl.arange(0, HEAD)
    size = tl.load(sizes + row * SPLITS + splits)
    share = tl.exp2(size - tl.max(size))
    share = share / tl.sum(share)
    places = (row * SPLITS + splits[:, None]) * head + columns[None, :]
    # A part without positions is not read.
    inside = (share[:, None] > 0) & (columns[None, :] < head)
    part = tl.load(parts + places, mask=inside, other=0.0)
    result = tl.sum(part * share[:, None], 0)
    tl.store(out + row * head + columns, result.to(out.dtype.element_ty), mask=columns < head)


def add_gumbel(scaled_SV: Tensor, keys_S2: Tensor) -> Tensor:
    rows, size = scaled_SV.shape
    out = torch.empty_like(scaled_SV)
    grid = (rows, triton.cdiv(size, COLUMNS_AT_ONCE))
    _add_gumbel[grid](scaled_SV, keys_S2, out, size, COLUMNS=COLUMNS_AT_ONCE, num_warps=8)
    return out


@triton.jit
def _add_gumbel(scaled, keys, out, size: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first = tl.load(keys + 2 * row).to(tl.uint32)
    second = tl.load(keys + 2 * row + 1).to(tl.uint32)
    bits = _hash32(_hash32(columns.to(tl.uint32) + first) + second)
    uniform = ((bits >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2^-23
    values = tl.load(scaled + row * size + columns, mask=columns < size, other=0.0)
    tl.store(out + row * size + columns, values - tl.log(-tl.log(uniform)), mask=columns < size)


@triton.jit
def _hash32(x):
    x = (x ^ (x >> 16)) * tl.full((), 0x7FEB352D, tl.uint32)
    x = (x ^ (x >> 15)) * tl.full((), 0x846CA68B, tl.uint32)
    return x ^ (x >> 16)
