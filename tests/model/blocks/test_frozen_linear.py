"""Frozen weights in fp8: how far products may be from those with the weights as they are."""

import pytest
import torch

from finetuning.model.blocks.frozen_linear import Fp8Matrix, Matrix, SmallFp8Matrix
from finetuning.model.kernels.ops import FP8_MAX, quantize_rows

pytestmark = pytest.mark.unit


def test_rows_are_quantized_to_their_largest_value() -> None:
    x = random(6, 40) * torch.tensor([[1.0], [1e-4], [1e4], [3.0], [0.0], [1e-20]])
    quantized, factors = quantize_rows(x)
    assert quantized.dtype == torch.float8_e4m3fn
    assert factors.shape == (6, 1)
    # e4m3 keeps 3 bits of the fraction: half a step is 1/16 of a value; below the smallest normal number, half of 2^-9
    error = (quantized.float() * factors - x).abs()
    assert (error <= x.abs() / 16 + factors * 2**-10).all()
    assert (quantized[:4].float().abs().amax(-1) == FP8_MAX).all()
    assert (quantized[4].float() == 0).all()


@pytest.mark.parametrize("product", ["forward", "backward"])
def test_products_differ_from_the_plain_ones_by_the_rounding_to_fp8(product: str) -> None:
    weight = random(48, 64) * torch.logspace(-2, 1, 48)[:, None]
    x = random(128, 64 if product == "forward" else 48)
    expected = getattr(Matrix(weight), product)(x)
    found = getattr(Fp8Matrix(weight), product)(x)
    # Each factor is off by at most 1/16 and by 1/40 on average; independent errors of 48 and more terms partly cancel.
    assert (found - expected).norm() < 0.05 * expected.norm()
    assert not torch.equal(found, expected)


def test_outputs_of_very_different_sizes_keep_their_relative_precision() -> None:
    weight = random(48, 64)
    weight[0] *= 1e-6
    x = random(32, 64)
    expected, found = x @ weight[0], Fp8Matrix(weight).forward(x)[:, 0]
    assert (found - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("size", [1.0, 1e-9])
def test_a_weight_that_is_held_once_gives_the_gradient_of_its_input_as_exactly(size: float) -> None:
    weight = random(48, 64) * torch.logspace(-2, 1, 48)[:, None]
    grad = random(128, 48) * size  # gradients are tiny, and the weight's factors make them smaller
    expected = Matrix(weight).backward(grad)
    found = SmallFp8Matrix(weight).transposed().backward(grad)
    assert (found - expected).norm() < 0.05 * expected.norm()
    x = random(128, 64)
    assert torch.equal(SmallFp8Matrix(weight).forward(x), Fp8Matrix(weight).forward(x))


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_the_gradient_through_an_adapter_is_part_of_the_same_product(size: float) -> None:
    """Of whatever size A is beside the weight's inputs, and what passes it beside the gradients of outputs."""
    weight, a = random(48, 64) * torch.logspace(-2, 1, 64), random(16, 64) * size
    grads = torch.cat((random(128, 48), 10 * random(128, 16) / size), -1)
    expected = grads[:, :48] @ weight + grads[:, 48:] @ a
    wide = weight.new_empty(64, 64)
    wide[:48] = weight
    for matrix, tolerance in ((Matrix(wide[:48], wide), 1e-6), (Matrix(weight), 1e-6), (Fp8Matrix(weight, 16), 0.05)):
        found = matrix.backward_with_adapter(grads.clone(), a)
        assert (found - expected).norm() < tolerance * expected.norm()
        assert torch.equal(matrix.backward_with_adapter(grads.clone(), a), found)  # A lies there already
        changed = matrix.backward_with_adapter(grads.clone(), 2 * a)
        assert (changed - found - grads[:, 48:] @ a).norm() < tolerance * changed.norm()


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-5, 1e-3])
def test_an_input_that_outputs_hardly_depend_on_leaves_the_gradients_of_the_others_exact(size: float) -> None:
    weight, a = random(48, 64), random(16, 64)
    weight[:, 5] *= size
    grads = torch.cat((random(128, 48), random(128, 16)), -1)
    expected = grads[:, :48] @ weight + grads[:, 48:] @ a
    found = Fp8Matrix(weight, 16).backward_with_adapter(grads.clone(), a)
    assert ((found - expected).norm(dim=0) < 0.05 * expected.norm(dim=0)).all()


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))
