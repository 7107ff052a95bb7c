"""Collectives that autograd can go through and the compiler cannot look into.

Each is an opaque operator with its counterpart as backward. Opaque: a compiled block then receives ordinary tensors.
(With functional collectives it received an unfinished one, and its gradient was silently dropped, torch 2.13.)
Groups are named by strings because operators take no group objects. For hand-written backward passes there is
`TokenExchange`.

Shape letters: t tokens of one rank, T tokens of all ranks of the group.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

# torch 2.13 deprecates the names that end in _tensor; 2.11 has only those.
_HAS_SINGLE = tuple(int(number) for number in torch.__version__.split(".")[:2]) >= (2, 13)

_groups: dict[str, dist.ProcessGroup] = {}


def name_group(group: dist.ProcessGroup) -> str:
    """The name by which the operators below know this group."""
    _groups[group.group_name] = group
    return group.group_name


def group_named(name: str) -> dist.ProcessGroup:
    return _groups[name]


class TokenExchange:
    """Exchanges of tokens in a group, outside autograd: `finetuning.model.blocks.full_block.Exchange`."""

    def __init__(self, group: dist.ProcessGroup):
        self.group = group

    def gather(self, part_tD: Tensor) -> Callable[[], Tensor]:
        whole_TD = part_tD.new_empty(part_tD.shape[0] * self.group.size(), part_tD.shape[1])
        return _result(_all_gather(whole_TD, part_tD, self.group, wait=False), whole_TD, part_tD)

    def reduce_scatter(self, whole_TD: Tensor) -> Callable[[], Tensor]:
        part_tD = whole_TD.new_empty(whole_TD.shape[0] // self.group.size(), whole_TD.shape[1])
        return _result(_reduce_scatter(part_tD, whole_TD, self.group, wait=False), part_tD, whole_TD)


def _result(under_way: dist.Work | None, output: Tensor, sent: Tensor) -> Callable[[], Tensor]:
    assert under_way is not None

    def wait(sent: Tensor | None = sent) -> Tensor:  # keeps what is sent until then
        under_way.wait()
        return output

    return wait


def _all_gather(output: Tensor, part: Tensor, group: dist.ProcessGroup, *, wait: bool = True) -> dist.Work | None:
    function = dist.all_gather_single if _HAS_SINGLE else dist.all_gather_into_tensor
    return function(output, part, group=group, async_op=not wait)


def _reduce_scatter(output: Tensor, whole: Tensor, group: dist.ProcessGroup, *, wait: bool = True) -> dist.Work | None:
    function = dist.reduce_scatter_single if _HAS_SINGLE else dist.reduce_scatter_tensor
    return function(output, whole, group=group, async_op=not wait)


@torch.library.custom_op("finetuning::gather", mutates_args=())
def gather(part: Tensor, group: str, dim: int) -> Tensor:
    """[…, t, …] of every rank -> [..., T, …], one after another along `dim`; dimensions before it are 1.

    Backward: reduce_scatter.
    """
    whole = part.new_empty(_resized(part, dim, part.shape[dim] * _groups[group].size()))
    _all_gather(whole.view(whole.shape[dim], -1), part.contiguous().view(part.shape[dim], -1), _groups[group])
    return whole


@gather.register_fake
def _(part: Tensor, group: str, dim: int) -> Tensor:
    return part.new_empty(_resized(part, dim, part.shape[dim] * _groups[group].size()))


@torch.library.custom_op("finetuning::reduce_scatter", mutates_args=())
def reduce_scatter(whole: Tensor, group: str, dim: int) -> Tensor:
    """This rank's part […, t, …] of the sum of all ranks' […, T, …]; dimensions before `dim` are 1. Backward: gather."""
    part = whole.new_empty(_resized(whole, dim, whole.shape[dim] // _groups[group].size()))
    _reduce_scatter(part.view(part.shape[dim], -1), whole.contiguous().view(whole.shape[dim], -1), _groups[group])
    return part


@reduce_scatter.register_fake
def _(whole: Tensor, group: str, dim: int) -> Tensor:
    return whole.new_empty(_resized(whole, dim, whole.shape[dim] // _groups[group].size()))


def _resized(x: Tensor, dim: int, size: int) -> list[int]:
    assert x.shape[:dim].numel() == 1, f"{tuple(x.shape)} is not laid out rank after rank along dimension {dim}"
    return [*x.shape[:dim], size, *x.shape[dim + 1 :]]


@torch.library.custom_op("finetuning::tokens_to_heads", mutates_args=())
def tokens_to_heads(x: Tensor, group: str) -> Tensor:
    """[t, c, n, H], the heads grouped by the rank they go to, -> [T, n, H]: all tokens, this rank's heads."""
    size = _groups[group].size()
    sent = x.transpose(0, 1).contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=_groups[group])
    return received.view(x.shape[0] * size, *x.shape[2:])


@tokens_to_heads.register_fake
def _(x: Tensor, group: str) -> Tensor:
    return x.new_empty((x.shape[0] * x.shape[1], *x.shape[2:]))


@torch.library.custom_op("finetuning::heads_to_tokens", mutates_args=())
def heads_to_tokens(x: Tensor, group: str) -> Tensor:
    """[T, n, H] -> [t, c, n, H]: the reverse of `tokens_to_heads`."""
    size = _groups[group].size()
    received = torch.empty_like(x, memory_format=torch.contiguous_format)
    dist.all_to_all_single(received, x.contiguous(), group=_groups[group])
    return received.view(size, x.shape[0] // size, *x.shape[1:]).transpose(0, 1).contiguous()


@heads_to_tokens.register_fake
def _(x: Tensor, group: str) -> Tensor:
    size = _groups[group].size()
    return x.new_empty((x.shape[0] // size, size, *x.shape[1:]))


def _keep_arguments(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.arguments = inputs[1:]


for _operator, _counterpart in (
    (gather, reduce_scatter),
    (reduce_scatter, gather),
    (tokens_to_heads, heads_to_tokens),
    (heads_to_tokens, tokens_to_heads),
):
    _operator.register_autograd(
        lambda ctx, grad, counterpart=_counterpart: (counterpart(grad, *ctx.arguments), *(None for _ in ctx.arguments)),
        setup_context=_keep_arguments,
    )


def all_reduce(tensors: list[Tensor], group: dist.ProcessGroup) -> None:
    """Replaces each tensor (all of one dtype) by its sum over the group, in one message."""
    if not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat, group=group)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))
