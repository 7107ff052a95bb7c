"""What must hold before weights move, on every rank. (The numbers: tests/parallel/test_same_as_one_process.py.)"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from finetuning.data.batches import RowPlan, make_step_batch
from finetuning.data.tokenized import open_split
from finetuning.errors import RunError
from finetuning.training.step import train_step
from tests.models import build, whole_parameters
from tests.processes import run_processes
from tests.references import random_split

pytestmark = pytest.mark.dist

PLAN = RowPlan(capacity=64, granularity=8, attention_cost=0.01)


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
