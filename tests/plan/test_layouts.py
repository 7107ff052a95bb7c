"""All layouts beside each other: which fit, which are faster, what would make a run fit."""

import dataclasses
from typing import Any

import pytest

from finetuning.config.settings import CHOSEN_LATER, RunConfig
from finetuning.plan.known_models import known_model
from finetuning.plan.layouts import (
    Where,
    changes_between,
    choose_degrees,
    faster_layout,
    flags_of,
    other_ways,
    rank,
    smallest_change,
)
from finetuning.plan.rates import rates_of
from finetuning.plan.step_time import Place
from finetuning.plan.workload import Workload

pytestmark = pytest.mark.unit

WORK = Workload(samples=1024, tokens=260, squared=514, target_share=0.8)


def where(kind: str | None = "h200", gib: float | None = None, model: str = "Llama-3.1-8B") -> Where:
    rates = rates_of(kind) if kind else None
    shape = known_model(f"meta-llama/{model}")
    assert shape is not None
    return Where(shape, gib or (rates.memory_gib if rates else 80.0), rates, WORK, Place(8, flash_4=True))


def given(**changed: Any) -> RunConfig:
    return RunConfig(hf_model_id="m", dataset_path="d", **({"num_gpus": 8, "global_batch_size": 1024} | changed))


def test_every_layout_of_eight_gpus_is_ranked_and_breaks_no_rule() -> None:
    found = rank(where(), given())
    layouts = [str(planned.strategy.degrees) for planned in found]
    assert len(set(layouts)) == len(layouts) == 20  # degrees 1, 2, 4 and 8 on three axes, whose product is 8 at most
    speeds = [planned.tokens_per_gpu for planned in found]
    assert speeds == sorted(speeds, reverse=True)
    assert layouts[0] == "DP 8"


def test_layouts_that_do_not_fit_come_last() -> None:
    found = rank(where("a100-40"), given())
    assert [planned.fits for planned in found] == sorted((planned.fits for planned in found), reverse=True)
    assert {planned.fits for planned in found} == {True, False}


def test_the_specification_s_tensor_parallel_is_told_what_would_be_faster() -> None:
    place, config = where(), given(num_gpus=2, tensor_model_parallel_size=2)
    faster = faster_layout(place, place.plan_chosen(config))
    assert faster is not None
    assert flags_of(changes_between(config, faster.config)) == "-T 1"
    best = given(num_gpus=2)
    assert faster_layout(place, place.plan_chosen(best)) is None


def test_where_no_time_is_known_nothing_is_said_to_be_faster() -> None:
    place = where(None)
    assert faster_layout(place, place.plan_chosen(given(tensor_model_parallel_size=2))) is None


def test_what_does_not_fit_is_told_the_changes_that_do() -> None:
    place, config = where("4090"), given(num_gpus=1)
    assert not place.plan_chosen(config).fits
    ways = [flags_of(changes) for changes, _ in smallest_change(place, config)]
    assert ways == ["--peft lora --fp8 --least_memory", "--peft lora --least_memory"]
    assert all(planned.fits for _, planned in smallest_change(place, config))


def test_more_gpus_or_shorter_samples_are_said_where_nothing_else_makes_it_fit() -> None:
    place, config = where("4090", model="Llama-3.1-70B"), given(num_gpus=1, peft="lora", least_memory=True, fp8=True)
    changes = [changes for changes, _ in smallest_change(place, config)]
    assert not changes, "a 70B of 72 GB fits on no number of such cards while each holds all of it"
    full = given(num_gpus=1)
    found = smallest_change(where("b200", model="Llama-3.1-70B"), full)
    assert any("peft" in changes for changes, _ in found)


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({"tensor_model_parallel_size": 2, "fp8": True}, "-T 2 --fp8"),
        ({"row_length": 4096}, "--row_length 4096"),
    ],
)
def test_changes_are_said_as_they_are_typed(changes: dict[str, object], flags: str) -> None:
    config = given()
    changed = dataclasses.replace(config, **changes)  # type: ignore[arg-type]
    assert flags_of(changes_between(config, changed)) == flags


def test_degrees_left_to_the_command_are_those_of_the_fastest_layout_that_fits() -> None:
    left = given(tensor_model_parallel_size=CHOSEN_LATER, pipeline_model_parallel_size=CHOSEN_LATER)
    assert choose_degrees(where(), left) == given()
    large = where("a100-80", model="Llama-3.1-70B")
    chosen = choose_degrees(large, dataclasses.replace(left, global_batch_size=64))
    assert (chosen.tensor_model_parallel_size, chosen.pipeline_model_parallel_size) == (8, 1)
    assert large.plan_chosen(chosen).fits


def test_numbers_that_were_given_stay_beside_a_degree_that_was_left() -> None:
    chosen = choose_degrees(where(), given(tensor_model_parallel_size=2, context_parallel_size=CHOSEN_LATER))
    assert (chosen.tensor_model_parallel_size, chosen.context_parallel_size) == (2, 1)


def test_without_a_known_time_the_least_spread_layout_that_fits_is_taken() -> None:
    left = given(tensor_model_parallel_size=CHOSEN_LATER)
    assert choose_degrees(where(None, 80.0), left).tensor_model_parallel_size == 1


def test_where_no_degree_will_do_the_problem_is_that_of_one() -> None:
    impossible = given(pipeline_model_parallel_size=5)
    left = dataclasses.replace(impossible, tensor_model_parallel_size=CHOSEN_LATER)
    assert choose_degrees(where(), left) == impossible


def test_the_asked_layout_is_planned_in_other_ways_one_at_a_time() -> None:
    found = {flags_of(changes): planned for changes, planned in other_ways(where(), given(num_gpus=1, peft="lora"))}
    assert {"--fp8", "--least_memory", "--row_length 8192", "--activation_checkpointing full"} <= found.keys()
    assert "--activation_checkpointing none" not in found, "that is what auto is already"
    assert found["--fp8"].tokens_per_gpu > found["--row_length 8192"].tokens_per_gpu > found["--least_memory"].tokens_per_gpu
    assert all(str(planned.strategy.degrees) == "DP 1" for planned in found.values())
