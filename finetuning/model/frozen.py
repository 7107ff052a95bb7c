"""Products with a frozen weight, in its own precision or in fp8.

Shape letters: T tokens, O outputs, I inputs.
"""

from dataclasses import dataclass

from torch import Tensor

from finetuning.model.kernels import quantise_columns, quantise_rows, scaled_product


@dataclass(frozen=True)
class Matrix:
    """A weight [O, I] as it is."""

    weight_OI: Tensor

    def forward(self, x_TI: Tensor) -> Tensor:
        return x_TI @ self.weight_OI.t()

    def backward(self, grad_TO: Tensor) -> Tensor:
        """Gradient of the input, [T, I]."""
        return grad_TO @ self.weight_OI


class Fp8Matrix:
    """A weight [O, I] in fp8 (e4m3), once with a factor for each output and once, transposed, for each input.

    Both products, forward and for the gradient of the input, then multiply fp8 by fp8: the activations are quantised row by
    row on the way in, sums are float32, results come back in the activations' dtype. Takes as much memory as the bfloat16
    weight it replaces. Needs dimensions that are multiples of 16, and on CUDA compute capability 8.9 or higher.
    """

    def __init__(self, weight_OI: Tensor):
        self.rows, self.columns = quantise_rows(weight_OI), quantise_columns(weight_OI)

    def forward(self, x_TI: Tensor) -> Tensor:
        return scaled_product(quantise_rows(x_TI), self.rows, x_TI.dtype)

    def backward(self, grad_TO: Tensor) -> Tensor:
        """Gradient of the input, [T, I]."""
        return scaled_product(quantise_rows(grad_TO), self.columns, grad_TO.dtype)
