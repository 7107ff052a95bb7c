"""Products with a frozen weight, in its own precision or in fp8.

Shape letters: T tokens, O outputs, I inputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from finetuning.model.kernels import quantise_rows


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
        self.rows_OI, self.row_factors_O1 = quantise_rows(weight_OI)
        self.columns_IO, self.column_factors_I1 = quantise_rows(weight_OI.t().contiguous())

    def forward(self, x_TI: Tensor) -> Tensor:
        return _scaled_product(x_TI, self.rows_OI, self.row_factors_O1)

    def backward(self, grad_TO: Tensor) -> Tensor:
        """Gradient of the input, [T, I]."""
        return _scaled_product(grad_TO, self.columns_IO, self.column_factors_I1)


def _scaled_product(x_TI: Tensor, rows_OI: Tensor, factors_O1: Tensor) -> Tensor:
    quantised_TI, x_factors_T1 = quantise_rows(x_TI)
    if not x_TI.is_cuda:  # the same numbers, slowly
        wide = (quantised_TI.float() @ rows_OI.float().t()) * x_factors_T1 * factors_O1.t()
        return wide.to(x_TI.dtype)
    # The row-wise scaled product has no public name up to torch 2.13.
    return torch._scaled_mm(
        quantised_TI, rows_OI.t(), scale_a=x_factors_T1, scale_b=factors_O1.t(), out_dtype=x_TI.dtype, use_fast_accum=True
    )
