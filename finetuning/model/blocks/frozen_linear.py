"""Products with a frozen weight, in its own precision or in fp8.

Shape letters: T tokens, O outputs, I inputs, R rows of the A matrices of adapters that read the same input.
"""

from dataclasses import dataclass

from torch import Tensor

from finetuning.model.kernels import ops as kernels
from finetuning.model.kernels.ops import MIN_SCALE, quantize_columns, quantize_rows, scaled_product, transpose

# Least factor of an input beside the largest of an output, where A lies beside the weight: A is divided by it. An input that
# no output depends on would take all 448 steps from the others.
MIN_PART = 2.0**-12


class Matrix:
    """A weight [O, I] as it is.

    With room for A in the rows below it, the gradient of the input through both is one product.
    """

    def __init__(self, weight_OI: Tensor, with_room_OI: Tensor | None = None):
        """`with_room` is the same memory, R rows longer."""
        self.weight_OI, self.with_room_OI = weight_OI, with_room_OI
        self._placed: Tensor | None = None  # A that lies there

    def forward(self, x_TI: Tensor) -> Tensor:
        return x_TI @ self.weight_OI.t()

    def normed_forward(self, x_TI: Tensor, norm_I: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """The product with the normed input [T, O], that input and the norm's factors, as `kernels.norm` gives them."""
        h_TI, inverse_T = kernels.norm(x_TI, norm_I, eps)
        return self.forward(h_TI), h_TI, inverse_T

    def backward(self, grad_TO: Tensor) -> Tensor:
        """Gradient of the input, [T, I]."""
        return grad_TO @ self.weight_OI

    def backward_with_adapter(self, grads_TO: Tensor, a_RI: Tensor) -> Tensor:
        """Gradient of the input [T, I] from those of the outputs and of x A^T, side by side [T, O + R]."""
        outputs = len(self.weight_OI)
        if self.with_room_OI is None:
            return self.backward(grads_TO[:, :outputs]).addmm_(grads_TO[:, outputs:], a_RI)
        if a_RI is not self._placed:
            self.with_room_OI[outputs:].copy_(a_RI)
            self._placed = a_RI
        return grads_TO @ self.with_room_OI

    def transposed(self) -> "Matrix":
        """For several calls of `backward`."""
        return self


class Fp8Matrix:
    """A weight [O, I] in fp8 (e4m3), once with a factor for each output and once, transposed, for each input.

    Both products, forward and for the gradient of the input, then multiply fp8 by fp8: the activations are quantized row by
    row on the way in, sums are float32, results come back in the activations' dtype. Takes as much memory as the bfloat16
    weight it replaces. Needs dimensions that are multiples of 16, and on CUDA compute capability 8.9 or higher.

    With room for A beside the transpose, the gradient of the input through both is one product; A and what passes it are
    then quantized, too.
    """

    def __init__(self, weight_OI: Tensor, room: int = 0):
        self.outputs, self.room = len(weight_OI), room
        self.rows = quantize_rows(weight_OI)
        min_scale = max(MIN_SCALE, MIN_PART * self.rows[1].max().item()) if room else MIN_SCALE
        columns_IO, self.factors_I1 = quantize_columns(weight_OI, min_scale)
        self.columns_IO = columns_IO
        if room:
            self.columns_IO = kernels.empty_fp8(len(columns_IO), self.outputs + room, weight_OI.device)
            self.columns_IO[:, : self.outputs].copy_(columns_IO)
        self._placed: Tensor | None = None  # A that lies in the last columns
        self._multipliers_R: Tensor | None = None

    def forward(self, x_TI: Tensor) -> Tensor:
        return scaled_product(quantize_rows(x_TI), self.rows, x_TI.dtype)

    def normed_forward(self, x_TI: Tensor, norm_I: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """As `Matrix.normed_forward`; the norm's pass quantizes, too."""
        h_TI, inverse_T, quantized = kernels.norm_and_quantize(x_TI, norm_I, eps)
        return scaled_product(quantized, self.rows, x_TI.dtype), h_TI, inverse_T

    def backward(self, grad_TO: Tensor) -> Tensor:
        """Gradient of the input, [T, I]."""
        return scaled_product(quantize_rows(grad_TO), (self.columns_IO[:, : self.outputs], self.factors_I1), grad_TO.dtype)

    def backward_with_adapter(self, grads_TO: Tensor, a_RI: Tensor) -> Tensor:
        """As `Matrix.backward_with_adapter`; what passes A is overwritten."""
        if self.room == 0:
            return self.backward(grads_TO[:, : self.outputs]).addmm_(grads_TO[:, self.outputs :], a_RI)
        if a_RI is not self._placed:
            self._multipliers_R = kernels.quantize_beside(a_RI, self.factors_I1, self.columns_IO[:, self.outputs :])
            self._placed = a_RI
        assert self._multipliers_R is not None
        grads_TO[:, self.outputs :].mul_(self._multipliers_R)
        return scaled_product(quantize_rows(grads_TO), (self.columns_IO, self.factors_I1), grads_TO.dtype)


class SmallFp8Matrix:
    """A weight [O, I] in fp8 once, with a factor for each output: half the memory of `Fp8Matrix`.

    The gradient of the input is (grad * factors) W: the gradient's columns are multiplied by the weight's factors before its
    rows are quantized, and the weight is transposed each time, which fp8 products need (`transposed`).
    """

    def __init__(self, weight_OI: Tensor):
        self.rows = quantize_rows(weight_OI)
        factors_O = self.rows[1].flatten()
        # At most 1, so that tiny gradients stay above the least factor of a row; the rest comes after the product.
        self.relative_O = factors_O / factors_O.max()
        self.largest_I1 = factors_O.max().expand(weight_OI.shape[1], 1).contiguous()

    def forward(self, x_TI: Tensor) -> Tensor:
        return scaled_product(quantize_rows(x_TI), self.rows, x_TI.dtype)

    def normed_forward(self, x_TI: Tensor, norm_I: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """As `Matrix.normed_forward`; the norm's pass quantizes, too."""
        h_TI, inverse_T, quantized = kernels.norm_and_quantize(x_TI, norm_I, eps)
        return scaled_product(quantized, self.rows, x_TI.dtype), h_TI, inverse_T

    def transposed(self) -> "TransposedFp8Matrix":
        """The transpose, as large as the weight, for as long as the result is kept."""
        return TransposedFp8Matrix((transpose(self.rows[0]), self.largest_I1), self.relative_O)


@dataclass(frozen=True)
class TransposedFp8Matrix:
    """The transpose of a `SmallFp8Matrix` with its largest factor, and all factors relative to that."""

    columns: tuple[Tensor, Tensor]
    relative_O: Tensor

    def backward(self, grad_TO: Tensor) -> Tensor:
        """Gradient of the input, [T, I]."""
        return scaled_product(quantize_rows(grad_TO, self.relative_O), self.columns, grad_TO.dtype)
