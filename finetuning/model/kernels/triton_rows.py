"""Triton kernels of whole rows, behind `model.kernels.ops`, which says what each computes: norms, cross-entropy, table.

A program handles a row. The sums over rows of a norm's weight gradient have one for some rows of a strip of columns.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from finetuning.model.kernels.triton_fp8 import store_quantized

VOCABULARY_BLOCK = 16384
SUM_ROWS, SUM_COLUMNS = 256, 128  # that a program adds up, and its columns


@triton.jit
def exp(x):
    """To 2^-22; Triton's own takes twice as many instructions, to keep results below 2^-126."""
    return tl.inline_asm_elementwise(
        "{ .reg .f32 y; mul.f32 y, $1, 0f3FB8AA3B; ex2.approx.ftz.f32 $0, y; }", "=f,f", [x], tl.float32, True, 1
    )


def norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    out, inverse = torch.empty_like(x_TD), _row_factors(x_TD)
    _norm[(len(x_TD),)](x_TD, weight_D, out, inverse, out, inverse, eps, QUANTISE=False, **_whole_rows(x_TD))
    return out, inverse


def norm_and_quantize(
    x_TD: Tensor, weight_D: Tensor, eps: float, largest: float, min_scale: float
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    out, inverse = torch.empty_like(x_TD), _row_factors(x_TD)
    quantized, factors = torch.empty_like(x_TD, dtype=torch.float8_e4m3fn), _row_factors(x_TD)
    _norm[(len(x_TD),)](
        x_TD,
        weight_D,
        out,
        inverse,
        quantized,
        factors,
        eps,
        QUANTISE=True,
        largest=largest,
        min_scale=min_scale,
        **_whole_rows(x_TD),
    )
    return out, inverse, (quantized, factors[:, None])


@triton.jit
def _norm(
    x,
    weight,
    out,
    inverse,
    quantized,
    factors,
    eps,
    size: tl.constexpr,
    BLOCK: tl.constexpr,
    QUANTISE: tl.constexpr,
    largest: tl.constexpr = 1.0,
    min_scale: tl.constexpr = 1.0,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    values = tl.load(x + row * size + columns, mask=inside, other=0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(values * values) / size + eps)
    scale = tl.load(weight + columns, mask=inside, other=0.0)
    result = (values * factor).to(scale.dtype) * scale
    tl.store(out + row * size + columns, result, mask=inside)
    tl.store(inverse + row, factor)
    if QUANTISE:
        store_quantized(result, quantized + row * size + columns, factors + row, inside, largest, min_scale)


def norm_backward(
    grad_TD: Tensor, x_TD: Tensor, inverse_T: Tensor, weight_D: Tensor, residual_grad_TD: Tensor, out_TD: Tensor | None
) -> Tensor:
    out = torch.empty_like(x_TD) if out_TD is None else out_TD
    _norm_backward[(len(x_TD),)](
        grad_TD,
        x_TD,
        inverse_T,
        weight_D,
        residual_grad_TD,
        residual_grad_TD.stride(0),
        out,
        out.stride(0),
        **_whole_rows(x_TD),
    )
    return out


@triton.jit
def _norm_backward(
    grad, x, inverse, weight, residual_grad, residual_stride, out, out_stride, size: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    factor = tl.load(inverse + row)
    normed = tl.load(x + row * size + columns, mask=inside, other=0.0).to(tl.float32) * factor
    scaled = tl.load(grad + row * size + columns, mask=inside, other=0.0).to(tl.float32)
    scaled *= tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    result = factor * (scaled - normed * (tl.sum(scaled * normed) / size))
    result += tl.load(residual_grad + row * residual_stride + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + columns, result.to(out.dtype.element_ty), mask=inside)


def _row_factors(x_TD: Tensor) -> Tensor:
    return torch.empty(len(x_TD), dtype=torch.float32, device=x_TD.device)


def _whole_rows(x_TD: Tensor) -> dict[str, int]:
    """Arguments of kernels whose programs have a row each."""
    return {"size": x_TD.shape[1], "BLOCK": triton.next_power_of_2(x_TD.shape[1]), "num_warps": 4}


def norm_weight_gradient(grad_TD: Tensor, x_TD: Tensor, inverse_T: Tensor) -> Tensor:
    num_rows, size = x_TD.shape
    parts = torch.empty(triton.cdiv(num_rows, SUM_ROWS), size, dtype=torch.float32, device=x_TD.device)
    grid = (triton.cdiv(size, SUM_COLUMNS), len(parts))
    _norm_weight_gradient[grid](
        grad_TD, x_TD, inverse_T, parts, num_rows, size, ROWS=16, COLUMNS=SUM_COLUMNS, TILES=SUM_ROWS // 16, num_warps=4
    )
    return parts.sum(0)


@triton.jit(do_not_specialize=["num_rows"])
def _norm_weight_gradient(
    grad, x, inverse, parts, num_rows, size: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILES: tl.constexpr
):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)  # added up once, at the end: a sum over threads is slow
    for tile in tl.range(0, TILES, num_stages=3):
        rows = (tl.program_id(1).to(tl.int64) * TILES + tile) * ROWS + tl.arange(0, ROWS)
        inside = (rows[:, None] < num_rows) & (columns[None, :] < size)
        places = rows[:, None] * size + columns[None, :]
        g = tl.load(grad + places, mask=inside, other=0.0).to(tl.float32)
        values = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
        factor = tl.load(inverse + rows, mask=rows < num_rows, other=0.0)
        total += g * values * factor[:, None]
    tl.store(parts + tl.program_id(1) * size + columns, tl.sum(total, 0), mask=columns < size)


def cross_entropy(logits_TV: Tensor, labels_T: Tensor) -> Tensor:
    losses = _row_factors(logits_TV)
    if len(losses):
        _cross_entropy[(len(losses),)](
            logits_TV,
            labels_T,
            losses,
            logits_TV,
            losses,
            logits_TV.shape[1],
            BLOCK=VOCABULARY_BLOCK,
            QUANTISE=False,
            num_warps=16,
        )
    return losses


def cross_entropy_and_quantize(
    logits_TV: Tensor, labels_T: Tensor, largest: float, min_scale: float
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    losses, factors = _row_factors(logits_TV), _row_factors(logits_TV)
    quantized = torch.empty_like(logits_TV, dtype=torch.float8_e4m3fn)
    if len(losses):
        _cross_entropy[(len(losses),)](
            logits_TV,
            labels_T,
            losses,
            quantized,
            factors,
            logits_TV.shape[1],
            BLOCK=VOCABULARY_BLOCK,
            QUANTISE=True,
            largest=largest,
            min_scale=min_scale,
            num_warps=16,
        )
    return losses, (quantized, factors[:, None])


@triton.jit
def _cross_entropy(
    logits,
    labels,
    losses,
    gradients,
    factors,
    size: tl.constexpr,
    BLOCK: tl.constexpr,
    QUANTISE: tl.constexpr,
    largest: tl.constexpr = 1.0,
    min_scale: tl.constexpr = 1.0,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * size
    gradients += row * size
    places = tl.arange(0, BLOCK)
    label = tl.load(labels + row)
    highest = -float("inf")
    total = 0.0
    for start in range(0, size, BLOCK):
        part = tl.load(logits + start + places, mask=start + places < size, other=-float("inf")).to(tl.float32)
        new_highest = tl.maximum(highest, tl.max(part))
        total = total * exp(highest - new_highest) + tl.sum(exp(part - new_highest))
        highest = new_highest
    logsumexp = highest + tl.log(total)
    loss = logsumexp - tl.load(logits + label).to(tl.float32)
    tl.store(losses + row, loss)
    if QUANTISE:
        # No other entry is larger than the label's, 1 - p: the others add up to it.
        factor = tl.maximum((1 - exp(-loss)) / largest, min_scale)
        tl.store(factors + row, factor)
        inverse = 1 / factor
    tl.debug_barrier()  # the label's logit has been read before it is overwritten
    for start in range(0, size, BLOCK):
        columns = start + places
        part = tl.load(logits + columns, mask=columns < size, other=-float("inf")).to(tl.float32)
        gradient = exp(part - logsumexp) - tl.where(columns == label, 1.0, 0.0)
        if QUANTISE:
            gradient = tl.clamp(gradient * inverse, -largest, largest)
        tl.store(gradients + columns, gradient.to(gradients.dtype.element_ty), mask=columns < size)


def gather_rows(table_VD: Tensor, tokens_T: Tensor) -> Tensor:
    size = table_VD.shape[1]
    out = torch.empty((len(tokens_T), size), dtype=table_VD.dtype, device=tokens_T.device)
    _gather_rows[(len(tokens_T),)](table_VD, tokens_T, out, **_whole_rows(out))
    return out


@triton.jit
def _gather_rows(table, tokens, out, size: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    source = table + tl.load(tokens + row).to(tl.int64) * size
    tl.store(out + row * size + columns, tl.load(source + columns, mask=inside, other=0.0), mask=inside)
