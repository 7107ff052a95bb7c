"""A LoRA block as one differentiable function that needs as little memory as possible, at the price of speed.

Computes what `model.blocks.lora_block` does. It keeps for the backward pass its input and the attention's output, both in host
memory (`model.blocks.activation_offload`); all else is computed again. What follows the attention goes through the block in
pieces of some tokens, forward and backward: what is wide — gate and up, their product and their gradients — never exists for a
whole row. Frozen weights in fp8 are held once.

Gradients of the adapters are sums over pieces: each piece's is rounded once, as a whole row's would be, and they are added up
in float32.

Shape letters as in `kernels`; P tokens of a piece.
"""

import torch
from torch import Tensor
from typing_extensions import override

from finetuning.model.attention import Documents, attention_backward, attention_forward
from finetuning.model.blocks.activation_offload import OffloadStore
from finetuning.model.blocks.frozen_linear import Matrix, SmallFp8Matrix
from finetuning.model.blocks.lora_block import (
    Adapters,
    BlockAdapters,
    adapter_views,
    gate_low_rank_deltas,
    grouped_layers,
    join,
    split_heads,
)
from finetuning.model.kernels import ops as kernels
from finetuning.model.kernels.ops import LowRankDelta
from finetuning.model.llama import Block
from finetuning.model.lora import LoraLinear

TOKENS_AT_ONCE = 4096  # for kernels as fast as with a whole row; half of 8192 needs no more than their attention does
CHUNK_TOKENS = 1024  # of logits: 250 MiB of the 8B's, less than a block's backward pass needs


class LowMemoryBlock(Block):
    """Takes a block's place, with its parts.

    Args:
        fp8: the frozen weights, which lie on the host until they are first used, are then quantized.
        index: of the block among those that share `store`.
    """

    def __init__(self, block: Block, store: OffloadStore, index: int, *, fp8: bool, tokens_at_once: int = TOKENS_AT_ONCE):
        super().__init__(block.self_attn, block.mlp, block.input_layernorm, block.post_attention_layernorm)
        self.store, self.index, self.tokens_at_once = store, index, tokens_at_once
        groups = grouped_layers(block)
        self.frozen = [[layer.weight for layer in group] for group in groups]
        self.matrices: list[Matrix] | list[SmallFp8Matrix] = [] if fp8 else [Matrix(join(weights)) for weights in self.frozen]
        self.adapters = BlockAdapters([layer for group in groups for layer in group if isinstance(layer, LoraLinear)])
        self.eps = block.input_layernorm.eps
        head_dim = block.self_attn.head_dim
        self.heads = groups[0][0].out_features // head_dim, groups[0][1].out_features // head_dim

    @override
    def forward(
        self, x_BTD: Tensor, cos_BTH: Tensor, sin_BTH: Tensor, documents: Documents, at_S: Tensor | None = None
    ) -> Tensor:
        """Block output [1, T, D]; B is 1. All positions are computed: what saves time here would take memory."""
        assert at_S is None
        # The input of the first block needs no gradient; one of the adapters makes autograd call the backward pass.
        anchor = self.adapters.parameters[0]
        out_TD: Tensor = _LowMemoryBlock.apply(
            x_BTD.flatten(0, 1), cos_BTH[0], sin_BTH[0], documents, self, torch.is_grad_enabled(), anchor
        )
        return out_TD[None]

    def weights(self) -> list[Matrix] | list[SmallFp8Matrix]:
        """The joint weights; the first call with fp8, after the weights were loaded, replaces them by quantized ones."""
        if not self.matrices:
            self.matrices = [self._quantized(weights) for weights in self.frozen]
        return self.matrices

    def pieces(self, num_tokens: int) -> list[slice]:
        return [slice(start, start + self.tokens_at_once) for start in range(0, num_tokens, self.tokens_at_once)]

    def _quantized(self, weights: list[Tensor]) -> SmallFp8Matrix:
        rows = [len(weight) for weight in weights]
        device = self.adapters.parameters[0].device
        joint = torch.empty(sum(rows), weights[0].shape[1], dtype=weights[0].dtype, device=device)
        for weight, part in zip(weights, joint.split(rows), strict=True):
            part.copy_(weight.data)
            weight.data = weight.data.new_empty(0)
        return SmallFp8Matrix(joint)


class _LowMemoryBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cos, sin, documents, least, is_trained, anchor):  # type: ignore[no-untyped-def]
        low = least.adapters.stacked(x.dtype)
        qkv, _ = _project(least, x, cos, sin, low)
        q, k, v = split_heads(qkv, least.heads)
        out, logsumexp = attention_forward(q, k, v, documents)
        del qkv, q, k, v
        if is_trained:
            least.store.keep(least.index, (x, out, logsumexp))
        _, _, w_gate_up, w_down = least.weights()
        norm = least.post_attention_layernorm.weight
        x3, t_down = torch.empty_like(x), x.new_empty(len(x), len(low.a_down))
        for piece in least.pieces(len(x)):
            x2, _ = _add_attention(least, x[piece], out[piece].flatten(1), low)
            gate_up, h2, _ = w_gate_up.normed_forward(x2, norm, least.eps)
            updates = gate_low_rank_deltas(h2 @ low.a_gate_up.t(), low)
            gate, up = gate_up.chunk(2, -1)
            inner, t_down[piece] = kernels.gate_with_adapters(gate, up, updates, low.a_down)
            del gate_up, gate, up
            x3[piece] = kernels.add_low_rank_delta(x2, w_down.forward(inner), LowRankDelta(t_down[piece], low.b_down))
        ctx.save_for_backward(cos, sin, documents.boundaries, documents.extent, t_down)
        ctx.least = least
        return x3

    @staticmethod
    def backward(ctx, dx3):  # type: ignore[no-untyped-def]
        least = ctx.least
        cos, sin, boundaries, extent, t_down = ctx.saved_tensors
        least.store.fetch(least.index - 1)
        x, out, logsumexp = least.store.take(least.index)
        low = least.adapters.stacked(x.dtype)
        shapes = least.adapters.shapes
        sums_dtype = torch.promote_types(x.dtype, torch.float32)
        gradients = torch.zeros(sum(shape.numel() for shape in shapes), dtype=sums_dtype, device=x.device)
        d = adapter_views(gradients, shapes)
        dx2, dout = _after_attention_backward(least, x, out.flatten(1), t_down, dx3.contiguous(), low, d)
        del dx3
        documents = Documents(boundaries, extent)
        qkv, t_qkv = _project(least, x, cos, sin, low)
        grads = attention_backward(dout.view_as(out), *split_heads(qkv, least.heads), out, logsumexp, documents)
        del out, dout, logsumexp
        dt_qkv, db_qkv = torch.empty_like(t_qkv), torch.empty_like(d.b_qkv)
        kernels.apply_rotary_to_heads_backward(*grads, cos, sin, qkv, LowRankDelta(t_qkv, low.b_qkv), (dt_qkv, db_qkv))
        del grads
        d.b_qkv.add_(db_qkv)
        dx = _projection_backward(least, x, qkv, dt_qkv, dx2, low, d, needs_input=ctx.needs_input_grad[0])
        least.adapters.add_gradients(gradients)
        return dx, None, None, None, None, None, None


def _project(least: LowMemoryBlock, x_TD: Tensor, cos_TH: Tensor, sin_TH: Tensor, low: Adapters) -> tuple[Tensor, Tensor]:
    """q, k and v side by side, rotated by their positions [T, C], and the low-rank input of their adapters [T, 3R]."""
    qkv, h1, _ = least.weights()[0].normed_forward(x_TD, least.input_layernorm.weight, least.eps)
    t_qkv = h1 @ low.a_qkv.t()
    return kernels.apply_rotary_to_heads(qkv, cos_TH, sin_TH, least.heads, LowRankDelta(t_qkv, low.b_qkv)), t_qkv


def _add_attention(least: LowMemoryBlock, x_PD: Tensor, out_PC: Tensor, low: Adapters) -> tuple[Tensor, Tensor]:
    """The residual stream after the attention [P, D], and the low-rank input of the output's adapter [P, R]."""
    t_o = out_PC @ low.a_o.t()
    return kernels.add_low_rank_delta(x_PD, least.weights()[1].forward(out_PC), LowRankDelta(t_o, low.b_o)), t_o


def _after_attention_backward(
    least: LowMemoryBlock, x_TD: Tensor, out_TC: Tensor, t_down_TR: Tensor, dx3_TD: Tensor, low: Adapters, d: Adapters
) -> tuple[Tensor, Tensor]:
    """Gradients of the residual stream after the attention [T, D] and of the attention's output, adapters' added to `d`."""
    _, w_o, w_gate_up, w_down = least.weights()
    w_gate_up_transposed, w_down_transposed, w_o_transposed = w_gate_up.transposed(), w_down.transposed(), w_o.transposed()
    norm, scale = least.post_attention_layernorm.weight, least.adapters.scale
    dx2_TD, dout_TC = torch.empty_like(x_TD), torch.empty_like(out_TC)
    for piece in least.pieces(len(x_TD)):
        out, dx3 = out_TC[piece], dx3_TD[piece]
        x2, t_o = _add_attention(least, x_TD[piece], out, low)
        gate_up, h2, inverse2 = w_gate_up.normed_forward(x2, norm, least.eps)
        t_gate_up, t_down = h2 @ low.a_gate_up.t(), t_down_TR[piece]
        dt_down, dt_o = torch.empty_like(t_down), torch.empty_like(t_o)
        sums = [torch.empty_like(total) for total in (d.b_gate, d.b_up, d.a_down, d.b_down, d.b_o)]
        kernels.low_rank_delta_backward(dx3, LowRankDelta(t_down, low.b_down), dt_down, sums[3])
        gate, up = gate_up.chunk(2, -1)
        # The gradients take the place of gate and up: each entry is read before it is written.
        kernels.gate_backward_with_adapters(
            w_down_transposed.backward(dx3),
            gate,
            up,
            gate,
            up,
            gate_low_rank_deltas(t_gate_up, low),
            (dt_down, low.a_down),
            (sums[0], sums[1], sums[2]),
            scale,
        )
        dt_gate_up = torch.cat((gate @ low.b_gate, up @ low.b_up), -1)
        d.a_gate_up.add_(dt_gate_up.t() @ h2, alpha=scale)
        dh2 = w_gate_up_transposed.backward(gate_up).addmm_(dt_gate_up, low.a_gate_up)
        del gate_up, gate, up
        dx2 = kernels.norm_backward(dh2, x2, inverse2, norm, dx3)
        dout = w_o_transposed.backward(dx2)
        kernels.low_rank_delta_backward(dx2, LowRankDelta(t_o, low.b_o), dt_o, sums[4])
        for total, of_piece in zip((d.b_gate, d.b_up, d.a_down, d.b_down, d.b_o), sums, strict=True):
            total.add_(of_piece)
        d.a_o.add_(dt_o.t() @ out, alpha=scale)
        dx2_TD[piece], dout_TC[piece] = dx2, dout.addmm_(dt_o, low.a_o)
    return dx2_TD, dout_TC


def _projection_backward(
    least: LowMemoryBlock,
    x_TD: Tensor,
    dqkv_TC: Tensor,
    dt_qkv: Tensor,
    dx2_TD: Tensor,
    low: Adapters,
    d: Adapters,
    *,
    needs_input: bool,
) -> Tensor | None:
    """Gradient of the block's input [T, D], adapters' added to `d`; none for the first block, as the embedding is frozen."""
    norm = least.input_layernorm.weight
    h1, inverse1 = kernels.norm(x_TD, norm, least.eps)
    d.a_qkv.add_(dt_qkv.t() @ h1, alpha=least.adapters.scale)
    del h1
    if not needs_input:
        return None
    dh1 = least.weights()[0].transposed().backward(dqkv_TC).addmm_(dt_qkv, low.a_qkv)
    return kernels.norm_backward(dh1, x_TD, inverse1, norm, dx2_TD)
