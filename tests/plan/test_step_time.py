"""What a step takes: values by hand from rates of 1 a second, and what must make it longer."""

import dataclasses
from typing import Any

import pytest

from finetuning.config.resolve import resolve
from finetuning.config.settings import RunConfig
from finetuning.config.strategy import Strategy
from finetuning.plan.known_models import known_model
from finetuning.plan.rates import Attention, Rates, rates_of
from finetuning.plan.step_time import Place, StepTime, step_time
from finetuning.plan.workload import Packs, Workload, packs_of, workload_of

pytestmark = pytest.mark.unit

LLAMA_8B = known_model("meta-llama/Llama-3.1-8B-Instruct")
H200 = rates_of("h200")
# A GPU whose numbers come out as counts.
COUNTING = Rates("x", "x", 80.0, 700.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, Attention(1.0, 0.0), None, measured=True)
ONE_DOCUMENT = Workload(samples=1, tokens=8192, squared=8192, target_share=0.5)


def strategy_of(**flags: Any) -> Strategy:
    config = RunConfig(hf_model_id="m", dataset_path="d", **({"num_gpus": 1, "row_length": 8192} | flags))
    return resolve(config, LLAMA_8B, 1e6, on_gpu=True)


def time_of(work: Workload = ONE_DOCUMENT, rates: Rates = COUNTING, place: Place = Place(8), **flags: Any) -> StepTime:  # noqa: B008
    found = step_time(strategy_of(**flags), LLAMA_8B, rates, work, place)
    assert found is not None
    return found


BLOCK = 4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336  # weights of the linear layers of one of the 8B's blocks
HEAD = 128256 * 4096


def test_products_are_two_operations_a_weight_and_token_for_each_of_three_passes() -> None:
    assert time_of().products == pytest.approx(3 * 2 * (32 * BLOCK * 8192 + HEAD * 4096))


def test_adapters_need_no_gradients_of_frozen_weights() -> None:
    assert time_of(peft="lora").products == pytest.approx(2 * 2 * (32 * BLOCK * 8192 + HEAD * 4096))


def test_recomputation_costs_what_is_computed_again() -> None:
    kept, selective, full = (time_of(peft="lora", activation_checkpointing=mode) for mode in ("none", "selective", "full"))
    assert selective.products - kept.products == pytest.approx(32 * 8192 * 2 * 2 * 4096 * 14336)  # gate and up
    assert full.products - kept.products == pytest.approx(32 * 8192 * 2 * BLOCK)
    assert full.attention / kept.attention == pytest.approx(4.5 / 3.5)


def test_attention_counts_half_of_the_pairs_of_each_document() -> None:
    # 4 operations for a pair and feature of the queries, half of the pairs; forward, and 2.5 times that backward.
    assert time_of().attention == pytest.approx(32 * 3.5 * 4 * 4096 * 8192**2 / 2)
    shorter = time_of(Workload(samples=2, tokens=4096, squared=4096, target_share=0.5))
    assert shorter.attention == pytest.approx(time_of().attention / 2)


def test_a_pipeline_waits_for_its_slowest_stage_to_fill() -> None:
    work = dataclasses.replace(ONE_DOCUMENT, samples=8)
    found = time_of(work, num_gpus=2, pipeline_model_parallel_size=2)
    one_pack = (found.products + found.attention + found.passes) / 8
    assert found.packs.count == 8
    assert found.waits == pytest.approx(one_pack + found.messages / 8)


def test_between_machines_the_time_is_known_only_with_their_network() -> None:
    flags = {"num_nodes": 2, "num_gpus": 8}
    work = dataclasses.replace(ONE_DOCUMENT, samples=16)
    strategy = strategy_of(**flags)
    assert step_time(strategy, LLAMA_8B, H200, work, Place(8)) is None
    slow, fast = (time_of(work, H200, Place(8, gbit / 8 * 1e9), **flags) for gbit in (100, 800))
    assert slow.messages > fast.messages
    assert slow.products == fast.products


def test_without_a_rate_nothing_is_guessed() -> None:
    assert step_time(strategy_of(), LLAMA_8B, rates_of("gb10"), ONE_DOCUMENT, Place(8)) is None
    fp8 = strategy_of(peft="lora", fp8=True)
    assert step_time(fp8, LLAMA_8B, rates_of("a100-80"), ONE_DOCUMENT, Place(8)) is None
    assert step_time(fp8, LLAMA_8B, rates_of("h100"), ONE_DOCUMENT, Place(8)) is not None


def test_tensor_parallel_is_slower_on_gpus_that_hold_the_model_without_it() -> None:
    work = Workload(samples=256, tokens=260, squared=514, target_share=0.8)
    alone, spread = (time_of(work, H200, num_gpus=2, tensor_model_parallel_size=degree) for degree in (1, 2))
    assert 1.1 < spread.seconds / alone.seconds < 1.3  # measured: 13 597 and 11 540 tokens/s


def test_packs_hold_the_tokens_of_a_rank_evenly() -> None:
    work = Workload(samples=128, tokens=260, squared=514, target_share=0.8)
    assert packs_of(strategy_of(), work) == Packs(5, 6656, pytest.approx(128 * 260 / (5 * 6656)))
    assert packs_of(strategy_of(row_length=24576), work).count == 2
    assert packs_of(strategy_of(num_gpus=2, pipeline_model_parallel_size=2), work).count % 2 == 0


def test_long_samples_fill_a_pack_each() -> None:
    work = Workload(samples=4, tokens=5000, squared=5000, target_share=1.0)
    assert packs_of(strategy_of(), work).count == 4  # two do not fit into 8192


def test_the_work_of_a_step_is_that_of_its_samples() -> None:
    import numpy as np

    found = workload_of(np.array([100, 300]), 200, 8)
    assert found == Workload(8, 200.0, (100**2 + 300**2) / 400, 0.5)
