"""Causal attention inside documents: a token sees the earlier tokens of its own document and nothing else.

A packed row holds several documents one after another. On CUDA with half precision the kernel is PyTorch's built-in
variable-length flash attention; elsewhere each document goes through `scaled_dot_product_attention` by itself.

torch.compile must not specialise on the number of documents or on the longest one (396 recompiles in one project),
and padding `cu_seqlens` with empty documents makes the kernel 8-15 times slower. So `Documents` has a fixed shape, and
an operator that the compiler cannot look into cuts the boundaries to their real number.

Shape letters: T tokens of a row, N query heads, K key/value heads, H head dimension.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Documents(NamedTuple):
    """Document boundaries of one packed row of T tokens.

    Example: documents of 3 and 2 tokens in a row of 5 have boundaries [0, 3, 5, …] (the rest is unused) and
    extent [2, 3].
    """

    boundaries: Tensor  # int32 on the device, fixed length for a row length; entries 0 … count are valid
    extent: Tensor  # int64 [2] on the CPU: number of documents, tokens of the longest one

    def to(self, device: torch.device) -> "Documents":
        return Documents(self.boundaries.to(device, non_blocking=True), self.extent)


def make_documents(lengths: list[int]) -> Documents:
    """Boundaries of documents with these lengths (tokens, all positive), on the CPU."""
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    boundaries = torch.zeros(int(ends[-1]) + 1, dtype=torch.int32)
    boundaries[: len(ends)] = ends
    return Documents(boundaries, torch.tensor([len(lengths), max(lengths)]))


def document_attention(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, documents: Documents) -> Tensor:
    """Attention output [T, N, H]; query head n reads key/value head n // (N / K)."""
    if q_TNH.is_cuda and q_TNH.dtype in (torch.bfloat16, torch.float16):
        return torch.ops.finetuning.flash_documents(q_TNH, k_TKH, v_TKH, documents.boundaries, documents.extent)[0]
    return _attention_per_document(q_TNH, k_TKH, v_TKH, documents)


def _attention_per_document(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, documents: Documents) -> Tensor:
    count = int(documents.extent[0])
    lengths = documents.boundaries[: count + 1].diff().tolist()
    outputs = []
    for q, k, v in zip(q_TNH.split(lengths), k_TKH.split(lengths), v_TKH.split(lengths), strict=True):
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        outputs.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)[0].transpose(0, 1))
    return torch.cat(outputs)


# The flash kernel behind an opaque operator. aten._flash_attention_forward has kept this signature from
# torch 2.6 to 2.13; the log-sum-exp [N, T] and the random state are only needed by its backward.
@torch.library.custom_op("finetuning::flash_documents", mutates_args=())
def _flash_documents(q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor, extent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    count, longest = extent.tolist()
    cut = boundaries[: count + 1]
    out, logsumexp, rng_state, _, _ = torch.ops.aten._flash_attention_forward(
        q, k, v, cut, cut, longest, longest, 0.0, True, False
    )
    return out, logsumexp, rng_state


@_flash_documents.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor, extent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logsumexp = q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)
    return torch.empty_like(q), logsumexp, q.new_empty((2,), dtype=torch.uint64)


@torch.library.custom_op("finetuning::flash_documents_backward", mutates_args=())
def _flash_documents_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, rng_state: Tensor,
    boundaries: Tensor, extent: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    count, longest = extent.tolist()
    cut = boundaries[: count + 1]
    return torch.ops.aten._flash_attention_backward(
        grad, q, k, v, out, logsumexp, cut, cut, longest, longest, 0.0, True, rng_state, torch.empty_like(rng_state)
    )


@_flash_documents_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, rng_state: Tensor,
      boundaries: Tensor, extent: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, boundaries, extent = inputs
    out, logsumexp, rng_state = output
    ctx.save_for_backward(q, k, v, out, logsumexp, rng_state, boundaries, extent)


def _backward(ctx, grad, _grad_logsumexp, _grad_rng_state):  # type: ignore[no-untyped-def]
    q, k, v, out, logsumexp, rng_state, boundaries, extent = ctx.saved_tensors
    grads = torch.ops.finetuning.flash_documents_backward(
        grad.contiguous(), q, k, v, out, logsumexp, rng_state, boundaries, extent
    )
    return *grads, None, None


_flash_documents.register_autograd(_backward, setup_context=_setup_context)
