"""Matrix products that send and compute at once: tokens arrive, or sums leave, block by block around a ring.

Tensor parallel gathers tokens before its column-parallel products, and sums and scatters the outputs of its row-parallel
ones. Here each process multiplies the block of tokens that it has while the next one is on its way (decomposed
collectives: Wang et al. 2023, ASPLOS). The results are those of gather, product and reduce_scatter; sums are taken in
another order. The two operators are each other's backward pass, so that one overlaps as well. They are opaque to the compiler
like those of `collectives`.

Shape letters: t tokens of one rank, T tokens of all ranks of the group, K and N the dimensions of a matrix.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from finetuning.parallel.collectives import group_named


@torch.library.custom_op("finetuning::gather_matmul", mutates_args=())
def gather_matmul(part: Tensor, matrices: Sequence[Tensor], group: str) -> list[Tensor]:
    """The tokens [t, K] of every rank, times matrices [K, N_i]: first all tokens [T, K], then the products [T, N_i].

    Every process of the group must call it. Example with 4 ranks, rank 1: multiplies the blocks 1, 0, 3, 2, and passes on
    the first three of them.
    """
    processes = group_named(group)
    rank, size = processes.rank(), processes.size()
    whole = part.new_empty(part.shape[0] * size, part.shape[1])
    products = [part.new_empty(whole.shape[0], matrix.shape[1]) for matrix in matrices]
    blocks = whole.chunk(size)
    blocks[rank].copy_(part)
    for step in range(size):
        here = (rank - step) % size
        under_way = _pass_on(blocks[here], blocks[here - 1], processes) if step < size - 1 else []
        for matrix, product in zip(matrices, products, strict=True):
            torch.mm(blocks[here], matrix, out=product.chunk(size)[here])
        for message in under_way:
            message.wait()
    return [whole, *products]


@gather_matmul.register_fake
def _(part: Tensor, matrices: Sequence[Tensor], group: str) -> list[Tensor]:
    length = part.shape[0] * group_named(group).size()
    return [part.new_empty(length, width) for width in (part.shape[1], *(matrix.shape[1] for matrix in matrices))]


@torch.library.custom_op("finetuning::matmul_scatter", mutates_args=())
def matmul_scatter(inputs: Sequence[Tensor], matrices: Sequence[Tensor], group: str) -> Tensor:
    """This rank's tokens [t, N] of the sum over ranks and pairs of inputs [T, K_i] times matrices [K_i, N].

    Every process of the group must call it. Example with 4 ranks, rank 1: computes its shares of the blocks 0, 3, 2, 1, and
    adds to each but the first what the ranks before it have added up.
    """
    processes = group_named(group)
    rank, size = processes.rank(), processes.size()
    total = _share(inputs, matrices, size, (rank - 1) % size)
    for step in range(1, size):
        received = torch.empty_like(total)
        under_way = _pass_on(total, received, processes)
        share = _share(inputs, matrices, size, (rank - step - 1) % size)
        for message in under_way:
            message.wait()
        total = share.add_(received)
    return total


@matmul_scatter.register_fake
def _(inputs: Sequence[Tensor], matrices: Sequence[Tensor], group: str) -> Tensor:
    return inputs[0].new_empty(inputs[0].shape[0] // group_named(group).size(), matrices[0].shape[1])


def _share(inputs: Sequence[Tensor], matrices: Sequence[Tensor], size: int, block: int) -> Tensor:
    first, *others = (tensor.chunk(size)[block] for tensor in inputs)
    total = first @ matrices[0]
    for tensor, matrix in zip(others, matrices[1:], strict=True):
        total.addmm_(tensor, matrix)
    return total


def _pass_on(sent: Tensor, received: Tensor, group: dist.ProcessGroup) -> list[dist.Work]:
    """Starts to send to the next rank and to receive from the previous one."""
    rank, size = group.rank(), group.size()
    messages = [
        dist.P2POp(dist.isend, sent, group=group, group_peer=(rank + 1) % size),
        dist.P2POp(dist.irecv, received, group=group, group_peer=(rank - 1) % size),
    ]
    works: list[dist.Work] = dist.batch_isend_irecv(messages)
    return works


def _keep_gathered(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _, matrices, ctx.group = inputs
    ctx.save_for_backward(output[0], *matrices)


def _gathered_backward(ctx, grads):  # type: ignore[no-untyped-def]
    whole, *matrices = ctx.saved_tensors
    needs_part, needs_matrices = ctx.needs_input_grad[:2]
    grads = [grad.contiguous() for grad in grads[1:]]  # nothing reads the gathered tokens themselves
    grad_part = matmul_scatter(grads, [matrix.t() for matrix in matrices], ctx.group) if needs_part else None
    return grad_part, _outer_products([whole] * len(grads), grads, needs_matrices), None


def _keep_scattered(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    tensors, matrices, ctx.group = inputs
    ctx.count = len(tensors)
    ctx.save_for_backward(*tensors, *matrices)


def _scattered_backward(ctx, grad):  # type: ignore[no-untyped-def]
    saved = ctx.saved_tensors  # once: recomputation gives them out only once
    inputs, matrices = saved[: ctx.count], saved[ctx.count :]
    whole, *grads = gather_matmul(grad.contiguous(), [matrix.t() for matrix in matrices], ctx.group)
    return grads, _outer_products(inputs, [whole] * len(grads), ctx.needs_input_grad[1]), None


def _outer_products(inputs: Sequence[Tensor], grads: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor | None]:
    """Gradients of matrices that are transposed weights: laid out so that those of the weights are contiguous."""
    pairs = zip(inputs, grads, needed, strict=True)
    return [(grad.t() @ tensor).t() if need else None for tensor, grad, need in pairs]


gather_matmul.register_autograd(_gathered_backward, setup_context=_keep_gathered)
matmul_scatter.register_autograd(_scattered_backward, setup_context=_keep_scattered)
