"""What must hold before weights move, on every rank. (The numbers: tests/parallel/test_same_as_one_process.py.)"""

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from finetuning.config.strategy import PackPlan, Strategy
from finetuning.data.batches.global_batch import make_step_batch
from finetuning.data.tokens.tokenized import open_split
from finetuning.errors import RunError
from finetuning.parallel.parallelize import ParallelLlama
from finetuning.parallel.weights import local_part
from finetuning.training.optimizer import build_optimizer, gradient_scaler, optimizer_state
from finetuning.training.step import StepResult, train_step
from tests.models import build, whole_parameters
from tests.processes import run_processes
from tests.references import random_split

pytestmark = pytest.mark.dist

PLAN = PackPlan(capacity=64, granularity=8, attention_cost=0.01)


def step_with(model_folder: Path, split_folder: Path, broken_rank: int | None, stopped_rank: int | None) -> dict[str, Any]:
    """One step in which one rank's embedding row is infinite, or one rank is asked to stop."""
    model = build(model_folder)
    if dist.get_rank() == broken_rank:
        with torch.no_grad():
            model.weights()["model.embed_tokens.weight"].to_local().fill_(float("inf"))
    before = whole_parameters(model)
    split = open_split(split_folder)
    batch = make_step_batch(split, np.arange(len(split)), 4, dist.get_rank(), dist.get_world_size(), PLAN)
    updates: list[int] = []
    try:
        stop = dist.get_rank() == stopped_rank
        result = train_step(model, batch, lambda: updates.append(1), scale=lambda factor: None, clip_grad=1.0, stop=stop)
    except RunError as error:
        after = whole_parameters(model)
        unchanged = all(torch.equal(before[name], after[name]) for name in before)
        return {"error": str(error), "updates": len(updates), "unchanged": unchanged}
    return {"result": tuple(result), "updates": len(updates)}


def step_after_a_good_one(model_folder: Path, split_folder: Path, states: str, lora: bool) -> dict[str, Any]:
    """Two steps with a real optimizer, the second with an embedding that is infinite on the last rank."""
    split_master = states != "fp32"
    strategy = Strategy(
        optimizer_states="bf16" if split_master else "fp32",
        compute_dtype="bfloat16" if split_master else "float32",
        lora_rank=4 if lora else None,
        lora_targets=("q_proj", "down_proj"),
    )
    model = build(model_folder, strategy)
    optimizer = build_optimizer(
        model, learning_rate=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=False, states=states
    )
    split = open_split(split_folder)
    batch = make_step_batch(split, np.arange(len(split)), 4, dist.get_rank(), dist.get_world_size(), PLAN)

    def state() -> dict[str, Tensor]:
        trained = {name: weight.data for name, weight in model.trained.items()} | optimizer_state(model, optimizer)
        return {name: local_part(value).clone() for name, value in trained.items()}

    def step() -> None:
        train_step(model, batch, optimizer.step, scale=gradient_scaler(optimizer), clip_grad=0.1, stop=False)
        optimizer.zero_grad()

    start = state()
    step()
    if dist.get_rank() == dist.get_world_size() - 1:
        with torch.no_grad():
            local_part(model.weights()["model.embed_tokens.weight"]).fill_(float("inf"))
    before = state()
    with pytest.raises(RunError):
        step()
    after = state()
    return {
        "moved": sum(not torch.equal(start[name], before[name]) for name in start),
        "unchanged": all(torch.equal(before[name], after[name]) for name in before),
    }


def order_of_a_step(model_folder: Path, split_folder: Path) -> tuple[list[str], list[float]]:
    """What the second step calls, in order, and the factor of its gradients; looking through modules is an error there."""
    model = build(model_folder, Strategy(lora_rank=4, lora_targets=("q_proj",)))
    split = open_split(split_folder)
    batch = make_step_batch(split, np.arange(len(split)), 4, dist.get_rank(), dist.get_world_size(), PLAN)
    calls: list[str] = []
    factors: list[float] = []

    def scale(factor: Tensor) -> None:
        calls.append("scale")
        factors.append(factor.item())

    def step() -> StepResult:
        return train_step(
            model,
            batch,
            lambda: calls.append("update"),
            scale=scale,
            clip_grad=1e-3,
            stop=False,
            meanwhile=lambda: calls.append("meanwhile"),
        )

    step()
    model.zero_grad()
    calls.clear()
    with mock.patch.object(ParallelLlama, "named_parameters", side_effect=AssertionError("walks through all modules")):
        result = step()
    return calls, [factors[-1], 1e-3 / (result.grad_norm + 1e-6)]


@pytest.fixture
def split_folder(tmp_path: Path) -> Path:
    random_split(tmp_path / "split", [40, 30, 20, 12], [10, 9, 8, 7])
    return tmp_path / "split"


def test_a_loss_that_is_not_finite_stops_all_ranks_before_the_update(tiny_model: Path, split_folder: Path) -> None:
    for found in run_processes(2, step_with, tiny_model, split_folder, 1, None):
        assert found["error"].startswith("step 5: the loss is nan and the gradient norm nan. The step was not applied")
        assert "Lower --lr" in found["error"]
        assert found["updates"] == 0
        assert found["unchanged"]


@pytest.mark.parametrize("stopped_rank", [None, 0, 1])
def test_a_stop_asked_of_one_rank_is_known_to_all_after_the_step(
    tiny_model: Path, split_folder: Path, stopped_rank: int | None
) -> None:
    ranks = run_processes(2, step_with, tiny_model, split_folder, None, stopped_rank)
    assert [found["updates"] for found in ranks] == [1, 1]
    assert ranks[0]["result"] == ranks[1]["result"]
    assert ranks[0]["result"][2] is (stopped_rank is not None)


@pytest.mark.parametrize(("states", "lora"), [("fp32", False), ("fp32", True), ("bf16", False), ("8bit", False)])
def test_a_loss_that_is_not_finite_leaves_weights_and_states_as_they_are(
    tiny_model: Path, split_folder: Path, states: str, lora: bool
) -> None:
    for found in run_processes(2, step_after_a_good_one, tiny_model, split_folder, states, lora):
        assert found["moved"] > 0
        assert found["unchanged"]


def test_all_work_but_the_update_is_handed_out_before_anything_of_the_step_is_known(
    tiny_model: Path, split_folder: Path
) -> None:
    for calls, (factor, expected) in run_processes(2, order_of_a_step, tiny_model, split_folder):
        assert calls == ["meanwhile", "scale", "update"]
        assert factor == expected
