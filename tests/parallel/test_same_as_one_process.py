"""Loss, gradients and optimizer steps: one process, two, and a plain transformers loop are the same mathematics."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from finetuning.config.settings import LORA_TARGETS
from finetuning.config.strategy import PackPlan, Strategy
from finetuning.data.batches.global_batch import StepBatch, make_step_batch
from finetuning.data.batches.packing import plan_rows
from finetuning.data.tokens.tokenized import open_split
from finetuning.training.optimizer import build_optimizer, gradient_scaler
from finetuning.training.step import train_step
from tests.closeness import ROUNDING, assert_all_near
from tests.models import build, whole
from tests.processes import run_processes
from tests.references import (
    PEFT_PREFIX,
    load_peft_reference,
    load_reference,
    mean_loss_backward,
    random_split,
    write_random_adapter,
)

pytestmark = pytest.mark.dist

# Rows of at most 48 positions: two or three micro-batches a rank, and unequal numbers of answer tokens.
PLAN = PackPlan(capacity=48, granularity=8, attention_cost=0.01)
LENGTHS = [40, 33, 30, 21, 18, 14, 9, 7, 5, 3]
ANSWERS = [2, 30, 1, 12, 17, 3, 8, 1, 4, 1]
# Two long samples fill the rows of rank 0 and rank 1; only one of them has answers.
ONE_SIDED_LENGTHS, ONE_SIDED_ANSWERS = [40, 40], [30, 0]

FULL = Strategy()
LORA = Strategy(lora_rank=3, lora_alpha=12.0, lora_targets=LORA_TARGETS)  # 3 does not divide by 2 or 4 processes


def share(split_folder: Path, samples: np.ndarray, step: int = 0) -> StepBatch:
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return make_step_batch(open_split(split_folder), samples, step, rank, world_size, PLAN)


def loss_and_gradients(model_folder: Path, adapter: Path | None, strategy: Strategy, split_folder: Path) -> dict[str, Any]:
    """On every rank: the mean loss, the gradient norm and all whole gradients of one global batch."""
    model = build(model_folder, strategy, adapter)
    samples = np.arange(len(open_split(split_folder)))
    batch = share(split_folder, samples)
    loss_sum = model.backward(batch)
    own_answers = sum(int((row.labels != -100).sum()) for row in batch.micro_batches)
    torch.distributed.all_reduce(loss_sum)
    gradients = {name: whole(p.grad) for name, p in model.trained.items() if p.grad is not None}
    squared_norm = model.squared_gradient_norm()
    torch.distributed.all_reduce(squared_norm)
    return {
        "loss": loss_sum.item() / batch.answer_tokens,
        "gradients": gradients,
        "norm": squared_norm.item() ** 0.5,
        "own_answers": own_answers,
        "micro_batches": len(batch.micro_batches),
    }


def losses_of_steps(
    model_folder: Path, adapter: Path | None, strategy: Strategy, split_folder: Path, steps: list[list[int]], clip_grad: float
) -> list[float]:
    model = build(model_folder, strategy, adapter)
    optimizer = build_optimizer(model, learning_rate=3e-3, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1, fused=False)
    losses = []
    for step, samples in enumerate(steps):
        batch = share(split_folder, np.array(samples), step)
        losses.append(
            train_step(model, batch, optimizer.step, scale=gradient_scaler(optimizer), clip_grad=clip_grad, stop=False).loss
        )
        optimizer.zero_grad()
    return losses


@pytest.fixture(scope="module")
def split_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("splits") / "uneven"
    random_split(folder, LENGTHS, ANSWERS)
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "random"
    assert LORA.lora_rank is not None
    write_random_adapter(tiny_model, folder, LORA.lora_rank, LORA.lora_alpha, LORA.lora_targets)
    return folder


def reference(model_folder: Path, adapter: Path | None, split_folder: Path) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the plain loop, under our names."""
    model = load_reference(model_folder) if adapter is None else load_peft_reference(model_folder, adapter)
    split = open_split(split_folder)
    loss = mean_loss_backward(model, split, np.arange(len(split)))
    gradients = {
        name.removeprefix(PEFT_PREFIX).replace(".default", ""): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return loss, gradients


def assert_equal(results: list[dict[str, Any]], loss: float, gradients: dict[str, Tensor]) -> None:
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm().item()
    for result in results:
        assert result["loss"] == pytest.approx(loss, rel=ROUNDING)
        assert result["norm"] == pytest.approx(norm, rel=ROUNDING)
        assert_all_near(result["gradients"], gradients)
        # Nothing compares zeros with zeros.
        assert all(gradient.abs().max() > 1e-4 for gradient in result["gradients"].values())


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_all_weights_with_an_untied_head(tiny_model: Path, split_folder: Path, world_size: int, checkpointing: str) -> None:
    strategy = replace(FULL, activation_checkpointing=checkpointing)
    results = run_processes(world_size, loss_and_gradients, tiny_model, None, strategy, split_folder)
    assert results[0]["micro_batches"] >= 2
    assert_equal(results, *reference(tiny_model, None, split_folder))


@pytest.mark.parametrize("world_size", [1, 2])
def test_all_weights_with_a_tied_head(tiny_tied_model: Path, split_folder: Path, world_size: int) -> None:
    results = run_processes(world_size, loss_and_gradients, tiny_tied_model, None, FULL, split_folder)
    assert "lm_head.weight" not in results[0]["gradients"]
    assert_equal(results, *reference(tiny_tied_model, None, split_folder))


@pytest.mark.parametrize("world_size", [1, 2, 4])  # with 4, rank 3 holds nothing of an adapter of rank 3
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_adapters_against_peft(
    tiny_model: Path, adapter: Path, split_folder: Path, world_size: int, checkpointing: str
) -> None:
    strategy = replace(LORA, activation_checkpointing=checkpointing)
    results = run_processes(world_size, loss_and_gradients, tiny_model, adapter, strategy, split_folder)
    assert_equal(results, *reference(tiny_model, adapter, split_folder))


def test_two_ranks_with_unequal_numbers_of_answer_tokens_share_one_mean(tiny_model: Path, split_folder: Path) -> None:
    first, second = run_processes(2, loss_and_gradients, tiny_model, None, FULL, split_folder)
    assert first["own_answers"] != second["own_answers"]
    assert first["own_answers"] + second["own_answers"] == sum(ANSWERS)
    assert first["loss"] == second["loss"]


@pytest.mark.parametrize("strategy", [FULL, LORA], ids=["full", "lora"])
def test_a_rank_whose_rows_hold_no_answer_adds_nothing_and_does_not_hang(
    tiny_model: Path, adapter: Path, tmp_path: Path, strategy: Strategy
) -> None:
    folder = tmp_path / "one-sided"
    random_split(folder, ONE_SIDED_LENGTHS, ONE_SIDED_ANSWERS)
    start = adapter if strategy is LORA else None
    results = run_processes(2, loss_and_gradients, tiny_model, start, strategy, folder)
    assert sorted(result["own_answers"] for result in results) == [0, 30]
    assert_equal(results, *reference(tiny_model, start, folder))


def test_a_rank_without_any_sample_takes_part(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "single"
    random_split(folder, [40], [20])
    assert plan_rows(np.array([39]), 2, PLAN) == [[[0]], [[]]]
    results = run_processes(2, loss_and_gradients, tiny_model, None, FULL, folder)
    assert_equal(results, *reference(tiny_model, None, folder))


# 0.05 is far below every gradient norm here, so each step is clipped.
@pytest.mark.parametrize("clip_grad", [0.0, 0.05], ids=["no clipping", "clipped"])
@pytest.mark.parametrize("strategy", [FULL, LORA], ids=["full", "lora"])
def test_several_optimizer_steps_follow_plain_adamw(
    tiny_model: Path, adapter: Path, split_folder: Path, strategy: Strategy, clip_grad: float
) -> None:
    steps = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 0, 4], [1, 2, 3], [5, 6, 7]]
    start = adapter if strategy is LORA else None
    one = run_processes(1, losses_of_steps, tiny_model, start, strategy, split_folder, steps, clip_grad)[0]
    two = run_processes(2, losses_of_steps, tiny_model, start, strategy, split_folder, steps, clip_grad)
    assert two[0] == two[1]

    model = load_reference(tiny_model) if start is None else load_peft_reference(tiny_model, start)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=3e-3,
        betas=(0.9, 0.98),
        eps=1e-8,
    )
    split, plain = open_split(split_folder), []
    for samples in steps:
        plain.append(mean_loss_backward(model, split, np.array(samples)))
        if clip_grad:
            assert torch.nn.utils.clip_grad_norm_(trained, clip_grad) > 2 * clip_grad
        optimizer.step()
        optimizer.zero_grad()

    assert max(plain) - min(plain) > 0.05  # the weights do move
    # Adam divides by the size of a gradient, so rounding of tiny gradients becomes whole steps of 3e-3.
    assert one == pytest.approx(plain, rel=1e-4)
    assert two[0] == pytest.approx(plain, rel=1e-4)
