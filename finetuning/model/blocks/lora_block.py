"""One decoder block with LoRA as a single differentiable function, for speed.

Computes what `finetuning.model.llama.Block` with `finetuning.model.lora` computes; the numbers differ by rounding.
Three things make it faster. Frozen weights that read the same input lie side by side, so that q, k and v, and gate and
up, are one matrix product each. Everything between two products is one pass (`finetuning.model.kernels.ops`), low-rank
updates included. And the backward pass, written out, computes nothing for frozen weights and keeps only what it needs.
Gradients of the adapters do not travel through autograd: those of a block are added to its parameters' `grad` at once.
There is nothing to compile but a few small kernels, whatever the length of a row.

Shape letters as in `kernels`; names of gradients begin with d: `dq` is the gradient of q.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import override

from finetuning.config.settings import MAX_FUSED_RANK
from finetuning.model.attention import Attended, Documents, attention_backward, attention_forward
from finetuning.model.blocks.frozen_linear import Fp8Matrix, Matrix
from finetuning.model.kernels import ops as kernels
from finetuning.model.kernels.ops import LowRankDelta
from finetuning.model.llama import Block, DocumentAttention
from finetuning.model.lora import LoraLinear

# Groups of layers that read the same input, and the order of a block's adapters.
GROUPS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
WITH_ROOM = (0, 1, 2)  # groups whose joint weight has room for A beside it


def can_fuse(block: Block) -> bool:
    """Whether every linear layer of the block has adapters of one rank, not too large, and one scale."""
    layers = [layer for group in grouped_layers(block) for layer in group]
    if not all(isinstance(layer, LoraLinear) for layer in layers):
        return False
    shapes = {_shape(layer) for layer in layers}
    return len(shapes) == 1 and max(rank for rank, _ in shapes) <= MAX_FUSED_RANK


class LoraBlock(Block):
    """Takes a block's place, with its parts.

    Its frozen weights are moved into joint tensors; the parameters become views of them, so that loading a checkpoint into
    the block fills them.

    Args:
        keep_all: keep the normed inputs, gate and up for the backward pass; otherwise they are computed again, which
            saves two thirds of a block's memory for half of its forward pass.
    """

    def __init__(self, block: Block, *, fp8: bool, keep_all: bool = True):
        super().__init__(block.self_attn, block.mlp, block.input_layernorm, block.post_attention_layernorm)
        self.fp8, self.keep_all = fp8, keep_all
        groups = grouped_layers(block)
        self.frozen = [[layer.weight for layer in group] for group in groups]
        self.adapters = BlockAdapters([layer for group in groups for layer in group if isinstance(layer, LoraLinear)])
        self.matrices = [_frozen_matrix(weights, 0 if fp8 else self._room(index)) for index, weights in enumerate(self.frozen)]
        self.quantized: list[Fp8Matrix] = []
        self.eps = block.input_layernorm.eps
        head_dim = block.self_attn.head_dim
        self.heads = groups[0][0].out_features // head_dim, groups[0][1].out_features // head_dim

    @override
    def forward(
        self, x_BTD: Tensor, cos_BTH: Tensor, sin_BTH: Tensor, documents: Documents, at_S: Tensor | None = None
    ) -> Tensor:
        """Block output [1, T, D], or [1, S, D] of the positions `at_S` only; B is 1."""
        # The input of the first block needs no gradient; one of the adapters makes autograd call the backward pass.
        anchor = self.adapters.parameters[0]
        out_TD: Tensor = _LoraBlock.apply(x_BTD.flatten(0, 1), cos_BTH[0], sin_BTH[0], documents, at_S, self, anchor)
        return out_TD[None]

    def weights(self) -> Sequence[Matrix | Fp8Matrix]:
        """The joint weights; the first call with fp8, after the weights were loaded, replaces them by quantized ones."""
        if self.fp8 and not self.quantized:
            self.quantized = [Fp8Matrix(matrix.weight_OI, self._room(index)) for index, matrix in enumerate(self.matrices)]
            self.matrices = []
            for weight in (weight for group in self.frozen for weight in group):
                weight.data = weight.data.new_empty(0)
        return self.quantized or self.matrices

    def _room(self, group: int) -> int:
        """Rows of A, if they are a multiple of 16 bytes; others would make the large product slow, or impossible in fp8."""
        rows = len(self.frozen[group]) * self.adapters.rank
        return rows if group in WITH_ROOM and rows % (16 if self.fp8 else 8) == 0 else 0


@dataclass(frozen=True)
class Adapters:
    """A and B of a block, or their gradients; those of a group lie one below the other, apart from B of gate and up."""

    a_qkv: Tensor
    b_qkv: Tensor
    a_o: Tensor
    b_o: Tensor
    a_gate_up: Tensor
    b_gate: Tensor
    b_up: Tensor
    a_down: Tensor
    b_down: Tensor


class BlockAdapters:
    """The adapters of a block as stacked matrices: in the compute dtype, and their gradients in float32.

    A carries the scale of the update, so that no product has to: the update is (x A^T) B^T.
    """

    def __init__(self, layers: list[LoraLinear]):
        """Layers in the order of GROUPS."""
        self.scale, self.rank = layers[0].scale, layers[0].lora_A.out_features
        self.parameters = [part.weight for group in _grouped(layers) for part in group]
        self.shapes = [parameter.shape for parameter in self.parameters]
        self._stacked: Adapters | None = None
        self._gradients: Tensor | None = None

    def stacked(self, dtype: torch.dtype) -> Adapters:
        """Made anew when the adapters may have changed, which they do only while they have no gradient."""
        if self._stacked is None or self.parameters[0].grad is None:
            flat = torch.cat([parameter.detach().flatten() for parameter in self.parameters])
            stacked = adapter_views(flat, self.shapes)
            for a in (stacked.a_qkv, stacked.a_o, stacked.a_gate_up, stacked.a_down):
                a.mul_(self.scale)
            self._stacked = adapter_views(flat.to(dtype), self.shapes)
        return self._stacked

    def add_gradients(self, flat: Tensor) -> None:
        """Adds gradients that lie in one tensor, as `adapter_views` sees them."""
        if self.parameters[0].grad is not None:
            assert self._gradients is not None
            self._gradients.add_(flat)
            return
        self._gradients = flat.float()
        parts = self._gradients.split([shape.numel() for shape in self.shapes])
        for parameter, part, shape in zip(self.parameters, parts, self.shapes, strict=True):
            parameter.grad = part.view(shape)


class _LoraBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cos, sin, documents, at, fused, anchor):  # type: ignore[no-untyped-def]
        heads = fused.heads
        w_qkv, w_o, w_gate_up, w_down = fused.weights()
        low = fused.adapters.stacked(x.dtype)

        qkv, h1, inverse1 = w_qkv.normed_forward(x, fused.input_layernorm.weight, fused.eps)
        t_qkv = h1 @ low.a_qkv.t()
        qkv = kernels.apply_rotary_to_heads(qkv, cos, sin, heads, LowRankDelta(t_qkv, low.b_qkv))
        out, for_attention, attended = block_attention(other_attention(fused), qkv, heads, documents)
        flat_out = gather_rows(out.flatten(1), at)
        t_o = flat_out @ low.a_o.t()
        x2 = kernels.add_low_rank_delta(gather_rows(x, at), w_o.forward(flat_out), LowRankDelta(t_o, low.b_o))

        gate_up, h2, inverse2 = w_gate_up.normed_forward(x2, fused.post_attention_layernorm.weight, fused.eps)
        t_gate_up = h2 @ low.a_gate_up.t()
        gate, up = gate_up.chunk(2, -1)
        inner, t_down = kernels.gate_with_adapters(gate, up, gate_low_rank_deltas(t_gate_up, low), low.a_down)
        x3 = kernels.add_low_rank_delta(x2, w_down.forward(inner), LowRankDelta(t_down, low.b_down))

        kept = (h1, h2, gate_up) if fused.keep_all else (None, None, None)
        ctx.save_for_backward(
            x, cos, sin, inverse1, t_qkv, out, t_o, x2, inverse2, t_gate_up, t_down, at, *kept, *for_attention
        )
        ctx.fused, ctx.attended = fused, attended
        return x3

    @staticmethod
    def backward(ctx, dx3):  # type: ignore[no-untyped-def]
        fused = ctx.fused
        heads, scale = fused.heads, fused.adapters.scale
        w_qkv, w_o, w_gate_up, w_down = fused.weights()
        x, cos, sin, inverse1, t_qkv, out, t_o, x2, inverse2, t_gate_up, t_down, at, h1, h2, gate_up, *for_attention = (
            ctx.saved_tensors
        )
        if not fused.keep_all:
            h1, _ = kernels.norm(x, fused.input_layernorm.weight, fused.eps)
            gate_up, h2, _ = w_gate_up.normed_forward(x2, fused.post_attention_layernorm.weight, fused.eps)
        low = fused.adapters.stacked(x.dtype)
        gradients = torch.empty(sum(shape.numel() for shape in fused.adapters.shapes), dtype=x.dtype, device=x.device)
        d = adapter_views(gradients, fused.adapters.shapes)
        dx3 = dx3.contiguous()

        dt_down = torch.empty_like(t_down)
        kernels.low_rank_delta_backward(dx3, LowRankDelta(t_down, low.b_down), dt_down, d.b_down)
        gate, up = gate_up.chunk(2, -1)
        grads, dgate_up, dt_gate_up = _side_by_side(len(gate_up), gate_up.shape[1], low.a_gate_up)
        dgate, dup = dgate_up.chunk(2, -1)
        kernels.gate_backward_with_adapters(
            w_down.backward(dx3),
            gate,
            up,
            dgate,
            dup,
            gate_low_rank_deltas(t_gate_up, low),
            (dt_down, low.a_down),
            (d.b_gate, d.b_up, d.a_down),
            scale,
        )
        for grad, b, dt in zip((dgate, dup), (low.b_gate, low.b_up), dt_gate_up.chunk(2, -1), strict=True):
            torch.mm(grad, b, out=dt)
        _scaled_product(dt_gate_up, h2, scale, d.a_gate_up)
        dh2 = w_gate_up.backward_with_adapter(grads, low.a_gate_up)

        grads, dx2, dt_o = _side_by_side(len(x2), x2.shape[1], low.a_o)
        kernels.norm_backward(dh2, x2, inverse2, fused.post_attention_layernorm.weight, dx3, dx2)
        kernels.low_rank_delta_backward(dx2, LowRankDelta(t_o, low.b_o), dt_o, d.b_o)
        _scaled_product(dt_o, gather_rows(out.flatten(1), at), scale, d.a_o)
        dout = scatter_rows(w_o.backward_with_adapter(grads, low.a_o), at, len(x)).view_as(out)
        dq, dk, dv = block_attention_backward(dout, out, heads, for_attention, ctx.attended)
        grads, dqkv, dt_qkv = _side_by_side(len(x), len(low.b_qkv), low.a_qkv)
        kernels.apply_rotary_to_heads_backward(dq, dk, dv, cos, sin, dqkv, LowRankDelta(t_qkv, low.b_qkv), (dt_qkv, d.b_qkv))
        _scaled_product(dt_qkv, h1, scale, d.a_qkv)
        dx = None
        if ctx.needs_input_grad[0]:  # not for the first block: the embedding is frozen
            dh1 = w_qkv.backward_with_adapter(grads, low.a_qkv)
            dx = kernels.norm_backward(dh1, x, inverse1, fused.input_layernorm.weight, scatter_rows(dx2, at, len(x)))
        fused.adapters.add_gradients(gradients)
        return dx, None, None, None, None, None, None


def other_attention(block: Block) -> Callable[..., Tensor] | None:
    """The block's attention, if something was put around the ordinary one, whose backward pass is written out."""
    return None if isinstance(block.self_attn.attend, DocumentAttention) else block.self_attn.attend


def block_attention(
    attend: Callable[..., Tensor] | None, qkv_TC: Tensor, heads: tuple[int, int], documents: Documents
) -> tuple[Tensor, tuple[Tensor, ...], Attended | None]:
    """Output [T, N, H], tensors to save for `block_attention_backward`, and the attention if it is not the ordinary one."""
    if attend is None:
        out_TNH, logsumexp = attention_forward(*split_heads(qkv_TC, heads), documents)
        return out_TNH, (documents.boundaries, documents.extent, qkv_TC, logsumexp), None
    attended = Attended(attend, *split_heads(qkv_TC, heads), documents)
    return attended.out_TNH, (), attended


def block_attention_backward(
    dout_TNH: Tensor, out_TNH: Tensor, heads: tuple[int, int], saved: Sequence[Tensor], attended: Attended | None
) -> tuple[Tensor, ...]:
    """Gradients of q, k and v."""
    if attended is not None:
        return attended.backward(dout_TNH)
    boundaries, extent, qkv_TC, logsumexp = saved
    return attention_backward(dout_TNH, *split_heads(qkv_TC, heads), out_TNH, logsumexp, Documents(boundaries, extent))


def grouped_layers(block: Block) -> list[list[nn.Linear]]:
    """The linear layers of a block, those that read the same input together, as in GROUPS."""
    modules = dict(block.self_attn.named_children()) | dict(block.mlp.named_children())
    layers = {name: module for name, module in modules.items() if isinstance(module, nn.Linear)}
    return [[layers[name] for name in group] for group in GROUPS]


def _shape(layer: nn.Linear) -> tuple[int, float]:
    assert isinstance(layer, LoraLinear)
    return layer.lora_A.out_features, layer.scale


def _grouped(layers: list[LoraLinear]) -> list[list[nn.Linear]]:
    """A of the layers of a group, then B of them, group by group."""
    groups, start = [], 0
    for names in GROUPS:
        group = layers[start : start + len(names)]
        groups.append([*(layer.lora_A for layer in group), *(layer.lora_B for layer in group)])
        start += len(names)
    return groups


def join(weights: list[Tensor], room: int = 0) -> Tensor:
    """One tensor with the rows of all weights [O, I], which become views of it, and of `room` rows more."""
    rows = [len(weight) for weight in weights]
    joint = weights[0].data.new_empty(sum(rows) + room, weights[0].shape[1])
    for weight, part in zip(weights, joint[: sum(rows)].split(rows), strict=True):
        weight.data = part.copy_(weight.data)
    return joint


def _frozen_matrix(weights: list[Tensor], room: int) -> Matrix:
    joint = join(weights, room)
    return Matrix(joint[: len(joint) - room], joint if room else None)


def _side_by_side(tokens: int, outputs: int, a_RI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the gradients of an output [T, O] and of x A^T in one tensor [T, O + R], and the two parts of it."""
    width = outputs + len(a_RI)
    both = a_RI.new_empty(tokens, width + -width % 8)[:, :width]  # rows begin at multiples of 16 bytes
    return both, both[:, :outputs], both[:, outputs:]


def adapter_views(flat: Tensor, shapes: list[torch.Size]) -> Adapters:
    """Adapters in the order of GROUPS (A of a group, then B of it) as stacked matrices."""
    counts = [3, 3, 1, 1, 2, 1, 1, 1, 1]  # A and B of q, k, v; of o; A of gate and up, B of gate, B of up; A and B of down
    matrices, place, index = [], 0, 0
    for count in counts:
        group = shapes[index : index + count]
        rows, columns = sum(shape[0] for shape in group), group[0][1]
        matrices.append(flat[place : place + rows * columns].view(rows, columns))
        place, index = place + rows * columns, index + count
    return Adapters(*matrices)


def gate_low_rank_deltas(t_gate_up: Tensor, low: Adapters) -> tuple[LowRankDelta, LowRankDelta]:
    t_gate, t_up = t_gate_up.chunk(2, -1)
    return LowRankDelta(t_gate, low.b_gate), LowRankDelta(t_up, low.b_up)


def gather_rows(x_TD: Tensor, at_S: Tensor | None) -> Tensor:
    """Those rows, or all."""
    return x_TD if at_S is None else x_TD[at_S]


def scatter_rows(x_SD: Tensor, at_S: Tensor | None, num_rows: int) -> Tensor:
    """The gradient of `gather_rows`: these rows in their places [T, D], the others 0."""
    return x_SD if at_S is None else x_SD.new_zeros(num_rows, x_SD.shape[1]).index_copy_(0, at_S, x_SD)


def _scaled_product(dt_TR: Tensor, x_TI: Tensor, scale: float, out_RI: Tensor) -> None:
    """Gradient of A: scale * dt^T x."""
    torch.addmm(out_RI, dt_TR.t(), x_TI, beta=0, alpha=scale, out=out_RI)


def split_heads(qkv_TC: Tensor, heads: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """q [T, N, H], k [T, K, H] and v [T, K, H] of joint columns; `heads` are N and K."""
    num_heads, num_key_value_heads = heads
    per_head = qkv_TC.unflatten(-1, (num_heads + 2 * num_key_value_heads, -1))
    q, k, v = per_head.split([num_heads, num_key_value_heads, num_key_value_heads], 1)
    return q, k, v
