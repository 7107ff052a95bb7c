"""Weight decay and the optimizer's state."""

import pytest
import torch
from torch import nn

from finetuning.training.optimizer import build_optimizer, optimizer_state

pytestmark = pytest.mark.unit


def make_optimizer(model: nn.Module, weight_decay: float = 0.1, learning_rate: float = 0.5) -> torch.optim.AdamW:
    return build_optimizer(
        model, learning_rate=learning_rate, betas=(0.9, 0.98), eps=1e-8, weight_decay=weight_decay, fused=False
    )


def test_matrices_decay_and_vectors_do_not() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    optimizer = make_optimizer(model, weight_decay=0.1, learning_rate=0.5)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # without gradients only the decay moves anything
    for name, parameter in model.named_parameters():
        factor = 1 - 0.5 * 0.1 if parameter.ndim == 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[0].weight.requires_grad_(False)
    optimizer = make_optimizer(model)
    assert [parameter for group in optimizer.param_groups for parameter in group["params"]] == [model[1].weight]
    assert set(optimizer_state(model, optimizer)) == {"1.weight.step", "1.weight.exp_avg", "1.weight.exp_avg_sq"}


def test_the_state_before_the_first_step_can_be_filled_from_a_checkpoint() -> None:
    """Filling the tensors of a fresh optimizer gives the optimizer they came from."""
    first, second = (nn.Linear(3, 2, bias=False) for _ in range(2))
    second.load_state_dict(first.state_dict())
    trained, fresh = make_optimizer(first), make_optimizer(second)

    def step(model: nn.Linear, optimizer: torch.optim.AdamW, scale: float) -> None:
        optimizer.zero_grad()
        (model(torch.tensor([1.0, 2.0, 3.0])) ** 2 * scale).sum().backward()
        optimizer.step()

    step(first, trained, 1.0)
    second.load_state_dict(first.state_dict())
    for name, value in optimizer_state(second, fresh).items():
        value.copy_(optimizer_state(first, trained)[name])
    step(first, trained, 5.0)
    step(second, fresh, 5.0)
    assert torch.equal(first.weight, second.weight)
