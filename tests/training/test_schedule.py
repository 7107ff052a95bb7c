"""The learning rate of each step, also beside transformers' schedules."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from finetuning.training.schedule import learning_rate_at

pytestmark = pytest.mark.unit


def rates(max_steps: int, **settings: float | str) -> list[float]:
    values: dict[str, Any] = {"peak": 1.0, "minimum": 0.0, "warmup_steps": 0} | settings
    return [learning_rate_at(step, max_steps=max_steps, **values) for step in range(max_steps)]


def test_two_steps_of_warm_up_and_half_a_cosine() -> None:
    assert rates(6, warmup_steps=2) == pytest.approx([0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447], abs=1e-6)


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert rates(4) == pytest.approx([1.0, 0.853553, 0.5, 0.146447], abs=1e-6)


def test_the_cosine_goes_towards_the_minimum_and_stays_there() -> None:
    assert rates(4, peak=3.0, minimum=1.0) == pytest.approx([3.0, 2.707107, 2.0, 1.292893], abs=1e-6)
    assert learning_rate_at(4, peak=3.0, minimum=1.0, warmup_steps=0, max_steps=4) == 1.0
    assert learning_rate_at(9, peak=3.0, minimum=1.0, warmup_steps=0, max_steps=4) == 1.0


def test_a_run_that_is_all_warm_up_ends_at_the_peak() -> None:
    assert rates(3, warmup_steps=3) == pytest.approx([1 / 3, 2 / 3, 1.0])


def of_transformers(make: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler], steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = make(optimizer)
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        ("cosine", lambda o: transformers.get_cosine_schedule_with_warmup(o, 4, 24)),
        ("linear", lambda o: transformers.get_linear_schedule_with_warmup(o, 4, 24)),
        ("constant", lambda o: transformers.get_constant_schedule_with_warmup(o, 4)),
        ("wsd", lambda o: transformers.get_wsd_schedule(o, 4, 4, num_stable_steps=16, decay_type="linear")),
    ],
)
def test_schedules_are_those_of_transformers_whose_warm_up_begins_one_step_earlier(
    schedule: str, make: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]
) -> None:
    ours = rates(24, peak=2.0, warmup_steps=4, schedule=schedule)
    theirs = of_transformers(make, 24)
    assert ours[:3] == pytest.approx(theirs[1:4])
    assert ours[4:] == pytest.approx(theirs[4:])


@pytest.mark.parametrize("schedule", ["linear", "wsd"])
def test_every_schedule_that_falls_ends_at_the_minimum(schedule: str) -> None:
    assert learning_rate_at(20, peak=1.0, minimum=0.1, warmup_steps=0, max_steps=20, schedule=schedule) == pytest.approx(0.1)
