"""Fractions of weight in the loss, and the loss of each source of a mixture, in every layout: against a plain loop."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from finetuning.config.degrees import Degrees
from finetuning.config.strategy import FUSED, Strategy
from finetuning.data.batches.global_batch import make_step_batch
from finetuning.data.tokens.tokenized import open_split, write_mixed_split, write_split
from finetuning.parallel.parallelize import ParallelLlama
from finetuning.training.evaluate import evaluate
from finetuning.training.step import train_step
from tests.closeness import ROUNDING, assert_all_near
from tests.models import build
from tests.parallel.test_other_layouts import row_plan
from tests.processes import run_processes
from tests.references import load_reference

pytestmark = pytest.mark.dist

# Of each source: tokens of a sample, and the weights of its last tokens.
SAMPLES: dict[str, list[tuple[int, list[float]]]] = {
    "weighted": [(40, [0.5, 0.5]), (33, [0.25] * 20), (18, [1.0] * 9), (7, [0.1])],
    "plain": [(30, [1.0]), (21, [1.0] * 12), (14, [1.0] * 3), (9, [1.0] * 8)],
}


def tokens_of(source: str, sample: int) -> list[int]:
    length = SAMPLES[source][sample][0]
    return np.random.default_rng([len(source), sample]).integers(0, 512, length).tolist()


def write_mixture(folder: Path) -> Path:
    for source, samples in SAMPLES.items():
        rows = [
            (tokens_of(source, number), [0.0] * (length - len(weights)) + weights, number + 1)
            for number, (length, weights) in enumerate(samples)
        ]
        write_split(folder / source / "training", rows)
    write_mixed_split(folder / "mixed" / "training", {name: (f"../../{name}/training", 1) for name in SAMPLES}, 8)
    return folder / "mixed" / "training"


def step_of(model_folder: Path, strategy: Strategy, degrees: Degrees, split_folder: Path) -> dict[str, Any]:
    model = build(model_folder, strategy, degrees=degrees)
    split, plan = open_split(split_folder), row_plan(model_folder, degrees)
    batch = make_step_batch(split, np.arange(len(split)), 0, model.layout.data_rank, degrees.data_parallel, plan)
    found: dict[str, Any] = {}

    def keep() -> None:
        found["gradients"] = whole_gradients(model)

    result = train_step(model, batch, keep, scale=lambda factor: None, clip_grad=0.0, stop=False)
    model.release()
    evaluated = evaluate(model, split, plan)
    assert evaluated is not None
    by_source = {name: each.loss for name, each in evaluated.by_source.items()}
    return found | {"loss": result.loss, "sources": result.source_losses, "evaluated": by_source, "norm": result.grad_norm}


def whole_gradients(model: ParallelLlama) -> dict[str, torch.Tensor]:
    from finetuning.parallel.selftest import whole_gradients

    return {name: gradient.clone() for name, gradient in whole_gradients(model) if gradient is not None}


def reference(model_folder: Path) -> tuple[float, dict[str, float], dict[str, torch.Tensor]]:
    """Loss, that of each source, and gradients: one sample at a time, each token's loss times its weight."""
    model = load_reference(model_folder)
    divisor = sum(sum(weights) for samples in SAMPLES.values() for _, weights in samples)
    sums = dict.fromkeys(SAMPLES, 0.0)
    for source, samples in SAMPLES.items():
        for number, (_, weights) in enumerate(samples):
            tokens = torch.tensor(tokens_of(source, number))
            logits = model(input_ids=tokens[None, :-1]).logits[0, -len(weights) :].double()
            losses = F.cross_entropy(logits, tokens[-len(weights) :], reduction="none")
            loss = sum(weight * one for weight, one in zip(weights, losses, strict=True))
            (loss / divisor).backward()
            sums[source] += loss.item()
    each = {source: total / sum(sum(weights) for _, weights in SAMPLES[source]) for source, total in sums.items()}
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return sum(sums.values()) / divisor, each, gradients


@pytest.mark.parametrize(
    ("strategy", "degrees"),
    [
        (Strategy(), Degrees()),
        (Strategy(), Degrees(pp=2, tp=2)),
        (Strategy(), Degrees(dp_shard=2, cp=2)),
        (replace(Strategy(), blocks=FUSED), Degrees(dp_shard=2)),
        (replace(Strategy(), blocks=FUSED), Degrees(pp=2)),
    ],
    ids=["one process", "TP and PP", "CP and DP", "fused, DP", "fused, PP"],
)
def test_weighted_losses_of_sources_and_gradients_are_those_of_a_plain_loop(
    tiny_model: Path, tmp_path: Path, strategy: Strategy, degrees: Degrees
) -> None:
    split = write_mixture(tmp_path)
    loss, by_source, gradients = reference(tiny_model)
    ranks = run_processes(degrees.world_size, step_of, tiny_model, strategy, degrees, split)
    for found in ranks:
        assert found["loss"] == pytest.approx(loss, rel=ROUNDING)
        assert found["sources"] == pytest.approx(list(by_source.values()), rel=ROUNDING)
        assert found["evaluated"] == pytest.approx(by_source, rel=ROUNDING)
    assert_all_near(ranks[0]["gradients"], gradients)
