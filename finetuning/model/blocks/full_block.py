"""One decoder block whose weights are all trained, as a single differentiable function, for speed.

Computes what `model.llama.Block` computes; the numbers differ by rounding. As in `model.blocks.lora_block`,
weights that read the same input are one matrix, and what lies between two products is one pass. Weight gradients do not
travel through autograd: each product adds to its weight's `grad` on the way out, so that the rows of a step are summed
inside the matrix product instead of in a pass over all weights.

Where the processes of a group hold a part of every layer each, a block also exchanges tokens with the others. In the
backward pass an exchange runs while a weight gradient is computed that does not need its result.

Shape letters as in `kernels`, and t tokens of this process where T are those of its group; names of gradients begin with d:
`dq` is the gradient of q.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from typing_extensions import override

from finetuning.model.attention import Documents
from finetuning.model.blocks.lora_block import (
    block_attention,
    block_attention_backward,
    gather_rows,
    grouped_layers,
    other_attention,
    scatter_rows,
)
from finetuning.model.blocks.trainable_linear import GatheredMatrix, TrainableFp8Matrix, TrainableMatrix
from finetuning.model.kernels import ops as kernels
from finetuning.model.llama import Block


class Exchange(Protocol):
    """Exchanges of tokens with the other processes. Each is started at once; what is returned waits for the result."""

    def gather(self, part_tD: Tensor) -> Callable[[], Tensor]:
        """The tokens [T, D] of all processes."""

    def reduce_scatter(self, whole_TD: Tensor) -> Callable[[], Tensor]:
        """This process's tokens [t, D] of the sum over processes."""


class NoExchange:
    """Of a process that holds whole layers."""

    def gather(self, part_tD: Tensor) -> Callable[[], Tensor]:
        return lambda: part_tD

    def reduce_scatter(self, whole_TD: Tensor) -> Callable[[], Tensor]:
        return lambda: whole_TD


@dataclass
class Accumulation:
    """Shared by the blocks of a model and whoever runs them: where the gradients of a row go."""

    more_rows: bool = False  # of the same step follow: the blocks keep their gradients, and FSDP sees none


class FullBlock(Block):
    """Takes a block's place, with its parts.

    Unless FSDP gathers them, weights are moved into joint tensors; the parameters become views of them.

    Args:
        keep_all: keep the normed inputs, gate and up for the backward pass; otherwise they are computed again, which
            saves two thirds of a block's memory for half of its forward pass.
        gathered: FSDP holds the weights, and gathers them for each use.
        exchange: with the processes that hold the other parts of each layer.
        accumulation: FSDP would add up the rows of a step in a pass over all weights; while more rows follow it is not shown
            the gradients, so that the next row is added inside its matrix products.
    """

    def __init__(
        self,
        block: Block,
        *,
        fp8: bool,
        keep_all: bool,
        gathered: bool = False,
        exchange: Exchange | None = None,
        accumulation: Accumulation | None = None,
    ):
        assert not (fp8 and gathered)
        super().__init__(block.self_attn, block.mlp, block.input_layernorm, block.post_attention_layernorm)
        self.keep_all, self.exchange = keep_all, exchange or NoExchange()
        self.accumulation = accumulation or Accumulation()
        self._kept: list[Tensor | None] = []
        groups = grouped_layers(block)
        head_dim = block.self_attn.head_dim
        self.heads = len(groups[0][0].weight) // head_dim, len(groups[0][1].weight) // head_dim
        self.eps = block.input_layernorm.eps
        kind = TrainableFp8Matrix if fp8 else TrainableMatrix
        self.w_qkv, self.w_o, self.w_gate_up, self.w_down = (
            GatheredMatrix(group) if gathered else kind([layer.weight for layer in group]) for group in groups
        )

    @property
    def norms(self) -> tuple[nn.Parameter, nn.Parameter]:
        """Looked up for each use, as FSDP changes them."""
        return self.input_layernorm.weight, self.post_attention_layernorm.weight

    def show_gradients(self) -> None:
        """Puts what earlier rows have left where products add to it."""
        if self._kept:
            for parameter, gradient in zip(self.parameters(), self._kept, strict=True):
                parameter.grad = gradient
            self._kept = []

    def keep_gradients(self) -> None:
        if self.accumulation.more_rows:
            self._kept = [parameter.grad for parameter in self.parameters()]
            for parameter in self.parameters():
                parameter.grad = None

    @override
    def forward(
        self, x_BtD: Tensor, cos_BTH: Tensor, sin_BTH: Tensor, documents: Documents, at_S: Tensor | None = None
    ) -> Tensor:
        """Block output [1, t, D]; B is 1. Every process of the exchange must call it.

        Without an exchange, `at_S` chooses positions: the output is theirs only, [1, S, D].
        """
        out_BtD: Tensor = _FullBlock.apply(x_BtD, cos_BTH[0], sin_BTH[0], documents, at_S, self)
        return out_BtD


class _FullBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BtD, cos, sin, documents, at, fused):  # type: ignore[no-untyped-def]
        x, exchange, (norm1, norm2) = x_BtD[0], fused.exchange, fused.norms
        h1, inverse1 = kernels.norm(x, norm1, fused.eps)
        h1 = exchange.gather(h1)()
        qkv = kernels.apply_rotary_to_heads(fused.w_qkv.forward(h1), cos, sin, fused.heads)
        out, for_attention, attended = block_attention(other_attention(fused), qkv, fused.heads, documents)
        x2 = gather_rows(x, at) + exchange.reduce_scatter(fused.w_o.forward(gather_rows(out.flatten(1), at)))()

        h2, inverse2 = kernels.norm(x2, norm2, fused.eps)
        h2 = exchange.gather(h2)()
        gate_up = fused.w_gate_up.forward(h2)
        down = fused.w_down.forward(kernels.gate(*gate_up.chunk(2, -1)))
        # A tensor of its own, no view: FSDP hangs its hook on it.
        x3_BtD = x2[None] + exchange.reduce_scatter(down)()

        kept = (h1, h2, gate_up) if fused.keep_all else (None, None, None)
        ctx.save_for_backward(x_BtD, cos, sin, inverse1, out, x2, inverse2, at, *kept, *for_attention)
        ctx.fused, ctx.attended = fused, attended
        return x3_BtD

    @staticmethod
    def backward(ctx, dx3_BtD):  # type: ignore[no-untyped-def]
        fused = ctx.fused
        x_BtD, cos, sin, inverse1, out, x2, inverse2, at, h1, h2, gate_up, *for_attention = ctx.saved_tensors
        x, exchange, (norm1, norm2) = x_BtD[0], fused.exchange, fused.norms
        fused.show_gradients()
        dx3 = dx3_BtD[0].contiguous()
        arriving = exchange.gather(dx3)
        if not fused.keep_all:
            h1 = exchange.gather(kernels.norm(x, norm1, fused.eps)[0])()
            h2 = exchange.gather(kernels.norm(x2, norm2, fused.eps)[0])()
            gate_up = fused.w_gate_up.forward(h2)

        gate, up = gate_up.chunk(2, -1)
        dgate_up = torch.empty_like(gate_up)
        dgate, dup = dgate_up.chunk(2, -1)
        whole_dx3 = arriving()
        inner = kernels.gate_backward(fused.w_down.backward(whole_dx3), gate, up, dgate, dup)
        leaving = exchange.reduce_scatter(fused.w_gate_up.backward(dgate_up))
        fused.w_gate_up.add_gradient(dgate_up, h2)
        dh2 = leaving()
        _add_gradient(norm2, kernels.norm_weight_gradient(dh2, x2, inverse2))
        dx2 = kernels.norm_backward(dh2, x2, inverse2, norm2, dx3)

        arriving = exchange.gather(dx2)
        fused.w_down.add_gradient(whole_dx3, inner)
        del inner
        whole_dx2 = arriving()
        dout = scatter_rows(fused.w_o.backward(whole_dx2), at, len(out))
        fused.w_o.add_gradient(whole_dx2, gather_rows(out.flatten(1), at))
        dout = dout.view_as(out)
        dq, dk, dv = block_attention_backward(dout, out, fused.heads, for_attention, ctx.attended)
        dqkv = dout.new_empty(len(out), sum(grad[0].numel() for grad in (dq, dk, dv)))
        kernels.apply_rotary_to_heads_backward(dq, dk, dv, cos, sin, dqkv)
        leaving = exchange.reduce_scatter(fused.w_qkv.backward(dqkv))
        fused.w_qkv.add_gradient(dqkv, h1)
        dh1 = leaving()
        _add_gradient(norm1, kernels.norm_weight_gradient(dh1, x, inverse1))
        fused.keep_gradients()
        return kernels.norm_backward(dh1, x, inverse1, norm1, scatter_rows(dx2, at, len(x)))[None], None, None, None, None, None


def _add_gradient(parameter: nn.Parameter, value: Tensor) -> None:
    value = value.to(parameter.dtype)
    parameter.grad = value if parameter.grad is None else parameter.grad.add_(value)
