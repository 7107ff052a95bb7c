"""Loss and perplexity of a split against a plain loop."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.tensor import DTensor

from finetuning.config.strategy import PackPlan
from finetuning.data.tokens.tokenized import open_split
from finetuning.training import evaluate as module
from finetuning.training.evaluate import Evaluation, evaluate, standard_error, together
from tests.closeness import ROUNDING
from tests.models import build
from tests.processes import run_processes
from tests.references import load_reference, random_split, summed_loss

LENGTHS, ANSWERS = [40, 33, 30, 21, 18, 14, 9], [2, 30, 1, 12, 17, 3, 8]
PLAN = PackPlan(capacity=48, granularity=8, attention_cost=0.01)


def evaluation(model_folder: Path, split_folder: Path, samples_at_once: int) -> Evaluation:
    module.SAMPLES_AT_ONCE = samples_at_once
    return evaluate(build(model_folder), open_split(split_folder), PLAN)


@pytest.mark.dist
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("samples_at_once", [256, 3], ids=["all at once", "in parts"])
def test_every_layout_gives_the_loss_of_a_plain_loop(
    tiny_model: Path, tmp_path: Path, world_size: int, samples_at_once: int
) -> None:
    random_split(tmp_path / "split", LENGTHS, ANSWERS)
    found = run_processes(world_size, evaluation, tiny_model, tmp_path / "split", samples_at_once)
    assert all(other == found[0] for other in found)
    split, model = open_split(tmp_path / "split"), load_reference(tiny_model)
    with torch.no_grad():
        expected = sum(summed_loss(model, split, sample).item() for sample in range(len(LENGTHS))) / sum(ANSWERS)
        sums = [summed_loss(model, split, sample).item() for sample in range(len(LENGTHS))]
    assert found[0].loss == pytest.approx(expected, rel=ROUNDING)
    assert found[0].error == pytest.approx(standard_error(sums, ANSWERS), rel=1e-3)
    assert (found[0].samples, found[0].answer_tokens) == (len(LENGTHS), sum(ANSWERS))


def kinds_of_parameters(model_folder: Path, split_folder: Path) -> list[bool]:
    model = build(model_folder)
    evaluate(model, open_split(split_folder), PLAN)
    return [isinstance(parameter, DTensor) for parameter in model.parameters()]


@pytest.mark.dist
def test_afterwards_the_model_shows_its_shards_again(tiny_tied_model: Path, tmp_path: Path) -> None:
    """A gathered copy in their place would go into the next checkpoint, rounded and without moments."""
    random_split(tmp_path / "split", LENGTHS, ANSWERS)
    assert all(run_processes(2, kinds_of_parameters, tiny_tied_model, tmp_path / "split")[0])


@pytest.mark.unit
def test_perplexity_is_the_exponential_of_the_loss_and_stays_a_number() -> None:
    assert Evaluation(math.log(20.0), 1, 1).perplexity == pytest.approx(20.0)
    assert math.isfinite(Evaluation(1e6, 1, 1).perplexity)


@pytest.mark.unit
def test_the_standard_error_is_what_means_of_other_draws_of_samples_differ_by() -> None:
    generator = np.random.default_rng(5)
    tokens = generator.integers(5, 40, (2000, 32))
    sums = tokens * generator.normal(1.0, 0.5, tokens.shape)
    means = sums.sum(1) / tokens.sum(1)
    errors = [standard_error(list(part), list(counts)) for part, counts in zip(sums, tokens, strict=True)]
    assert np.mean(errors) == pytest.approx(means.std(), rel=0.05)
    assert standard_error([8.0, 12.0], [10, 10]) == pytest.approx(0.2) and standard_error([8.0], [10]) is None


@pytest.mark.unit
def test_a_mixture_counts_each_source_by_what_a_sample_of_it_has_of_the_source() -> None:
    found = [Evaluation(1.0, 4, 40, 0.3), Evaluation(2.0, 1, 10, None)]
    whole = together(["a", "b"], found, [3 * 10, 1 * 10])
    assert (whole.loss, whole.samples, whole.answer_tokens) == (1.25, 5, 50)
    assert whole.error == pytest.approx(0.75 * 0.3), "that of a single sample is not known"
    assert whole.as_json()["sources"]["b"]["loss"] == 2.0
    assert together(["b"], found[1:], [1]).error is None
