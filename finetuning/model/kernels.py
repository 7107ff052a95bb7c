"""The element-wise work of a decoder block as a few fused passes: norm, rotation, gate and residual, forward and backward.

Low-rank updates ride along. Between two matrix products a tensor is read once and written once; the update
`scale * t B^T` of a LoRA layer (t = x A^T, rank columns) is added inside the pass that reads the layer's output
anyway, where it costs nothing, instead of in a pass of its own. Everything is computed in float32 and rounded once.

On CUDA these are Triton kernels (`finetuning.model.triton_kernels`); elsewhere the same formulas in plain PyTorch,
which are also what the kernels are tested against.

Shape letters: T tokens of a row, D hidden size, F intermediate size, R LoRA rank, N query heads, K key/value heads,
H head dimension, C = (N + 2K) * H, V vocabulary. Matrices may be columns of a wider tensor: only the last dimension has
to be contiguous.
"""

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

FP8_MAX = 448.0  # largest number of float8_e4m3fn
LEAST_FACTOR = 1e-12  # of a row of zeros


def norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """RMS norm: normalised rows [T, D] and 1 / root mean square [T] (float32)."""
    if x_TD.is_cuda:
        return _triton().norm(x_TD, weight_D, eps)
    wide = x_TD.float()
    inverse_T = torch.rsqrt(wide.pow(2).mean(-1) + eps)
    return ((wide * inverse_T[:, None]).to(x_TD.dtype) * weight_D), inverse_T


def norm_backward(grad_TD: Tensor, x_TD: Tensor, inverse_T: Tensor, weight_D: Tensor, residual_grad_TD: Tensor) -> Tensor:
    """Gradient of the norm's input plus the gradient that arrives past the norm, [T, D].

    With n = x * inverse and g = weight * grad: inverse * (g - n * mean(g * n)).
    """
    if x_TD.is_cuda:
        return _triton().norm_backward(grad_TD, x_TD, inverse_T, weight_D, residual_grad_TD)
    normed = x_TD.float() * inverse_T[:, None]
    scaled = grad_TD.float() * weight_D.float()
    grad = inverse_T[:, None] * (scaled - normed * (scaled * normed).mean(-1, keepdim=True))
    return (grad + residual_grad_TD.float()).to(x_TD.dtype)


def add_update(x_TD: Tensor, y_TD: Tensor, t_TR: Tensor, b_DR: Tensor, scale: float) -> Tensor:
    """x + y + scale * t b^T, [T, D]."""
    if x_TD.is_cuda:
        return _triton().add_update(x_TD, y_TD, t_TR, b_DR, scale)
    return (x_TD.float() + y_TD.float() + _update(t_TR, b_DR, scale)).to(x_TD.dtype)


def rotate_heads(
    qkv_TC: Tensor, t_T3R: Tensor, b_CR: Tensor, scale: float, cos_TH: Tensor, sin_TH: Tensor, heads: tuple[int, int]
) -> Tensor:
    """Adds the updates of q, k and v and turns q and k by their positions; [T, C], contiguous.

    Args:
        t_T3R: t of q, k and v side by side.
        b_CR: B of q, k and v one below the other.
        cos_TH: tables of `rope_tables`, float32; both halves of H are equal.
        heads: N and K.
    """
    if qkv_TC.is_cuda:
        return _triton().rotate_heads(qkv_TC, t_T3R, b_CR, scale, cos_TH, sin_TH, heads)
    num_heads, num_key_value_heads = heads
    wide = qkv_TC.float() + _update_of_heads(t_T3R, b_CR, scale, heads)
    per_head = wide.unflatten(-1, (num_heads + 2 * num_key_value_heads, -1))
    turned, kept = per_head.split([num_heads + num_key_value_heads, num_key_value_heads], 1)
    return torch.cat((_turn(turned, cos_TH, sin_TH), kept), 1).flatten(1).to(qkv_TC.dtype)


def rotate_heads_backward(
    grad_q_TNH: Tensor, grad_k_TKH: Tensor, grad_v_TKH: Tensor, cos_TH: Tensor, sin_TH: Tensor, out_TC: Tensor
) -> None:
    """Turns the gradients of q and k back and writes all three side by side into `out_TC`."""
    if out_TC.is_cuda:
        return _triton().rotate_heads_backward(grad_q_TNH, grad_k_TKH, grad_v_TKH, cos_TH, sin_TH, out_TC)
    turned = _turn(torch.cat((grad_q_TNH, grad_k_TKH), 1).float(), cos_TH, -sin_TH)
    out_TC.copy_(torch.cat((turned, grad_v_TKH.float()), 1).flatten(1))
    return None


def gate(gate_TF: Tensor, up_TF: Tensor, t_T2R: Tensor, b_gate_FR: Tensor, b_up_FR: Tensor, scale: float) -> Tensor:
    """silu(gate + update) * (up + update), [T, F]; `t_T2R` holds t of gate and up side by side."""
    if gate_TF.is_cuda:
        return _triton().gate(gate_TF, up_TF, t_T2R, b_gate_FR, b_up_FR, scale)
    t_gate, t_up = t_T2R.chunk(2, -1)
    wide_gate = gate_TF.float() + _update(t_gate, b_gate_FR, scale)
    return (F.silu(wide_gate) * (up_TF.float() + _update(t_up, b_up_FR, scale))).to(gate_TF.dtype)


def gate_backward(
    grad_TF: Tensor, dt_TR: Tensor, a_RF: Tensor, gate_TF: Tensor, up_TF: Tensor, t_T2R: Tensor, b_gate_FR: Tensor,
    b_up_FR: Tensor, scale: float, grad_gate_TF: Tensor, grad_up_TF: Tensor,
) -> Tensor:  # fmt: skip
    """Backward of `gate`; writes the two gradients in place and returns the gate's output [T, F] once more.

    Args:
        grad_TF: gradient of the output through the frozen weight of the next layer; that through its adapter,
            dt a, is added here.
        dt_TR: scale * (gradient of the next layer's output) B.
        a_RF: A of the next layer.
    """
    if grad_TF.is_cuda:
        return _triton().gate_backward(
            grad_TF, dt_TR, a_RF, gate_TF, up_TF, t_T2R, b_gate_FR, b_up_FR, scale, grad_gate_TF, grad_up_TF
        )
    t_gate, t_up = t_T2R.chunk(2, -1)
    grad = grad_TF.float() + dt_TR.float() @ a_RF.float()
    wide_gate = gate_TF.float() + _update(t_gate, b_gate_FR, scale)
    wide_up = up_TF.float() + _update(t_up, b_up_FR, scale)
    sigmoid = torch.sigmoid(wide_gate)
    silu = wide_gate * sigmoid
    grad_gate_TF.copy_(grad * wide_up * (sigmoid + silu * (1 - sigmoid)))
    grad_up_TF.copy_(grad * silu)
    return (silu * wide_up).to(gate_TF.dtype)


def cross_entropy(logits_TV: Tensor, labels_T: Tensor) -> Tensor:
    """Cross-entropy of each row [T], float32 or wider; overwrites the logits with their gradient, softmax minus one-hot."""
    if logits_TV.is_cuda and logits_TV.dtype in (torch.bfloat16, torch.float16):
        return _triton().cross_entropy(logits_TV, labels_T)
    wide = at_least_float32(logits_TV)
    logsumexp = torch.logsumexp(wide, -1, keepdim=True)
    losses = logsumexp - wide.gather(1, labels_T[:, None])
    softmax_minus_one_hot(wide, logsumexp, labels_T, torch.ones_like(logsumexp))
    if wide.data_ptr() != logits_TV.data_ptr():
        logits_TV.copy_(wide)
    return losses[:, 0]


def softmax_minus_one_hot(logits_TV: Tensor, logsumexp_T1: Tensor, labels_T: Tensor, labelled_T1: Tensor) -> None:
    """Overwrites logits with the gradient of their cross-entropies.

    Some columns of wider logits will do: `logsumexp` is that of the whole row, and `labelled` 1 where the label is among
    these columns, else 0.
    """
    logits_TV.sub_(logsumexp_T1).exp_()
    logits_TV.scatter_add_(1, labels_T[:, None], -labelled_T1)


def at_least_float32(x: Tensor) -> Tensor:
    """For reductions and the loss: float32, or float64 where x is that already, as in the self-test."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def quantise_rows(x_TD: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in fp8 (e4m3) and the factor of each [T, 1] (float32): x = fp8 * factor, the largest value of a row at 448."""
    if x_TD.is_cuda:
        return _triton().quantise_rows(x_TD, FP8_MAX, LEAST_FACTOR)
    wide = x_TD.float()
    factor_T1 = wide.abs().amax(-1, keepdim=True).clamp_min(LEAST_FACTOR * FP8_MAX) / FP8_MAX
    return (wide / factor_T1).to(torch.float8_e4m3fn), factor_T1


def _triton() -> ModuleType:
    """Imported where it is needed: Triton comes with PyTorch for CUDA only."""
    from finetuning.model import triton_kernels

    return triton_kernels


def _update(t_TR: Tensor, b_DR: Tensor, scale: float) -> Tensor:
    return scale * (t_TR.float() @ b_DR.float().t())


def _update_of_heads(t_T3R: Tensor, b_CR: Tensor, scale: float, heads: tuple[int, int]) -> Tensor:
    num_heads, num_key_value_heads = heads
    head_dim = b_CR.shape[0] // (num_heads + 2 * num_key_value_heads)
    sizes = [num_heads * head_dim, num_key_value_heads * head_dim, num_key_value_heads * head_dim]
    parts = zip(t_T3R.chunk(3, -1), b_CR.split(sizes), strict=True)
    return torch.cat([_update(t, b, scale) for t, b in parts], -1)


def _turn(x_TNH: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
    first, second = x_TNH.chunk(2, -1)
    return x_TNH * cos_TH[:, None] + torch.cat((-second, first), -1) * sin_TH[:, None]
