"""One decoder block whose weights are all trained, as a single differentiable function, for speed.

Computes what `finetuning.model.llama.Block` computes; the numbers differ by rounding. As in `finetuning.model.fused`,
weights that read the same input are one matrix, and what lies between two products is one pass. Weight gradients do not
travel through autograd: each product adds to its weight's `grad` on the way out, so that the rows of a step are summed
inside the matrix product instead of in a pass over all weights.

Shape letters as in `kernels`; names of gradients begin with d: `dq` is the gradient of q.
"""

import torch
from torch import Tensor, nn

from finetuning.model import kernels
from finetuning.model.attention import Documents, attention_backward, attention_forward
from finetuning.model.fused import grouped_layers, join, split_heads
from finetuning.model.kernels import quantise_columns, quantise_rows, scaled_product
from finetuning.model.llama import Block


class TrainedMatrix:
    """Weights [O, I] that read the same input, side by side in one tensor, and their gradients in another."""

    def __init__(self, parameters: list[Tensor]):
        self.parameters = parameters
        self.weight_OI = join(parameters)
        self._gradient_OI: Tensor | None = None

    def forward(self, x_TI: Tensor) -> Tensor:
        return x_TI @ self.weight_OI.t()

    def backward(self, grad_TO: Tensor) -> Tensor:
        """Gradient of the input, [T, I]."""
        return grad_TO @ self.weight_OI

    def add_gradient(self, grad_TO: Tensor, x_TI: Tensor) -> None:
        """Adds to the weights' gradients."""
        gradient, first = self._gradients()
        if first:
            torch.mm(grad_TO.t(), x_TI, out=gradient)
        else:
            gradient.addmm_(grad_TO.t(), x_TI)

    def _gradients(self) -> tuple[Tensor, bool]:
        """Room for the joint gradient, of which those of the parameters are views, and whether it is still to be filled."""
        if self._gradient_OI is None:
            self._gradient_OI = torch.empty_like(self.weight_OI)
        first = self.parameters[0].grad is None
        if first:
            rows = [len(parameter) for parameter in self.parameters]
            for parameter, part in zip(self.parameters, self._gradient_OI.split(rows), strict=True):
                parameter.grad = part
        return self._gradient_OI, first


class TrainedFp8Matrix(TrainedMatrix):
    """The same with all three products in fp8 (e4m3), sums in float32.

    The weight is quantised once a step, after it has changed, with a factor for each output and once more, transposed, for
    each input. Activations and their gradients are quantised by rows for one product, and by columns for the weight's
    gradient, which sums over tokens. The number of tokens must be a multiple of 16.
    """

    def __init__(self, parameters: list[Tensor]):
        super().__init__(parameters)
        self._rows: tuple[Tensor, Tensor] | None = None
        self._columns: tuple[Tensor, Tensor] | None = None

    def forward(self, x_TI: Tensor) -> Tensor:
        if self._rows is None or self.parameters[0].grad is None:  # weights change only while they have no gradient
            self._rows, self._columns = quantise_rows(self.weight_OI), quantise_columns(self.weight_OI)
        return scaled_product(quantise_rows(x_TI), self._rows, x_TI.dtype)

    def backward(self, grad_TO: Tensor) -> Tensor:
        assert self._columns is not None
        return scaled_product(quantise_rows(grad_TO), self._columns, grad_TO.dtype)

    def add_gradient(self, grad_TO: Tensor, x_TI: Tensor) -> None:
        product = scaled_product(quantise_columns(grad_TO), quantise_columns(x_TI), grad_TO.dtype)
        gradient, first = self._gradients()
        if first:
            gradient.copy_(product)
        else:
            gradient.add_(product)


class FusedTrainedBlock:
    """The weights of a block, and its forward function.

    They are moved into joint tensors; the block's own parameters become views of them.

    Args:
        keep_all: keep the normed inputs, gate and up for the backward pass; otherwise they are computed again, which
            saves two thirds of a block's memory for half of its forward pass.
    """

    def __init__(self, block: Block, *, fp8: bool, keep_all: bool):
        self.block, self.keep_all = block, keep_all
        groups = grouped_layers(block)
        kind = TrainedFp8Matrix if fp8 else TrainedMatrix
        self.w_qkv, self.w_o, self.w_gate_up, self.w_down = (kind([layer.weight for layer in group]) for group in groups)
        self.norm1, self.norm2 = block.input_layernorm.weight, block.post_attention_layernorm.weight
        self.eps = block.input_layernorm.eps
        head_dim = block.self_attn.head_dim
        self.heads = groups[0][0].out_features // head_dim, groups[0][1].out_features // head_dim

    def __call__(self, x_BTD: Tensor, cos_BTH: Tensor, sin_BTH: Tensor, documents: Documents) -> Tensor:
        """Block output [1, T, D]; B is 1."""
        out_TD: Tensor = _FusedTrainedBlock.apply(x_BTD.flatten(0, 1), cos_BTH[0], sin_BTH[0], documents, self)
        return out_TD[None]


class _FusedTrainedBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cos, sin, documents, fused):  # type: ignore[no-untyped-def]
        h1, inverse1 = kernels.norm(x, fused.norm1, fused.eps)
        qkv = kernels.rotate_heads(fused.w_qkv.forward(h1), cos, sin, fused.heads)
        out, logsumexp = attention_forward(*split_heads(qkv, fused.heads), documents)
        x2 = x + fused.w_o.forward(out.flatten(1))

        h2, inverse2 = kernels.norm(x2, fused.norm2, fused.eps)
        gate_up = fused.w_gate_up.forward(h2)
        x3 = x2 + fused.w_down.forward(kernels.gate(*gate_up.chunk(2, -1)))

        kept = (h1, h2, gate_up) if fused.keep_all else ()
        ctx.save_for_backward(
            x, cos, sin, documents.boundaries, documents.extent, inverse1, qkv, out, logsumexp, x2, inverse2, *kept
        )
        ctx.fused = fused
        return x3

    @staticmethod
    def backward(ctx, dx3):  # type: ignore[no-untyped-def]
        fused = ctx.fused
        x, cos, sin, boundaries, extent, inverse1, qkv, out, logsumexp, x2, inverse2, *kept = ctx.saved_tensors
        if kept:
            h1, h2, gate_up = kept
        else:
            h1, _ = kernels.norm(x, fused.norm1, fused.eps)
            h2, _ = kernels.norm(x2, fused.norm2, fused.eps)
            gate_up = fused.w_gate_up.forward(h2)
        dx3 = dx3.contiguous()

        gate, up = gate_up.chunk(2, -1)
        dgate_up = torch.empty_like(gate_up)
        dgate, dup = dgate_up.chunk(2, -1)
        inner = kernels.gate_backward(fused.w_down.backward(dx3), gate, up, dgate, dup)
        fused.w_down.add_gradient(dx3, inner)
        del inner
        dh2 = fused.w_gate_up.backward(dgate_up)
        fused.w_gate_up.add_gradient(dgate_up, h2)
        _add_gradient(fused.norm2, kernels.norm_weight_gradient(dh2, x2, inverse2))
        dx2 = kernels.norm_backward(dh2, x2, inverse2, fused.norm2, dx3)

        dout = fused.w_o.backward(dx2)
        fused.w_o.add_gradient(dx2, out.flatten(1))
        dq, dk, dv = attention_backward(
            dout.view_as(out), *split_heads(qkv, fused.heads), out, logsumexp, Documents(boundaries, extent)
        )
        dqkv = torch.empty_like(qkv)
        kernels.rotate_heads_backward(dq, dk, dv, cos, sin, dqkv)
        dh1 = fused.w_qkv.backward(dqkv)
        fused.w_qkv.add_gradient(dqkv, h1)
        _add_gradient(fused.norm1, kernels.norm_weight_gradient(dh1, x, inverse1))
        return kernels.norm_backward(dh1, x, inverse1, fused.norm1, dx2), None, None, None, None


def _add_gradient(parameter: nn.Parameter, value: Tensor) -> None:
    value = value.to(parameter.dtype)
    parameter.grad = value if parameter.grad is None else parameter.grad.add_(value)
