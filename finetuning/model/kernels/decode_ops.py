"""What one new token of each of a few sequences passes through, as few fused passes over weights and cached keys.

On CUDA these are Triton kernels (`triton_decode` beside this module); products with several rows are cuBLAS's, which reads a
weight as fast as tiles in Triton did (one H200, 2026-11-29, 2 to 128 rows: 56 to 98 % of the speed of memory). Elsewhere the
same formulas in plain PyTorch, against which the kernels are tested.

The cache is cut into pages of some positions, which belong to sequences in any order: a table has the pages of each slot.

Shape letters: S slots (sequences), D hidden size, F intermediate size, I inputs and O outputs of a layer, N query heads,
K key/value heads, H head dimension, C = (N + 2K) * H, V vocabulary, A pages of the cache, P pages of a slot, L positions of a
page.
"""

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from finetuning.model.kernels import ops

Cache = tuple[Tensor, Tensor]  # keys and values of a layer, each [A, K, L, H]
Norm = tuple[Tensor, float]  # weight and epsilon
LOW_32_BITS = 2**32 - 1


def norm_product(x_SD: Tensor, norm: Norm, weight_OD: Tensor) -> Tensor:
    """The RMS norm of x times a weight: [S, O]."""
    if x_SD.is_cuda and len(x_SD) == 1:
        return _triton().vector_product(x_SD, weight_OD, norm=norm)
    return product(ops.norm(x_SD, *norm)[0], weight_OD)


def norm_gate_product(x_SD: Tensor, norm: Norm, weight_OD: Tensor) -> Tensor:
    """With gate and up the two halves of the product with the normed x: silu(gate) * up, [S, F]."""
    if x_SD.is_cuda and len(x_SD) == 1:
        return _triton().vector_product(x_SD, weight_OD, norm=norm, gated=True)
    return ops.gate(*product(ops.norm(x_SD, *norm)[0], weight_OD).chunk(2, -1))


def product(x_SI: Tensor, weight_OI: Tensor) -> Tensor:
    """x W^T: [S, O]."""
    if x_SI.is_cuda and len(x_SI) == 1:
        return _triton().vector_product(x_SI, weight_OI)
    return F.linear(x_SI, weight_OI)


def add_product(x_SI: Tensor, weight_OI: Tensor, residual_SO: Tensor) -> Tensor:
    """x W^T + residual, [S, O], in the place of the residual."""
    if x_SI.is_cuda and len(x_SI) == 1:
        return _triton().vector_product(x_SI, weight_OI, residual_1O=residual_SO)
    return residual_SO.addmm_(x_SI, weight_OI.t())


def rotate_and_store(
    qkv_SC: Tensor, tables: tuple[Tensor, Tensor], position_S: Tensor, pages_SP: Tensor, cache: Cache, num_heads: int
) -> Tensor:
    """Rotates q and k by their positions and writes k and v into the cache there; returns q [S, N, H].

    Args:
        qkv_SC: rows may be wider.
        tables: cosines and sines [positions, H / 2], float32.
    """
    if qkv_SC.is_cuda:
        return _triton().rotate_and_store(qkv_SC, tables, position_S, pages_SP, cache, num_heads)
    keys, values = cache
    _, num_key_value_heads, page, head_dim = keys.shape
    heads = [num_heads, num_key_value_heads, num_key_value_heads]
    q, k, v = qkv_SC[:, : sum(heads) * head_dim].unflatten(-1, (-1, head_dim)).split(heads, 1)
    cos, sin = (table[position_S][:, None] for table in tables)
    q, k = (_rotate(x, cos, sin) for x in (q, k))
    held_S = pages_SP.gather(1, (position_S // page).long()[:, None])[:, 0]
    keys[held_S, :, position_S % page] = k
    values[held_S, :, position_S % page] = v
    return q


def paged_attention(q_SNH: Tensor, cache: Cache, pages_SP: Tensor, position_S: Tensor) -> Tensor:
    """Attention [S, N, H] of each query to the positions of its slot up to its own, which is in the cache."""
    if q_SNH.is_cuda:
        return _triton().paged_attention(q_SNH, cache, pages_SP, position_S)
    k, v = (positions_of(pages, pages_SP) for pages in cache)
    seen_SL = torch.arange(k.shape[2]) <= position_S[:, None]
    q_SKGH = q_SNH.unflatten(1, (k.shape[1], -1))  # the queries of a key/value head stand in for positions
    return F.scaled_dot_product_attention(q_SKGH, k, v, attn_mask=seen_SL[:, None, None]).flatten(1, 2)


def positions_of(pages_AKLH: Tensor, pages_SP: Tensor) -> Tensor:
    """Keys or values of each slot in the order of positions: [S, K, P * L, H]."""
    return pages_AKLH[pages_SP.long()].transpose(1, 2).flatten(2, 3)


def add_gumbel(scaled_SV: Tensor, keys_S2: Tensor) -> Tensor:
    """Logits with a number for each token of the vocabulary that follows from the row's keys, distributed as Gumbel's."""
    if scaled_SV.is_cuda:
        return _triton().add_gumbel(scaled_SV, keys_S2)
    first, second = keys_S2[:, :1], keys_S2[:, 1:]
    bits_SV = hash32(hash32(torch.arange(scaled_SV.shape[1]) + first) + second)
    uniform_SV = ((bits_SV >> 9).float() + 0.5) * 2.0**-23  # exact, and neither 0 nor 1
    return scaled_SV - (-uniform_SV.log()).log()


def hash32(x: Tensor) -> Tensor:
    """The lower 32 bits of each number, mixed, as int64 (lowbias32, C. Wellons 2018)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = x & LOW_32_BITS
        x = ((x ^ (x >> shift)) * factor) & LOW_32_BITS
    return x ^ (x >> 16)


def hash_of(number: int) -> int:
    """`hash32` of one number."""
    return int(hash32(torch.tensor(number)))


def _rotate(x_SNH: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = ops.at_least_float32(x_SNH).chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x_SNH.dtype)


def _triton() -> ModuleType:
    """Imported where it is needed: Triton comes with PyTorch for CUDA only."""
    from finetuning.model.kernels import triton_decode

    return triton_decode
