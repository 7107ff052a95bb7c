"""AdamW with split master weights: exact halves, rounding by chance, and the same training as torch.optim.AdamW."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from finetuning.training.split_adamw import GROUP, SplitAdamW, hash_places, join_halves, split_halves

pytestmark = pytest.mark.unit

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.1}


def test_two_halves_are_the_whole_float32_number() -> None:
    master = torch.randn(10_000) * torch.logspace(-30, 30, 10_000)
    master[:3] = torch.tensor([0.0, -0.0, 1 + 2**-9])
    high, rest = split_halves(master)
    assert high.dtype == torch.bfloat16 and rest.dtype == torch.int16
    assert torch.equal(join_halves(high, rest).view(torch.int32), master.view(torch.int32))
    assert (high.float() - master).abs().max() <= ((master.to(torch.bfloat16).float() - master).abs()).max()


def test_steps_smaller_than_half_a_bfloat16_unit_add_up() -> None:
    parameter = nn.Parameter(torch.ones(4, GROUP, dtype=torch.bfloat16))
    optimizer = SplitAdamW([parameter], **SETTINGS | {"lr": 1e-4, "weight_decay": 0.0}, eight_bit=False)
    for _ in range(100):  # 1e-4 is a fortieth of the distance to bfloat16's next number below 1
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    master = join_halves(parameter.detach(), optimizer.state[parameter]["rest"])
    torch.testing.assert_close(master, torch.full_like(master, 1 - 100e-4), rtol=1e-4, atol=0)
    assert (parameter < 1).all()


@pytest.mark.parametrize(("eight_bit", "tolerance"), [(False, 0.01), (True, 0.06)])
def test_weights_follow_those_of_adamw_in_float32(eight_bit: bool, tolerance: float) -> None:
    """Distance from the exact path after 60 steps, relative to its length: the noise of rounded moments averages out."""
    expected, found = follow(torch.optim.AdamW), follow(lambda p, **s: SplitAdamW(p, **s, eight_bit=eight_bit))
    start = target(0)
    assert (found - expected).norm() < tolerance * (expected - start).norm()
    assert not torch.equal(found, expected)


def test_rounding_by_chance_is_right_on_average() -> None:
    parameter = nn.Parameter(torch.zeros(1000, GROUP, dtype=torch.bfloat16))
    for eight_bit in (False, True):
        optimizer = SplitAdamW([parameter], **SETTINGS | {"betas": (0.0, 0.999)}, eight_bit=eight_bit)
        gradient = torch.rand(GROUP).expand(1000, GROUP).to(torch.bfloat16)
        parameter.grad = gradient.clone()
        optimizer.step()
        state = optimizer.state[parameter]
        first = state["exp_avg"].float() * (state["exp_avg_factor"].float() if eight_bit else 1.0)
        # 1 000 draws of one step of at most 1/8 (1/256) each: three standard errors of the mean
        step = 1 / 8 if eight_bit else 1 / 256
        error = (first.mean(0) - gradient[0].float()).abs()
        assert (error < 3 * step / 2 / 1000**0.5 * gradient[0].float() + 1e-4).float().mean() > 0.97


def test_a_second_moment_of_small_changes_does_not_stand_still() -> None:
    """beta2 0.999: each step changes it by a thousandth, half of what rounding to nearest would keep."""
    parameter = nn.Parameter(torch.zeros(64, GROUP, dtype=torch.bfloat16))
    optimizer = SplitAdamW([parameter], **SETTINGS | {"betas": (0.9, 0.999)}, eight_bit=False)
    for size in (1.0, *[0.0] * 300):
        parameter.grad = torch.full_like(parameter, size)
        optimizer.step()
    found = optimizer.state[parameter]["exp_avg_sq"].float().mean()
    assert found == pytest.approx(1e-3 * 0.999**300, rel=0.02)


def test_the_same_steps_give_the_same_bits_again() -> None:
    first, second = (follow(lambda p, **s: SplitAdamW(p, **s, eight_bit=True)) for _ in range(2))
    assert torch.equal(first, second)


def test_vectors_and_odd_shapes_keep_bfloat16_moments() -> None:
    parameters = [nn.Parameter(torch.ones(shape, dtype=torch.bfloat16)) for shape in ((GROUP,), (3, GROUP + 1), (2, GROUP))]
    optimizer = SplitAdamW(parameters, **SETTINGS, eight_bit=True)
    kinds = [optimizer.new_state(parameter)["exp_avg"].dtype for parameter in parameters]
    assert kinds == [torch.bfloat16, torch.bfloat16, torch.float8_e4m3fn]


def test_the_hash_uses_all_its_bits_evenly() -> None:
    bits = hash_places(1 << 14, 7, torch.device("cpu"))
    for place in range(32):
        share = ((bits >> place) & 1).double().mean()
        assert abs(float(share) - 0.5) < 4 * 0.5 / (1 << 14) ** 0.5  # four standard errors


def target(seed: int) -> Tensor:
    return torch.randn(8, GROUP, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16).float()


def follow(make: Callable[..., torch.optim.Optimizer]) -> Tensor:
    """Weights after 60 steps towards a target, with noisy gradients."""
    exact = make is torch.optim.AdamW
    parameter = nn.Parameter(target(0) if exact else target(0).to(torch.bfloat16))
    optimizer = make([parameter], **SETTINGS)
    generator = torch.Generator().manual_seed(3)
    for _ in range(60):
        noise = torch.randn(8, GROUP, generator=generator)
        weights = parameter.detach().float()
        parameter.grad = (weights - target(1) + noise).to(parameter.dtype)
        optimizer.step()
    if exact:
        return parameter.detach()
    return join_halves(parameter.detach(), optimizer.state[parameter]["rest"])
