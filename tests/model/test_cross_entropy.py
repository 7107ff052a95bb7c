"""The chunked cross-entropy against F.cross_entropy on whole logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from finetuning.model.cross_entropy import (
    CHUNK_TOKENS,
    IGNORED_LABEL,
    TRAINED_CHUNK_TOKENS,
    count_targets,
    linear_cross_entropy,
    linear_cross_entropy_sum,
)
from finetuning.model.kernels.ops import quantize_columns
from tests.closeness import ROUNDING, assert_near

pytestmark = pytest.mark.unit

HIDDEN, VOCABULARY = 16, 61
LENGTHS = {
    "one position": 1,
    "less than a chunk": 100,
    "exactly one chunk": CHUNK_TOKENS,
    "one position more than a chunk": CHUNK_TOKENS + 1,
    "three chunks": 2 * CHUNK_TOKENS + 904,
}
every_length = pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS.keys())


@every_length
def test_the_sum_equals_that_of_whole_logits(length: int) -> None:
    hidden, weight, labels = random_inputs(length)
    assert linear_cross_entropy_sum(hidden, weight, labels).item() == pytest.approx(
        reference(hidden.double(), weight.double(), labels).item(), rel=ROUNDING
    )


@every_length
def test_the_gradients_equal_those_of_whole_logits(length: int) -> None:
    hidden, weight, labels = random_inputs(length)
    labels[1::3] = IGNORED_LABEL
    linear_cross_entropy_sum(hidden, weight, labels).backward()
    expected_hidden, expected_weight = reference_gradients(hidden, weight, labels)
    assert_near(hidden.grad, expected_hidden)
    assert_near(weight.grad, expected_weight)


@pytest.mark.parametrize("scale", [1 / 3, -2.0, 1e-6, 1e4])
def test_the_gradients_carry_the_factor_that_the_loss_is_multiplied_by(scale: float) -> None:
    hidden, weight, labels = random_inputs(100)
    (linear_cross_entropy_sum(hidden, weight, labels) * scale).backward()
    expected_hidden, expected_weight = reference_gradients(hidden, weight, labels)
    assert_near(hidden.grad / scale, expected_hidden)
    assert_near(weight.grad / scale, expected_weight)


@pytest.mark.parametrize("ignored", [slice(0, 0), slice(1, None, 3), slice(None)], ids=["none", "a third", "all"])
def test_a_known_number_of_trained_positions_changes_nothing(ignored: slice) -> None:
    hidden, weight, labels = random_inputs(100)
    labels[ignored] = IGNORED_LABEL
    counted = linear_cross_entropy_sum(hidden, weight, labels)
    known = linear_cross_entropy_sum(hidden, weight, labels, num_targets=count_targets(labels))
    assert torch.equal(counted, known)
    gradients = (torch.autograd.grad(total, (hidden, weight)) for total in (counted, known))
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_without_a_trained_position_sum_and_gradients_are_zero() -> None:
    hidden, weight, labels = random_inputs(10)
    total = linear_cross_entropy_sum(hidden, weight, labels.fill_(IGNORED_LABEL))
    total.backward()
    assert total.item() == 0
    assert hidden.grad.count_nonzero() == 0
    assert weight.grad.count_nonzero() == 0


def test_positions_that_are_not_trained_get_no_gradient_and_do_not_reach_the_head() -> None:
    hidden, weight, labels = random_inputs(10)
    labels[[2, 7]] = IGNORED_LABEL
    with torch.no_grad():
        hidden[[2, 7]] = torch.nan
    total = linear_cross_entropy_sum(hidden, weight, labels)
    total.backward()
    assert total.isfinite()
    assert weight.grad.isfinite().all()
    assert hidden.grad[[2, 7]].count_nonzero() == 0


def test_a_frozen_head_still_passes_the_gradient_on() -> None:
    hidden, weight, labels = random_inputs(10)
    weight.requires_grad_(False)
    linear_cross_entropy_sum(hidden, weight, labels).backward()
    assert weight.grad is None
    assert_near(hidden.grad, reference_gradients(hidden, weight, labels)[0])


def test_a_head_alone_can_be_trained() -> None:
    hidden, weight, labels = random_inputs(10)
    hidden.requires_grad_(False)
    linear_cross_entropy_sum(hidden, weight, labels).backward()
    assert hidden.grad is None
    assert_near(weight.grad, reference_gradients(hidden, weight, labels)[1])


def test_without_gradients_the_same_sum_comes_out() -> None:
    hidden, weight, labels = random_inputs(100)
    with torch.no_grad():
        alone = linear_cross_entropy_sum(hidden, weight, labels)
    assert not alone.requires_grad
    assert alone == linear_cross_entropy_sum(hidden, weight, labels)


def test_huge_logits_give_a_finite_sum_and_finite_gradients() -> None:
    hidden, weight, labels = random_inputs(10)
    with torch.no_grad():
        hidden *= 1e4
    total = linear_cross_entropy_sum(hidden, weight, labels)
    total.backward()
    assert total.isfinite()
    assert hidden.grad.isfinite().all()
    assert weight.grad.isfinite().all()


def test_bfloat16_inputs_give_a_float32_sum_and_bfloat16_gradients() -> None:
    hidden, weight, labels = (x.bfloat16().detach() if x.is_floating_point() else x for x in random_inputs(3000))
    hidden.requires_grad_()
    weight.requires_grad_()
    total = linear_cross_entropy_sum(hidden, weight, labels)
    total.backward()
    assert total.dtype == torch.float32
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16
    expected = reference(hidden.double(), weight.double(), labels)
    # bfloat16 keeps 8 bits: logits are off by up to 0.4 %, in either direction.
    assert total.item() == pytest.approx(expected.item(), rel=1e-3)
    for found, wanted in zip((hidden.grad, weight.grad), reference_gradients(hidden, weight, labels), strict=True):
        assert (found.double() - wanted).norm() < 0.01 * wanted.norm()


def random_inputs(length: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(length, HIDDEN, generator=generator).requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator).mul_(HIDDEN**-0.5).requires_grad_()
    return hidden, weight, torch.randint(0, VOCABULARY, (length,), generator=generator)


def reference(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ weight.t(), labels, ignore_index=IGNORED_LABEL, reduction="sum")


def reference_gradients(hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    hidden, weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    reference(hidden, weight, labels).backward()
    return hidden.grad, weight.grad


def test_with_a_head_in_fp8_the_loss_is_the_same_and_the_gradient_differs_by_its_rounding() -> None:
    hidden, weight, labels = random_inputs(CHUNK_TOKENS + 100)
    labels[1::3] = IGNORED_LABEL
    hidden.requires_grad_()
    plain = linear_cross_entropy_sum(hidden, weight.detach(), labels)
    (expected,) = torch.autograd.grad(plain, hidden)
    in_fp8 = linear_cross_entropy_sum(hidden, weight.detach(), labels, quantize_columns(weight.detach()))
    (found,) = torch.autograd.grad(in_fp8, hidden)
    assert in_fp8.item() == pytest.approx(plain.item(), rel=ROUNDING)
    # e4m3 is off by at most 1/16 and by 1/40 on average, and the errors of the vocabulary partly cancel.
    assert 1e-3 * expected.norm() < (found - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("length", [100, CHUNK_TOKENS + 1, TRAINED_CHUNK_TOKENS + 1])
@pytest.mark.parametrize("trains_head", [True, False])
def test_weights_multiply_the_loss_of_each_position_and_its_gradient(length: int, trains_head: bool) -> None:
    hidden, weight, labels = random_inputs(length)
    labels[1::3] = IGNORED_LABEL
    weights = torch.linspace(0.1, 1, length)
    total, losses = linear_cross_entropy(
        hidden, weight if trains_head else weight.detach(), labels, weights, None, CHUNK_TOKENS, None
    )
    (total / 7).backward()
    trained = labels != IGNORED_LABEL
    wide_hidden, wide_weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    each = F.cross_entropy(wide_hidden[trained] @ wide_weight.t(), labels[trained], reduction="none") * weights[trained]
    (each.sum() / 7).backward()
    assert_near(losses, each)
    assert total.item() == pytest.approx(each.sum().item(), rel=ROUNDING)
    assert_near(hidden.grad, wide_hidden.grad)
    if trains_head:
        assert_near(weight.grad, wide_weight.grad)
