"""Causal attention inside documents: a token sees the earlier tokens of its own document and nothing else.

A packed row holds several documents one after another. On CUDA with half precision the kernel is PyTorch's built-in
variable-length flash attention; elsewhere each document goes through `scaled_dot_product_attention` by itself.
`document_attention` is differentiable; the two functions behind it serve the hand-written backward of
`finetuning.model.blocks.lora_block`.

torch.compile must not specialize on the number of documents or on the longest one (396 recompiles in one project),
and padding `cu_seqlens` with empty documents makes the kernel 8-15 times slower. So `Documents` has a fixed shape, and
an operator that the compiler cannot look into cuts the boundaries to their real number.

Shape letters: T tokens of a row, N query heads, K key/value heads, H head dimension.
"""

import importlib.metadata
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from finetuning.i18n import t

FLASH_4_VERSION = "4.0.0b36"
# From this length on, a row that is one document goes to FlashAttention-4 without boundaries, which is up to 10 % faster. That
# is a second pair of kernels to compile, at the first such row; shorter documents, which may be alone by chance, never need it.
WITHOUT_BOUNDARIES_FROM = 4096


class Documents(NamedTuple):
    """Document boundaries of one packed row of T tokens.

    Example: documents of 3 and 2 tokens in a row of 5 have boundaries [0, 3, 5, …] (the rest is unused) and
    extent [2, 3].
    """

    boundaries: Tensor  # int32 on the device, fixed length for a row length; entries 0 … count are valid
    extent: Tensor  # int64 [2] on the CPU: number of documents, tokens of the longest one

    def to(self, device: torch.device) -> "Documents":
        return Documents(sent(self.boundaries, device), self.extent)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of a CPU tensor, under way to the device: from memory that is not pinned, the CPU would wait for the GPU."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def make_documents(lengths: list[int]) -> Documents:
    """Boundaries of documents with these lengths (tokens, all positive), on the CPU."""
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    boundaries = torch.zeros(int(ends[-1]) + 1, dtype=torch.int32)
    boundaries[: len(ends)] = ends
    return Documents(boundaries, torch.tensor([len(lengths), max(lengths)]))


def document_attention(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, documents: Documents) -> Tensor:
    """Attention output [T, N, H]; query head n reads key/value head n // (N / K)."""
    if _has_flash(q_TNH) or torch.compiler.is_compiling():
        return torch.ops.finetuning.document_attention(q_TNH, k_TKH, v_TKH, documents.boundaries, documents.extent)[0]
    return _attention_per_document(q_TNH, k_TKH, v_TKH, documents)


def attention_forward(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, documents: Documents) -> tuple[Tensor, Tensor]:
    """Output [T, N, H] and what `attention_backward` needs besides: log-sum-exp [N, T] (empty on the CPU).

    Not differentiable by itself.
    """
    if not _has_flash(q_TNH):
        out = _attention_per_document(q_TNH, k_TKH, v_TKH, documents)
        return out, q_TNH.new_empty(0, dtype=torch.float32)
    cut, longest = _cut(documents)
    if (flash_4 := _flash_4()) is None:
        found = torch.ops.aten._flash_attention_forward(q_TNH, k_TKH, v_TKH, cut, cut, longest, longest, 0.0, True, False)
    elif _without_boundaries(q_TNH, longest):
        rows = (x[None] for x in (q_TNH, k_TKH, v_TKH))
        found = [x[0] for x in flash_4.forward(*rows, causal=True, pack_gqa=False, return_lse=True)[:2]]
    else:
        found = flash_4.forward(
            q_TNH,
            k_TKH,
            v_TKH,
            cu_seqlens_q=cut,
            cu_seqlens_k=cut,
            max_seqlen_q=longest,
            max_seqlen_k=longest,
            causal=True,
            return_lse=True,
        )
    return found[0], found[1]


def attention_backward(
    grad_TNH: Tensor, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, out_TNH: Tensor, logsumexp: Tensor, documents: Documents
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    if not _has_flash(q_TNH):
        lengths = _lengths(documents)
        parts = zip(*(x.split(lengths) for x in (grad_TNH, q_TNH, k_TKH, v_TKH)), strict=True)
        grads = zip(*(_softmax_attention_backward(*part) for part in parts), strict=True)
        dq, dk, dv = (torch.cat(grad) for grad in grads)
        return dq, dk, dv
    cut, longest = _cut(documents)
    if (flash_4 := _flash_4()) is not None:
        inputs = (q_TNH, k_TKH, v_TKH, out_TNH, grad_TNH, logsumexp)
        if _without_boundaries(q_TNH, longest):
            dq, dk, dv = (grad[0] for grad in flash_4.backward(*(x[None] for x in inputs), causal=True)[:3])
        else:
            dq, dk, dv = flash_4.backward(
                *inputs, cu_seqlens_q=cut, cu_seqlens_k=cut, max_seqlen_q=longest, max_seqlen_k=longest, causal=True
            )[:3]
        return dq, dk, dv
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=q_TNH.device)  # the random state that dropout would need
    dq, dk, dv = torch.ops.aten._flash_attention_backward(
        grad_TNH,
        q_TNH,
        k_TKH,
        v_TKH,
        out_TNH,
        logsumexp,
        cut,
        cut,
        longest,
        longest,
        0.0,
        True,
        no_dropout,
        torch.empty_like(no_dropout),
    )
    return dq, dk, dv


class Attended:
    """Attention of any kind inside a hand-written function; its backward pass is autograd's own."""

    def __init__(self, attend: Callable[..., Tensor], q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, documents: Documents):
        differentiable = not torch.is_inference_mode_enabled()
        self._inputs = [x.detach().requires_grad_(differentiable) for x in (q_TNH, k_TKH, v_TKH)]
        with torch.set_grad_enabled(differentiable):
            self._out_TNH = attend(*self._inputs, documents)

    @property
    def out_TNH(self) -> Tensor:
        return self._out_TNH.detach()

    def backward(self, grad_TNH: Tensor) -> tuple[Tensor, ...]:
        """Gradients of q, k and v, contiguous; once."""
        return tuple(grad.contiguous() for grad in torch.autograd.grad(self._out_TNH, self._inputs, grad_TNH))


def attention_kernel(device: torch.device, dtype: torch.dtype) -> str:
    """Name of the kernel that `document_attention` uses there."""
    if not _has_flash(torch.empty(0, device=device, dtype=dtype)):
        return "SDPA"
    return "FlashAttention-2" if _flash_4() is None else "FlashAttention-4"


def _has_flash(q: Tensor) -> bool:
    return q.is_cuda and q.dtype in (torch.bfloat16, torch.float16)


class _Flash4(NamedTuple):
    forward: Callable[..., tuple[Tensor, ...]]
    backward: Callable[..., tuple[Tensor, ...]]


class _Search(NamedTuple):
    kernels: _Flash4 | None
    unused_because: str | None  # for the user, where the package is installed and its kernels are not used


def why_flash_4_is_unused() -> str | None:
    """A sentence where FlashAttention-4 is installed on a machine with GPUs and `document_attention` does without it."""
    return _search().unused_because


def _flash_4() -> _Flash4 | None:
    return _search().kernels


@lru_cache(maxsize=1)
def _search() -> _Search:
    return look_for_flash_4(torch.cuda.get_device_capability())


def look_for_flash_4(capability: tuple[int, int]) -> _Search:
    """FlashAttention-4 (the optional extra `fa4`), where it is installed and the GPU is a Hopper or newer.

    Its kernels have no public backward apart from autograd, which a hand-written backward cannot use: these two are the
    functions behind its autograd function in FLASH_4_VERSION, and no other version is used.
    """
    try:
        version = importlib.metadata.version("flash-attn-4")
    except importlib.metadata.PackageNotFoundError:
        return _Search(None, None)
    if version != FLASH_4_VERSION:
        facts = {"version": version, "ours": FLASH_4_VERSION}
        return _Search(
            None,
            t(
                "FlashAttention-4 {version} is installed and not used: only {ours} is; pip install flash-attn-4=={ours}",
                **facts,
            ),
        )
    if capability < (9, 0):
        return _Search(None, t("FlashAttention-4 is installed and not used: it needs a Hopper GPU or a newer one"))
    try:
        from flash_attn.cute.interface import _flash_attn_bwd, _flash_attn_fwd
    except ImportError as error:
        return _Search(
            None,
            t(
                "FlashAttention-4 is installed and not used, because something that it needs is missing: {error}; "
                "pip install '.[fa4]' installs all of it",
                error=error,
            ),
        )
    return _Search(_Flash4(_flash_attn_fwd, _flash_attn_bwd), None)


def _without_boundaries(q_TNH: Tensor, longest: int) -> bool:
    return longest == len(q_TNH) >= WITHOUT_BOUNDARIES_FROM


def _cut(documents: Documents) -> tuple[Tensor, int]:
    """The valid boundaries and the longest document, as the flash kernel wants them."""
    count, longest = documents.extent.tolist()
    return documents.boundaries[: count + 1], longest


def _attention_per_document(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, documents: Documents) -> Tensor:
    lengths = _lengths(documents)
    outputs = []
    for q, k, v in zip(q_TNH.split(lengths), k_TKH.split(lengths), v_TKH.split(lengths), strict=True):
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        outputs.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)[0].transpose(0, 1))
    return torch.cat(outputs)


def _softmax_attention_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one document, by the definition: ds = p * (dp - sum(dp * p)) with p the softmax, dp = grad v^T."""
    group = q.shape[1] // k.shape[1]
    k_TNH, v_TNH = (x.repeat_interleave(group, 1) for x in (k, v))
    scale = q.shape[2] ** -0.5
    scores = torch.einsum("tnh,snh->nts", q, k_TNH) * scale
    p = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
    dp = torch.einsum("tnh,snh->nts", grad, v_TNH)
    ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * scale
    dq = torch.einsum("nts,snh->tnh", ds, k_TNH)
    dk, dv = (torch.einsum("nts,tnh->snh", weights, values) for weights, values in ((ds, q), (p, grad)))
    return dq, dk.unflatten(1, (-1, group)).sum(2), dv.unflatten(1, (-1, group)).sum(2)


def _lengths(documents: Documents) -> list[int]:
    count = int(documents.extent[0])
    return documents.boundaries[: count + 1].diff().tolist()


# All kernels behind one opaque operator. aten._flash_attention_forward has kept its signature from torch 2.6 to 2.13.
@torch.library.custom_op("finetuning::document_attention", mutates_args=())
def _document_attention(q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor, extent: Tensor) -> tuple[Tensor, Tensor]:
    return attention_forward(q, k, v, Documents(boundaries, extent))


@_document_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor, extent: Tensor) -> tuple[Tensor, Tensor]:
    shape = (q.shape[1], q.shape[0]) if _has_flash(q) else (0,)
    return q.new_empty(q.shape), q.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("finetuning::document_attention_backward", mutates_args=())
def _document_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, boundaries: Tensor, extent: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return attention_backward(grad, q, k, v, out, logsumexp, Documents(boundaries, extent))


@_document_attention_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, boundaries: Tensor, extent: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, boundaries, extent = inputs
    out, logsumexp = output
    ctx.save_for_backward(q, k, v, out, logsumexp, boundaries, extent)


def _backward(ctx, grad, _grad_logsumexp):  # type: ignore[no-untyped-def]
    grads = torch.ops.finetuning.document_attention_backward(grad.contiguous(), *ctx.saved_tensors)
    return *grads, None, None


_document_attention.register_autograd(_backward, setup_context=_setup_context)
