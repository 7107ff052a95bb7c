"""Context parallel: the processes of a cp group each hold a part of every row.

Everything but attention works on single tokens. For attention there are two ways:

- exchange: rank r holds the r-th part of the row. Before attention every process gives away its tokens of the other
  processes' heads and gets all tokens of its own heads; afterwards back (DeepSpeed-Ulysses, Jacobs et al. 2023). Attention
  itself is the ordinary one, so document boundaries may lie anywhere and the work is even. Key/value heads are repeated
  where there are fewer than processes.
- gathered keys and values, where even query heads run out: the row is cut into 2 c pieces and rank r holds pieces r and
  2 c - 1 - r, so that the causal work is even (Llama 3, Dubey et al. 2024, 3.3.2). Every process gets all keys and values.

Labels were shifted before the row is cut, so the last token of a part keeps its label.

Shape letters: t tokens of one process, T tokens of the row, N query heads, K key/value heads, H head dimension.
"""

from itertools import pairwise
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from finetuning.config.strategy import ContextPlan
from finetuning.data.batches.global_batch import MicroBatch
from finetuning.model.attention import Documents, sent
from finetuning.model.cross_entropy import count_targets
from finetuning.model.llama import Attention, Llama
from finetuning.parallel.collectives import gather, heads_to_tokens, name_group, tokens_to_heads
from finetuning.parallel.mesh import Layout


class PieceDocuments(NamedTuple):
    """Document boundaries of this process's two pieces, for gathered keys and values; fixed shapes, as in Documents."""

    query_boundaries: Tensor  # int32 [2, t/2 + 1]: in the piece
    key_boundaries: Tensor  # int32 [2, t/2 + 1]: from the first key that the piece needs
    extent: Tensor  # int64 [2, 5] on the CPU: documents, longest query, longest key, first key, end of keys

    def to(self, device: torch.device) -> "PieceDocuments":
        queries, keys = (sent(x, device) for x in (self.query_boundaries, self.key_boundaries))
        return PieceDocuments(queries, keys, self.extent)


def apply_context_parallel(model: Llama, layout: Layout, plan: ContextPlan) -> None:
    """Puts the exchange, or the gathering, around every block's attention, in place."""
    group = name_group(layout.group("cp"))
    for layer in model.model.layers.values():
        attention = layer.self_attn
        assert isinstance(attention, Attention)
        if plan.repeat is None:
            attention.attend = GatheredAttention(group, plan.size)
        else:
            attention.attend = ExchangedAttention(attention.attend, group, plan.size, plan.repeat)


def cut_row(row: MicroBatch, plan: ContextPlan, rank: int) -> MicroBatch:
    """This process's part of a row (on the CPU). Example with 2 processes, exchange: row a b c d -> a b | c d; gathered:
    a d | b c."""
    length = row.tokens.shape[1]
    if plan.repeat is not None:
        index = torch.arange(rank * length // plan.size, (rank + 1) * length // plan.size)
        documents = row.documents
    else:
        index = torch.cat([torch.arange(*ends) for ends in _pieces(length, plan.size, rank)])
        # For attention these are the row's documents, in the form that the gathered kernel takes.
        documents = cast(Documents, _piece_documents(row.documents, _pieces(length, plan.size, rank)))
    labels = row.labels[:, index]
    weights, sources = (None if x is None else x[:, index] for x in (row.weights, row.sources))
    return MicroBatch(row.tokens[:, index], row.positions[:, index], labels, documents, count_targets(labels), weights, sources)


def local_places(places: Tensor, length: int, plan: ContextPlan, rank: int) -> tuple[Tensor, Tensor]:
    """Where these places of a whole row are in this process's part (0 for those that are not), and which are in it."""
    part = length // plan.size
    if plan.repeat is not None:
        local = places - rank * part
        here = (local >= 0) & (local < part)
    else:
        (first, _), (second, _) = _pieces(length, plan.size, rank)
        in_first = (places >= first) & (places < first + part // 2)
        in_second = (places >= second) & (places < second + part // 2)
        local = torch.where(in_first, places - first, places - second + part // 2)
        here = in_first | in_second
    return local.masked_fill(~here, 0), here


class ExchangedAttention(nn.Module):
    """Attention over whole packs for this process's heads, around the ordinary one."""

    def __init__(self, attend: nn.Module, group: str, size: int, repeat: int):
        super().__init__()
        self.attend, self.group, self.size, self.repeat = attend, group, size, repeat

    @override
    def forward(self, q_tNH: Tensor, k_tKH: Tensor, v_tKH: Tensor, documents: Documents) -> Tensor:
        if self.repeat > 1:
            k_tKH, v_tKH = k_tKH.repeat_interleave(self.repeat, 1), v_tKH.repeat_interleave(self.repeat, 1)
        counts = [x.shape[1] // self.size for x in (q_tNH, k_tKH, v_tKH)]
        # One message for all three.
        grouped = torch.cat([x.unflatten(1, (self.size, -1)) for x in (q_tNH, k_tKH, v_tKH)], 2)
        q, k, v = tokens_to_heads(grouped, self.group).split(counts, 1)
        out = self.attend(q.contiguous(), k.contiguous(), v.contiguous(), documents)
        return heads_to_tokens(out, self.group).flatten(1, 2)


class GatheredAttention(nn.Module):
    """Attention of this process's two pieces to the keys and values of all."""

    def __init__(self, group: str, size: int):
        super().__init__()
        self.group, self.size = group, size
        # Pieces arrive as 0, 2c - 1, 1, 2c - 2, …
        arriving = [piece for rank in range(size) for piece in (rank, 2 * size - 1 - rank)]
        self.order = sorted(range(2 * size), key=arriving.__getitem__)

    @override
    def forward(self, q_tNH: Tensor, k_tKH: Tensor, v_tKH: Tensor, documents: PieceDocuments) -> Tensor:
        keys_values = gather(torch.stack((k_tKH, v_tKH), 1), self.group, 0).chunk(2 * self.size)
        k_TKH, v_TKH = torch.cat([keys_values[index] for index in self.order]).unbind(1)
        pieces = zip(q_tNH.chunk(2), documents.query_boundaries, documents.key_boundaries, documents.extent, strict=True)
        return torch.cat([piece_attention(q, k_TKH, v_TKH, *where) for q, *where in pieces])


def piece_attention(
    q_tNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, query_boundaries: Tensor, key_boundaries: Tensor, extent: Tensor
) -> Tensor:
    """Attention of one piece of a row's queries to the row's keys and values; causal inside documents."""
    if q_tNH.is_cuda and q_tNH.dtype in (torch.bfloat16, torch.float16):
        out: Tensor = torch.ops.finetuning.flash_piece(q_tNH, k_TKH, v_TKH, query_boundaries, key_boundaries, extent)[0]
        return out
    count, _, _, first, end = extent.tolist()
    query_lengths, key_lengths = (b[: count + 1].diff().tolist() for b in (query_boundaries, key_boundaries))
    keys, values = k_TKH[first:end].split(key_lengths), v_TKH[first:end].split(key_lengths)
    outputs = []
    for q, k, v in zip(q_tNH.split(query_lengths), keys, values, strict=True):
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        # Queries are the last ones of their document so far: the causal diagonal ends in the lower right corner.
        visible = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])
        outputs.append(F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True)[0].transpose(0, 1))
    return torch.cat(outputs)


def _pieces(length: int, size: int, rank: int) -> list[tuple[int, int]]:
    """Begin and end of this process's two pieces."""
    piece = length // (2 * size)
    return [(index * piece, (index + 1) * piece) for index in (rank, 2 * size - 1 - rank)]


def _piece_documents(documents: Documents, pieces: list[tuple[int, int]]) -> PieceDocuments:
    ends = documents.boundaries[: int(documents.extent[0]) + 1].tolist()
    length = pieces[0][1] - pieces[0][0]
    boundaries = torch.zeros(2, 2, length + 1, dtype=torch.int32)  # queries and keys, pieces, entries
    extents = []
    for index, (begin, end) in enumerate(pieces):
        inside = [(start, min(stop, end)) for start, stop in pairwise(ends) if start < end and stop > begin]
        first = inside[0][0]
        queries = [0, *(stop - begin for _, stop in inside)]
        keys = [0, *(stop - first for _, stop in inside)]
        boundaries[0, index, : len(queries)] = torch.tensor(queries)
        boundaries[1, index, : len(keys)] = torch.tensor(keys)
        longest = [max(b - a for a, b in pairwise(x)) for x in (queries, keys)]
        extents.append([len(inside), *longest, first, end])
    return PieceDocuments(boundaries[0], boundaries[1], torch.tensor(extents))


# The flash kernel for queries and keys of different length, opaque as in finetuning.model.attention. It aligns the causal
# diagonal with the lower right corner of each document.
@torch.library.custom_op("finetuning::flash_piece", mutates_args=())
def _flash_piece(
    q: Tensor, k: Tensor, v: Tensor, query_boundaries: Tensor, key_boundaries: Tensor, extent: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    count, longest_query, longest_key, first, end = extent.tolist()
    out, logsumexp, rng_state, _, _ = torch.ops.aten._flash_attention_forward(
        q,
        k[first:end],
        v[first:end],
        query_boundaries[: count + 1],
        key_boundaries[: count + 1],
        longest_query,
        longest_key,
        0.0,
        True,
        False,
    )
    return out, logsumexp, rng_state


@_flash_piece.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, query_boundaries: Tensor, key_boundaries: Tensor, extent: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    logsumexp = q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)
    return torch.empty_like(q), logsumexp, q.new_empty((2,), dtype=torch.uint64)


@torch.library.custom_op("finetuning::flash_piece_backward", mutates_args=())
def _flash_piece_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    rng_state: Tensor,
    query_boundaries: Tensor,
    key_boundaries: Tensor,
    extent: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    count, longest_query, longest_key, first, end = extent.tolist()
    grad_q, grad_k_part, grad_v_part = torch.ops.aten._flash_attention_backward(
        grad,
        q,
        k[first:end],
        v[first:end],
        out,
        logsumexp,
        query_boundaries[: count + 1],
        key_boundaries[: count + 1],
        longest_query,
        longest_key,
        0.0,
        True,
        rng_state,
        torch.empty_like(rng_state),
    )
    grad_k, grad_v = torch.zeros_like(k), torch.zeros_like(v)
    grad_k[first:end], grad_v[first:end] = grad_k_part, grad_v_part
    return grad_q, grad_k, grad_v


@_flash_piece_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    rng_state: Tensor,
    query_boundaries: Tensor,
    key_boundaries: Tensor,
    extent: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[:3], *output, *inputs[3:])


def _backward(ctx, grad, _grad_logsumexp, _grad_rng_state):  # type: ignore[no-untyped-def]
    grads = torch.ops.finetuning.flash_piece_backward(grad.contiguous(), *ctx.saved_tensors)
    return *grads, None, None, None


_flash_piece.register_autograd(_backward, setup_context=_setup_context)
