"""Trained weights that read the same input, as one matrix: its product, and its gradients, which autograd does not see.

Each weight gradient is added to its weight's `grad` inside the matrix product that makes it.

Shape letters: T tokens, I inputs, O outputs of all weights of a group.
"""

import torch
from torch import Tensor, nn

from finetuning.model.blocks.lora_block import join
from finetuning.model.kernels.ops import quantize_columns, quantize_rows, scaled_product


class TrainableMatrix:
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


class TrainableFp8Matrix(TrainableMatrix):
    """The same with all three products in fp8 (e4m3), sums in float32.

    The weight is quantized once a step, after it has changed, with a factor for each output and once more, transposed, for
    each input. Activations and their gradients are quantized by rows for one product, and by columns for the weight's
    gradient, which sums over tokens. The number of tokens must be a multiple of 16.
    """

    def __init__(self, parameters: list[Tensor]):
        super().__init__(parameters)
        self._rows: tuple[Tensor, Tensor] | None = None
        self._columns: tuple[Tensor, Tensor] | None = None

    def forward(self, x_TI: Tensor) -> Tensor:
        if self._rows is None or self.parameters[0].grad is None:  # weights change only while they have no gradient
            self._rows, self._columns = quantize_rows(self.weight_OI), quantize_columns(self.weight_OI)
        return scaled_product(quantize_rows(x_TI), self._rows, x_TI.dtype)

    def backward(self, grad_TO: Tensor) -> Tensor:
        assert self._columns is not None
        return scaled_product(quantize_rows(grad_TO), self._columns, grad_TO.dtype)

    def add_gradient(self, grad_TO: Tensor, x_TI: Tensor) -> None:
        product = scaled_product(quantize_columns(grad_TO), quantize_columns(x_TI), grad_TO.dtype)
        gradient, first = self._gradients()
        if first:
            gradient.copy_(product)
        else:
            gradient.add_(product)


class GatheredMatrix:
    """The same of weights that are whole only while FSDP has gathered them, each in a tensor of its own.

    They are looked up in their layers for each product: FSDP puts the gathered ones there before the block's forward and
    backward pass, and takes the gradients away after the backward pass.
    """

    def __init__(self, layers: list[nn.Linear]):
        self.layers = layers
        self.rows = [len(layer.weight) for layer in layers]

    def forward(self, x_TI: Tensor) -> Tensor:
        out_TO = x_TI.new_empty(len(x_TI), sum(self.rows))
        for layer, part in zip(self.layers, out_TO.split(self.rows, -1), strict=True):
            torch.mm(x_TI, layer.weight.t(), out=part)
        return out_TO

    def backward(self, grad_TO: Tensor) -> Tensor:
        """Gradient of the input, [T, I]."""
        (first, grad), *others = zip(self.layers, grad_TO.split(self.rows, -1), strict=True)
        total_TI = grad @ first.weight
        for layer, grad in others:
            total_TI.addmm_(grad, layer.weight)
        return total_TI

    def add_gradient(self, grad_TO: Tensor, x_TI: Tensor) -> None:
        """Adds to the weights' gradients."""
        weights = [layer.weight for layer in self.layers]
        if weights[0].grad is None:
            for weight, part in zip(weights, (grad_TO.t() @ x_TI).split(self.rows), strict=True):
                weight.grad = part
        else:
            for weight, grad in zip(weights, grad_TO.split(self.rows, -1), strict=True):
                assert weight.grad is not None
                weight.grad.addmm_(grad.t(), x_TI)
