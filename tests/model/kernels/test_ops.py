"""The Triton kernels against the formulas of `finetuning.model.kernels.ops` in float32."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from finetuning.model.kernels import ops as kernels
from finetuning.model.kernels.ops import LowRankDelta
from finetuning.training.split_adamw import SplitAdamW, join_halves

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

ROWS, RANK = 300, 16


@pytest.mark.parametrize("size", [96, 4096])
@pytest.mark.parametrize("rank", [8, 16, 64])
def test_an_update_is_added_to_the_sum(size: int, rank: int) -> None:
    agrees(
        lambda x, y, t, b: kernels.add_low_rank_delta(x, y, LowRankDelta(t, b)),
        matrix(ROWS, size),
        matrix(ROWS, size + 64)[:, :size],
        matrix(ROWS, rank),
        matrix(size, rank),
    )


@pytest.mark.parametrize("size", [96, 4096])
def test_rows_are_normalized(size: int) -> None:
    agrees(kernels.norm, matrix(ROWS, size), matrix(1, size)[0], 1e-5)


@pytest.mark.parametrize("size", [96, 4096])
def test_the_gradient_of_the_norm_is_right(size: int) -> None:
    x = matrix(ROWS, size)
    inverse = torch.rsqrt(x.float().pow(2).mean(-1) + 1e-5)
    agrees(kernels.norm_backward, matrix(ROWS, size), x, inverse, matrix(1, size)[0], matrix(ROWS, size))
    beside = matrix(ROWS, size + 16)
    grad, residual, weight = matrix(ROWS, size), beside[:, :size], matrix(1, size)[0]
    expected = kernels.norm_backward(grad, x, inverse, weight, residual)
    out = torch.empty_like(beside)[:, :size]
    kernels.norm_backward(grad, x, inverse, weight, residual, out)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("size", [96, 4096])
@pytest.mark.parametrize("rank", [8, 16, 64])
def test_the_gradients_of_an_update_are_right(size: int, rank: int) -> None:
    grad, dt = matrix(ROWS, size + 16)[:, :size], matrix(ROWS, rank + 8)[:, 8:]
    agrees(
        with_output(lambda grad, t, b, dt, db: kernels.low_rank_delta_backward(grad, LowRankDelta(t, b), dt, db), 2),
        grad,
        matrix(ROWS, rank),
        matrix(size, rank),
        dt,
        matrix(size, rank),
    )


@pytest.mark.parametrize("size", [96, 4096])
def test_the_gradient_of_the_norms_weight_is_right(size: int) -> None:
    x = matrix(ROWS, size)
    agrees(kernels.norm_weight_gradient, matrix(ROWS, size), x, torch.rsqrt(x.float().pow(2).mean(-1) + 1e-5))


@pytest.mark.parametrize("head_dim", [64, 128])
def test_heads_are_turned_and_updated(head_dim: int) -> None:
    size = 8 * head_dim
    cos, sin = tables(head_dim)
    agrees(kernels.apply_rotary_to_heads, matrix(ROWS, size), cos, sin, (4, 2))
    agrees(
        lambda qkv, t, b, cos, sin: kernels.apply_rotary_to_heads(qkv, cos, sin, (4, 2), LowRankDelta(t, b)),
        matrix(ROWS, size),
        matrix(ROWS, 3 * RANK),
        matrix(size, RANK),
        cos,
        sin,
    )


@pytest.mark.parametrize("head_dim", [16, 32, 64, 128])
def test_heads_are_turned_back(head_dim: int) -> None:
    cos, sin = tables(head_dim)
    size = 8 * head_dim
    grads = [matrix(ROWS, count * head_dim).view(ROWS, count, head_dim) for count in (4, 2, 2)]
    agrees(with_output(kernels.apply_rotary_to_heads_backward, 1), *grads, cos, sin, matrix(ROWS, size))

    def with_update(q, k, v, cos, sin, t, b, out, dt, db):  # type: ignore[no-untyped-def]
        kernels.apply_rotary_to_heads_backward(q, k, v, cos, sin, out, LowRankDelta(t, b), (dt, db))

    both = matrix(ROWS, size + 3 * RANK)
    agrees(
        with_output(with_update, 3),
        *grads,
        cos,
        sin,
        matrix(ROWS, 3 * RANK),
        matrix(size, RANK),
        both[:, :size],
        both[:, size:],
        matrix(size, RANK),
    )


@pytest.mark.parametrize("size", [96, 14336])
def test_the_gate_is_updated_and_applied(size: int) -> None:
    both = matrix(ROWS, 2 * size)
    agrees(kernels.gate, *both.chunk(2, -1))
    agrees(
        lambda gate, up, t, b1, b2, a: kernels.gate_with_adapters(gate, up, updates(t, b1, b2), a),
        *both.chunk(2, -1),
        matrix(ROWS, 2 * RANK),
        matrix(size, RANK),
        matrix(size, RANK),
        matrix(RANK, size),
    )


@pytest.mark.parametrize("size", [96, 14336])
def test_the_gradient_of_the_gate_is_right(size: int) -> None:
    both, grads = matrix(ROWS, 2 * size), matrix(ROWS, 2 * size)
    agrees(with_output(kernels.gate_backward, 2), matrix(ROWS, size), *both.chunk(2, -1), *grads.chunk(2, -1))

    def with_adapters(grad, dt, a, t, b1, b2, gate, up, dgate, dup, *gradients):  # type: ignore[no-untyped-def]
        kernels.gate_backward_with_adapters(grad, gate, up, dgate, dup, updates(t, b1, b2), (dt, a), gradients, 2.0)

    agrees(
        with_output(with_adapters, 5),
        matrix(ROWS, size),
        matrix(ROWS, RANK),
        matrix(RANK, size),
        matrix(ROWS, 2 * RANK),
        matrix(size, RANK),
        matrix(size, RANK),
        *both.chunk(2, -1),
        *grads.chunk(2, -1),
        matrix(size, RANK),
        matrix(size, RANK),
        matrix(RANK, size),
    )


@pytest.mark.parametrize("size", [96, 14336])
def test_the_gradients_of_gate_and_up_may_take_their_places(size: int) -> None:
    both, grad, t, through = matrix(ROWS, 2 * size), matrix(ROWS, size), matrix(ROWS, 2 * RANK), matrix(ROWS, RANK)
    b_gate, b_up, a = matrix(size, RANK), matrix(size, RANK), matrix(RANK, size)
    found = []
    for in_place in (False, True):
        gate_up = both.clone()
        grads = gate_up if in_place else torch.empty_like(both)
        sums = tuple(torch.empty_like(x, dtype=torch.float32) for x in (b_gate, b_up, a))
        kernels.gate_backward_with_adapters(
            grad, *gate_up.chunk(2, -1), *grads.chunk(2, -1), updates(t, b_gate, b_up), (through, a), sums, 2.0
        )
        found.append((grads, *sums))
    for separate, in_place_of in zip(*found, strict=True):
        assert torch.equal(separate, in_place_of)


@pytest.mark.parametrize("size", [500, 128256])
def test_losses_and_their_gradient_are_those_of_the_softmax(size: int) -> None:
    labels = torch.randint(0, size, (ROWS,), generator=torch.Generator().manual_seed(3)).cuda()
    agrees(with_output(lambda labels, logits: kernels.cross_entropy(logits, labels), 1), labels, matrix(ROWS, size) * 5)


@pytest.mark.parametrize("size", [96, 14336, 28672])
def test_rows_are_quantized_to_their_largest_value(size: int) -> None:
    x = matrix(ROWS, size)
    x[7] = 0
    quantized, factors = kernels.quantize_rows(x)
    assert (quantized[7].float() == 0).all()
    # e4m3 keeps 3 bits of the fraction: half a step is 1/16 of a value; the smallest normal number is 2^-6
    error = (quantized.float() * factors - x.float()).abs()
    assert (error <= x.float().abs() / 16 + factors * 2**-9).all()
    assert (quantized.float().abs().amax(-1)[factors[:, 0] > 1e-11] == kernels.FP8_MAX).all()


@pytest.mark.parametrize("size", [96, 4096])
def test_a_norm_is_quantized_as_it_is_stored(size: int) -> None:
    x, weight = matrix(ROWS, size), matrix(1, size)[0]
    out, _, quantized = kernels.norm_and_quantize(x, weight, 1e-5)
    same_in_fp8(quantized, kernels.quantize_rows(out))
    agrees(lambda x, weight: kernels.norm_and_quantize(x, weight, 1e-5)[0], x, weight)


@pytest.mark.parametrize("size", [500, 128256])
def test_the_gradient_of_the_softmax_is_quantized_to_its_largest_value(size: int) -> None:
    labels = torch.randint(0, size, (ROWS,), generator=torch.Generator().manual_seed(3)).cuda()
    logits = matrix(ROWS, size) * 5
    logits[7, labels[7]] = 200.0  # a label without doubt: no gradient
    gradient = logits.clone()
    expected = kernels.cross_entropy(gradient, labels)
    losses, (quantized, factors) = kernels.cross_entropy_and_quantize(logits, labels)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    found = quantized.float() * factors
    assert found.isfinite().all()
    # Half a step of fp8, and the bfloat16 of the plain gradient.
    error = (found - gradient.float()).abs()
    assert (error <= gradient.float().abs() * (1 / 16 + 2**-8) + factors * 2**-9 + 1e-6).all()


def same_in_fp8(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(found[0].float(), expected[0].float())
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("size", [96, 14336])
def test_columns_are_quantized_like_the_rows_of_the_transpose(size: int) -> None:
    wide = matrix(ROWS, size + 32)
    x = wide[:, :size]
    x[:, 7] = 0
    found, factors = kernels.quantize_columns(x)
    expected, expected_factors = kernels.quantize_rows(x.t().contiguous())
    assert torch.equal(found.float(), expected.float())
    assert torch.equal(factors, expected_factors)


@pytest.mark.parametrize("size", [96, 28672])
def test_columns_are_multiplied_before_rows_are_quantized(size: int) -> None:
    x, multipliers = matrix(ROWS, size), matrix(1, size)[0].float().abs()
    same_in_fp8(kernels.quantize_rows(x, multipliers), kernels.quantize_rows(x.float() * multipliers))


def test_a_is_quantized_beside_a_matrix() -> None:
    a, factors = matrix(RANK, 4096), matrix(4096, 1).float().abs() + 1e-3
    out, expected = (torch.zeros(4096, 64, dtype=torch.float8_e4m3fn, device=device) for device in ("cuda", "cpu"))
    multipliers = kernels.quantize_beside(a, factors, out[:, 48:])
    expected_multipliers = kernels.quantize_beside(a.cpu(), factors.cpu(), expected[:, 48:])
    torch.testing.assert_close(multipliers.cpu(), expected_multipliers, rtol=1e-6, atol=0)
    same = (out.cpu().float() == expected.float()).float().mean()
    assert same > 0.999  # the two divisions may differ in the last bit
    assert (out[:, :48].float() == 0).all()


@pytest.mark.parametrize("shape", [(96, 300), (6144, 4096)])
def test_a_matrix_in_fp8_is_transposed(shape: tuple[int, int]) -> None:
    x, _ = kernels.quantize_rows(matrix(*shape))
    transposed = kernels.transpose(x)
    assert transposed.is_contiguous()
    assert torch.equal(transposed.float(), x.float().t())


@pytest.mark.parametrize("eight_bit", [False, True])
def test_the_optimizer_gives_the_bits_of_its_formulas(eight_bit: bool) -> None:
    """Both compute in float32; a rounding in between may decide otherwise for a few weights, by one unit of the last place."""
    states = []
    start, gradients = matrix(256, 384), [matrix(256, 384) for _ in range(3)]
    for device in ("cuda", "cpu"):
        parameter = torch.nn.Parameter(start.to(device, copy=True))
        optimizer = SplitAdamW([parameter], lr=1e-3, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1, eight_bit=eight_bit)
        for gradient in gradients:
            parameter.grad = gradient.to(device)
            optimizer.step()
        state = {name: value.cpu().float() for name, value in optimizer.state[parameter].items() if name != "rest"}
        states.append(state | {"master": join_halves(parameter.detach(), optimizer.state[parameter]["rest"]).cpu()})
    for name, expected in states[1].items():
        same = (states[0][name] == expected).float().mean()
        assert same > 0.99 or (states[0][name] - expected).norm() <= 1e-6 * expected.norm(), name


def updates(t: Tensor, b_gate: Tensor, b_up: Tensor) -> tuple[LowRankDelta, LowRankDelta]:
    t_gate, t_up = t.chunk(2, -1)
    return LowRankDelta(t_gate, b_gate), LowRankDelta(t_up, b_up)


def agrees(function: Callable[..., Any], *inputs: Any) -> None:
    """bfloat16 keeps 8 bits: 0.4 % for each rounding, here at most three of them in a row."""
    wide = [x.detach().cpu().double() if isinstance(x, Tensor) and x.is_floating_point() else to_cpu(x) for x in inputs]
    expected, found = function(*wide), function(*inputs)
    for mine, reference in zip(as_tuple(found), as_tuple(expected), strict=True):
        difference = mine.detach().cpu().double() - reference.double()
        assert difference.norm() <= 0.01 * reference.double().norm()
        assert difference.abs().max() <= 0.05 * reference.double().abs().max()


def with_output(function: Callable[..., Any], count: int) -> Callable[..., tuple[Tensor, ...]]:
    """A function that writes into its last `count` arguments, as one that returns them too."""

    def run(*inputs: Any) -> tuple[Tensor, ...]:
        result = function(*inputs)
        return (*as_tuple(result), *inputs[-count:]) if result is not None else tuple(inputs[-count:])

    return run


def as_tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def to_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value


def matrix(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16)


def tables(head_dim: int) -> tuple[Tensor, Tensor]:
    angles = torch.rand(ROWS, head_dim // 2, device="cuda").repeat(1, 2) * 6
    return angles.cos(), angles.sin()
