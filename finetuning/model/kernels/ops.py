"""The element-wise work of a decoder block as a few fused passes: norm, rotation, gate and residual, forward and backward.

Low-rank updates ride along where there are any. Between two matrix products a tensor is read once and written once; the update
`scale * t B^T` of a LoRA layer (t = x A^T, rank columns) is added inside the pass that reads the layer's output
anyway, where it costs nothing, instead of in a pass of its own. Everything is computed in float32 and rounded once.

On CUDA these are Triton kernels (`triton_kernels`, `triton_rows` and `triton_fp8` beside this module); elsewhere the same
formulas in plain PyTorch, which are also what the kernels are tested against.

Shape letters: T tokens of a row, D hidden size, F intermediate size, R LoRA rank, N query heads, K key/value heads,
H head dimension, C = (N + 2K) * H, V vocabulary, O outputs of a layer. Matrices may be columns of a wider tensor: only
the last dimension has to be contiguous.
"""

from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

FP8_MAX = 448.0  # largest number of float8_e4m3fn
MIN_SCALE = 1e-12  # of a row of zeros
FP8_ALIGNMENT = 128  # bytes from row to row; others make a product of the same size up to 15 % slower


class LowRankDelta(NamedTuple):
    """The low-rank update of a LoRA layer's output, t b^T, with t = scale * x A^T."""

    t_TR: Tensor
    b_OR: Tensor  # as many rows as the layer has outputs


def norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """RMS norm: normalized rows [T, D] and 1 / root mean square [T] (float32)."""
    if x_TD.is_cuda:
        return _triton_rows().norm(x_TD, weight_D, eps)
    wide = x_TD.float()
    inverse_T = torch.rsqrt(wide.pow(2).mean(-1) + eps)
    return ((wide * inverse_T[:, None]).to(x_TD.dtype) * weight_D), inverse_T


def norm_backward(
    grad_TD: Tensor, x_TD: Tensor, inverse_T: Tensor, weight_D: Tensor, residual_grad_TD: Tensor, out_TD: Tensor | None = None
) -> Tensor:
    """Gradient of the norm's input plus the gradient that arrives past the norm, [T, D]; written into `out`, if given.

    With n = x * inverse and g = weight * grad: inverse * (g - n * mean(g * n)).
    """
    if x_TD.is_cuda:
        return _triton_rows().norm_backward(grad_TD, x_TD, inverse_T, weight_D, residual_grad_TD, out_TD)
    normed = x_TD.float() * inverse_T[:, None]
    scaled = grad_TD.float() * weight_D.float()
    grad = inverse_T[:, None] * (scaled - normed * (scaled * normed).mean(-1, keepdim=True))
    grad = (grad + residual_grad_TD.float()).to(x_TD.dtype)
    return grad if out_TD is None else out_TD.copy_(grad)


def norm_and_quantize(x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """`norm`, and its rows as `quantize_rows` gives them."""
    if x_TD.is_cuda:
        return _triton_rows().norm_and_quantize(x_TD, weight_D, eps, FP8_MAX, MIN_SCALE)
    out_TD, inverse_T = norm(x_TD, weight_D, eps)
    return out_TD, inverse_T, quantize_rows(out_TD)


def norm_weight_gradient(grad_TD: Tensor, x_TD: Tensor, inverse_T: Tensor) -> Tensor:
    """Gradient of the norm's weight [D], float32: the sum over rows of grad * x * inverse."""
    if x_TD.is_cuda:
        return _triton_rows().norm_weight_gradient(grad_TD, x_TD, inverse_T)
    return (grad_TD.float() * x_TD.float() * inverse_T[:, None]).sum(0)


def add_low_rank_delta(x_TD: Tensor, y_TD: Tensor, update: LowRankDelta) -> Tensor:
    """x + y + update, [T, D]."""
    if x_TD.is_cuda:
        return _triton_low_rank().add_low_rank_delta(x_TD, y_TD, update)
    return (x_TD.float() + y_TD.float() + _low_rank(update)).to(x_TD.dtype)


def low_rank_delta_backward(grad_TO: Tensor, update: LowRankDelta, dt_TR: Tensor, db_OR: Tensor) -> None:
    """Writes the gradients of t and b, grad b and grad^T t, for the gradient of the output that the update was added to."""
    if grad_TO.is_cuda:
        _triton_low_rank().low_rank_delta_backward(grad_TO, update, dt_TR, db_OR)
        return
    grad = grad_TO.float()
    dt_TR.copy_(grad @ update.b_OR.float())
    db_OR.copy_(grad.t() @ update.t_TR.float())


def apply_rotary_to_heads(
    qkv_TC: Tensor, cos_TH: Tensor, sin_TH: Tensor, heads: tuple[int, int], update: LowRankDelta | None = None
) -> Tensor:
    """Adds the updates of q, k and v and rotates q and k by their positions; [T, C], contiguous.

    Args:
        cos_TH: tables of `rope_tables`, float32; both halves of H are equal.
        heads: N and K.
        update: t of q, k and v side by side [T, 3R], B of q, k and v one below the other [C, R].
    """
    if qkv_TC.is_cuda:
        return _triton_rotary().apply_rotary_to_heads(qkv_TC, cos_TH, sin_TH, heads, update)
    num_heads, num_key_value_heads = heads
    wide = qkv_TC.float()
    if update is not None:
        wide = wide + _update_of_heads(update, heads)
    per_head = wide.unflatten(-1, (num_heads + 2 * num_key_value_heads, -1))
    rotated, kept = per_head.split([num_heads + num_key_value_heads, num_key_value_heads], 1)
    return torch.cat((_rotate(rotated, cos_TH, sin_TH), kept), 1).flatten(1).to(qkv_TC.dtype)


def apply_rotary_to_heads_backward(
    grad_q_TNH: Tensor,
    grad_k_TKH: Tensor,
    grad_v_TKH: Tensor,
    cos_TH: Tensor,
    sin_TH: Tensor,
    out_TC: Tensor,
    update: LowRankDelta | None = None,
    gradients: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Turns the gradients of q and k back and writes all three side by side into `out_TC`.

    Args:
        update: as in `apply_rotary_to_heads`.
        gradients: where to write those of the update's t [T, 3R] and b [C, R].
    """
    if out_TC.is_cuda:
        _triton_rotary().apply_rotary_to_heads_backward(
            grad_q_TNH, grad_k_TKH, grad_v_TKH, cos_TH, sin_TH, out_TC, update, gradients
        )
        return
    rotated = _rotate(torch.cat((grad_q_TNH, grad_k_TKH), 1).float(), cos_TH, -sin_TH)
    out_TC.copy_(torch.cat((rotated, grad_v_TKH.float()), 1).flatten(1))
    if update is not None and gradients is not None:
        sizes = [grad[0].numel() for grad in (grad_q_TNH, grad_k_TKH, grad_v_TKH)]
        per_kind = (
            out_TC.split(sizes, -1),
            update.t_TR.chunk(3, -1),
            update.b_OR.split(sizes),
            gradients[0].chunk(3, -1),
            gradients[1].split(sizes),
        )
        for grad, t, b, dt, db in zip(*per_kind, strict=True):
            low_rank_delta_backward(grad, LowRankDelta(t, b), dt, db)


def gate(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """silu(gate) * up, [T, F]."""
    if gate_TF.is_cuda:
        return _triton_gate().gate(gate_TF, up_TF, None)
    return (F.silu(gate_TF.float()) * up_TF.float()).to(gate_TF.dtype)


def gate_with_adapters(
    gate_TF: Tensor, up_TF: Tensor, updates: tuple[LowRankDelta, LowRankDelta], a_RF: Tensor
) -> tuple[Tensor, Tensor]:
    """silu(gate) * up, each with its update, [T, F], and that times A^T, [T, R], for the adapter of the next layer."""
    if gate_TF.is_cuda:
        inner_TF = _triton_gate().gate(gate_TF, up_TF, updates)
    else:
        wide_gate, wide_up = _updated(gate_TF, up_TF, updates)
        inner_TF = (F.silu(wide_gate) * wide_up).to(gate_TF.dtype)
    return inner_TF, inner_TF @ a_RF.t()


def gate_backward(grad_TF: Tensor, gate_TF: Tensor, up_TF: Tensor, grad_gate_TF: Tensor, grad_up_TF: Tensor) -> Tensor:
    """Backward of `gate`; writes the two gradients in place and returns the gate's output [T, F] once more."""
    if grad_TF.is_cuda:
        return _triton_gate().gate_backward(grad_TF, gate_TF, up_TF, grad_gate_TF, grad_up_TF)
    return _gate_backward(grad_TF.float(), gate_TF.float(), up_TF.float(), grad_gate_TF, grad_up_TF).to(gate_TF.dtype)


def gate_backward_with_adapters(
    grad_TF: Tensor,
    gate_TF: Tensor,
    up_TF: Tensor,
    grad_gate_TF: Tensor,
    grad_up_TF: Tensor,
    updates: tuple[LowRankDelta, LowRankDelta],
    through: tuple[Tensor, Tensor],
    gradients: tuple[Tensor, Tensor, Tensor],
    scale: float,
) -> None:
    """The same for layers with adapters, with the sums over tokens that the gate's output and gradients are good for.

    Args:
        grad_TF: gradient of the output through the weight of the next layer.
        through: dt [T, R] and A [R, F] of the next layer's adapter, whose part of that gradient, dt A, is added here.
        gradients: where to write the gradients of B of gate and up [F, R], and of the next layer's A [R, F]: dgate^T t, dup^T t
            and scale * dt^T inner, all without a pass of their own.
    """
    if grad_TF.is_cuda:
        _triton_gate().gate_backward_with_adapters(
            grad_TF, gate_TF, up_TF, grad_gate_TF, grad_up_TF, updates, through, gradients, scale
        )
        return
    dt_TR, a_RF = (x.float() for x in through)
    wide_gate, wide_up = _updated(gate_TF, up_TF, updates)
    inner = _gate_backward(grad_TF.float() + dt_TR @ a_RF, wide_gate, wide_up, grad_gate_TF, grad_up_TF)
    gradients[0].copy_(grad_gate_TF.float().t() @ updates[0].t_TR.float())
    gradients[1].copy_(grad_up_TF.float().t() @ updates[1].t_TR.float())
    gradients[2].copy_(scale * (dt_TR.t() @ inner))


def _gate_backward(grad: Tensor, gate: Tensor, up: Tensor, grad_gate_TF: Tensor, grad_up_TF: Tensor) -> Tensor:
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    grad_gate_TF.copy_(grad * up * (sigmoid + silu * (1 - sigmoid)))
    grad_up_TF.copy_(grad * silu)
    return silu * up


def cross_entropy(logits_TV: Tensor, labels_T: Tensor) -> Tensor:
    """Cross-entropy of each row [T], float32 or wider; overwrites the logits with their gradient, softmax minus one-hot."""
    if logits_TV.is_cuda and logits_TV.dtype in (torch.bfloat16, torch.float16):
        return _triton_rows().cross_entropy(logits_TV, labels_T)
    wide = at_least_float32(logits_TV)
    logsumexp = torch.logsumexp(wide, -1, keepdim=True)
    losses = logsumexp - wide.gather(1, labels_T[:, None])
    softmax_minus_one_hot(wide, logsumexp, labels_T, torch.ones_like(logsumexp))
    if wide.data_ptr() != logits_TV.data_ptr():
        logits_TV.copy_(wide)
    return losses[:, 0]


def cross_entropy_and_quantize(logits_TV: Tensor, labels_T: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """`cross_entropy`, with the gradient as `quantize_rows` gives it instead of in place of the logits."""
    if logits_TV.is_cuda:
        return _triton_rows().cross_entropy_and_quantize(logits_TV, labels_T, FP8_MAX, MIN_SCALE)
    losses_T = cross_entropy(logits_TV, labels_T)
    return losses_T, quantize_rows(logits_TV)


def softmax_minus_one_hot(logits_TV: Tensor, logsumexp_T1: Tensor, labels_T: Tensor, labeled_T1: Tensor) -> None:
    """Overwrites logits with the gradient of their cross-entropies.

    Some columns of wider logits will do: `logsumexp` is that of the whole row, and `labeled` 1 where the label is among
    these columns, else 0.
    """
    logits_TV.sub_(logsumexp_T1).exp_()
    logits_TV.scatter_add_(1, labels_T[:, None], -labeled_T1)


def at_least_float32(x: Tensor) -> Tensor:
    """For reductions and the loss: float32, or float64 where x is that already, as in the self-test."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def quantize_rows(x_TD: Tensor, columns_D: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rows in fp8 (e4m3) and the factor of each [T, 1] (float32): x = fp8 * factor, the largest value of a row at 448.

    With `columns` (float32), the columns are multiplied by these numbers first.
    """
    if x_TD.is_cuda:
        return _triton_fp8().quantize_rows(
            x_TD, columns_D, empty_fp8(len(x_TD), x_TD.shape[1], x_TD.device), FP8_MAX, MIN_SCALE
        )
    return _quantized(x_TD.float() if columns_D is None else x_TD.float() * columns_D, MIN_SCALE)


def empty_fp8(rows: int, columns: int, device: torch.device) -> Tensor:
    """Room for a matrix in fp8, aligned for products."""
    return torch.empty(rows, columns + -columns % FP8_ALIGNMENT, dtype=torch.float8_e4m3fn, device=device)[:, :columns]


def quantize_beside(a_RI: Tensor, factors_I1: Tensor, out_IR: Tensor) -> Tensor:
    """Writes the transpose of A in fp8 into columns of a matrix whose rows have these factors.

    Returns a multiplier [R] (float32) of each column: a = multiplier * factor * fp8, the largest value of a column at 448.
    """
    if a_RI.is_cuda:
        return _triton_fp8().quantize_beside(a_RI, factors_I1, out_IR, FP8_MAX, MIN_SCALE)
    quantized_RI, multipliers_R1 = quantize_rows(a_RI.float() / factors_I1.t())
    out_IR.copy_(quantized_RI.t())
    return multipliers_R1[:, 0]


def quantize_columns(x_TD: Tensor, min_scale: float = MIN_SCALE) -> tuple[Tensor, Tensor]:
    """The same for columns: the transpose of x in fp8 [D, T] and the factor of each column [D, 1].

    With a larger least factor, the values of columns that are small beside the others do not reach 448.
    """
    if x_TD.is_cuda:
        return _triton_fp8().quantize_columns(x_TD, FP8_MAX, min_scale)
    return _quantized(x_TD.t().float(), min_scale)


def transpose(x_OI: Tensor) -> Tensor:
    """The transpose [I, O] of a matrix in fp8, contiguous."""
    if x_OI.is_cuda:
        return _triton_fp8().transpose(x_OI)
    return x_OI.view(torch.uint8).t().contiguous().view(x_OI.dtype)


def gather_rows(table_VD: Tensor, tokens_T: Tensor) -> Tensor:
    """Rows of a table [T, D], on the device of the tokens; for tokens on a GPU, the table lies in pinned host memory."""
    if tokens_T.is_cuda:
        return _triton_rows().gather_rows(table_VD, tokens_T)
    return table_VD[tokens_T]


def scaled_product(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor], dtype: torch.dtype, *, fast_sums: bool = True) -> Tensor:
    """x y^T [T, O] of two matrices [T, I] and [O, I] that are quantized by rows, returned in `dtype`.

    On CUDA, T may be anything; O and I must be multiples of 16.

    Args:
        fast_sums: let Hopper add 32 products and the sum so far with some 14 bits. Otherwise the sum goes into float32 every
            128 products or so, which takes 5 % longer. Needed for many small terms beside large ones where the sums nearly
            cancel over rows, as with a softmax gradient and the head (`benchmarks/fp8_sums.py`).
    """
    (x_TI, x_factors_T1), (y_OI, y_factors_O1) = x, y
    if not x_TI.is_cuda:  # the same numbers, slowly
        return ((x_TI.float() @ y_OI.float().t()) * x_factors_T1 * y_factors_O1.t()).to(dtype)
    # The row-wise scaled product has no public name up to torch 2.13.
    return torch._scaled_mm(
        x_TI, y_OI.t(), scale_a=x_factors_T1, scale_b=y_factors_O1.t(), out_dtype=dtype, use_fast_accum=fast_sums
    )


def _triton_low_rank() -> ModuleType:
    """Imported where it is needed, as the others: Triton comes with PyTorch for CUDA only."""
    from finetuning.model.kernels import triton_low_rank

    return triton_low_rank


def _triton_rotary() -> ModuleType:
    from finetuning.model.kernels import triton_rotary

    return triton_rotary


def _triton_gate() -> ModuleType:
    from finetuning.model.kernels import triton_gate

    return triton_gate


def _triton_rows() -> ModuleType:
    from finetuning.model.kernels import triton_rows

    return triton_rows


def _triton_fp8() -> ModuleType:
    from finetuning.model.kernels import triton_fp8

    return triton_fp8


def _quantized(wide_TD: Tensor, min_scale: float) -> tuple[Tensor, Tensor]:
    scale_T1 = wide_TD.abs().amax(-1, keepdim=True).clamp_min(min_scale * FP8_MAX) / FP8_MAX
    return (wide_TD / scale_T1).to(torch.float8_e4m3fn), scale_T1


def _low_rank(update: LowRankDelta) -> Tensor:
    return update.t_TR.float() @ update.b_OR.float().t()


def _updated(gate_TF: Tensor, up_TF: Tensor, updates: tuple[LowRankDelta, LowRankDelta]) -> tuple[Tensor, Tensor]:
    return gate_TF.float() + _low_rank(updates[0]), up_TF.float() + _low_rank(updates[1])


def _update_of_heads(update: LowRankDelta, heads: tuple[int, int]) -> Tensor:
    num_heads, num_key_value_heads = heads
    head_dim = update.b_OR.shape[0] // (num_heads + 2 * num_key_value_heads)
    sizes = [num_heads * head_dim, num_key_value_heads * head_dim, num_key_value_heads * head_dim]
    parts = zip(update.t_TR.chunk(3, -1), update.b_OR.split(sizes), strict=True)
    return torch.cat([_low_rank(LowRankDelta(t, b)) for t, b in parts], -1)


def _rotate(x_TNH: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
    first, second = x_TNH.chunk(2, -1)
    return x_TNH * cos_TH[:, None] + torch.cat((-second, first), -1) * sin_TH[:, None]
