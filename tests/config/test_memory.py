"""Expected GPU memory: known cases by hand, and what must make it larger or smaller."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from finetuning.config.llama import LlamaConfig, read_llama_config
from finetuning.config.memory import MemoryPlan, low_memory_on_host_gib, plan_memory, trainable_parameters
from finetuning.config.resolve import resolve
from finetuning.config.rope import RopeScaling
from finetuning.config.settings import LORA_TARGETS, RunConfig
from finetuning.model.llama import Llama
from finetuning.model.lora import add_lora

pytestmark = pytest.mark.unit

LLAMA31_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192),
    max_position_embeddings=131072,
    tie_word_embeddings=False,
    dtype="bfloat16",
)


def given(**changed: Any) -> RunConfig:
    return RunConfig(hf_model_id="model", dataset_path="data", **changed)


def test_llama_31_8b_has_the_published_number_of_parameters() -> None:
    assert LLAMA31_8B.num_parameters == 8_030_261_248


def test_adapters_on_all_linears_of_8b_have_the_known_number_of_parameters() -> None:
    strategy = resolve(given(peft="lora", lora_rank=16), LLAMA31_8B, None, on_gpu=True)
    assert trainable_parameters(strategy, LLAMA31_8B) == 41_943_040  # PEFT, r = 16


@pytest.mark.parametrize("targets", [LORA_TARGETS, ("q_proj", "v_proj"), ("down_proj",)], ids=",".join)
def test_the_number_of_trained_parameters_is_that_of_the_model(targets: tuple[str, ...], tiny_model: Path) -> None:
    shape = read_llama_config(tiny_model)
    with torch.device("meta"):
        model = Llama(shape)
        assert trainable_parameters(resolve(given(), shape, None, on_gpu=False), shape) == sum(
            p.numel() for p in model.parameters()
        )
        add_lora(model, 4, 8.0, targets)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    config = given(peft="lora", lora_rank=4, lora_targets=targets)
    assert trainable_parameters(resolve(config, shape, None, on_gpu=False), shape) == trained


def plan_of(bf16_states: bool = False, **changed: Any) -> MemoryPlan:
    """With rows as long as asked for, however much memory there is."""
    if not bf16_states and changed.get("peft") != "lora":
        changed = {"optimizer_states": "fp32", **changed}
    config = given(**changed)
    config = dataclasses.replace(config, row_length=config.micro_batch_size * config.seq_length)
    return plan_memory(resolve(config, LLAMA31_8B, 1e6, on_gpu=True), LLAMA31_8B)


def test_full_states_take_sixteen_bytes_a_parameter_spread_over_the_ranks() -> None:
    one = plan_of(num_gpus=1)
    assert one.states == 16 * LLAMA31_8B.num_parameters  # float32: weight, gradient, two moments
    assert plan_of(num_gpus=8).states == one.states // 8


def test_full_states_on_gpus_take_ten_bytes_a_parameter_or_eight() -> None:
    assert plan_of(True, num_gpus=1).states == 10 * LLAMA31_8B.num_parameters  # master 4, gradient 2, two moments 4
    # 8 bits of both moments, and for each 128 of them a float32 factor.
    assert plan_of(True, num_gpus=1, optimizer_states="8bit").states == int(8.0625 * LLAMA31_8B.num_parameters)


def test_adapters_need_far_less_than_all_weights() -> None:
    full, lora = plan_of(num_gpus=1), plan_of(num_gpus=1, peft="lora")
    assert lora.total_gib < full.total_gib / 2
    assert lora.states > 2 * LLAMA31_8B.num_parameters  # the frozen weights in bfloat16 are there all the same


def test_recomputing_blocks_and_shorter_rows_need_less() -> None:
    plain = plan_of()
    assert plan_of(activation_checkpointing="full").activations < plain.activations / 4
    selective = plan_of(activation_checkpointing="selective").activations
    assert plan_of(activation_checkpointing="full").activations < selective < 0.6 * plain.activations
    assert plan_of(seq_length=4096).activations < 0.6 * plain.activations
    assert plan_of(micro_batch_size=2).activations > 1.8 * plain.activations


def test_the_total_is_the_sum_of_its_parts() -> None:
    plan = plan_of()
    tensors = plan.states + plan.gathered + plan.activations + plan.work + plan.rounding
    assert plan.tensors_gib == pytest.approx(tensors / 2**30)
    assert plan.total_gib == pytest.approx((tensors + 2 * 2**30) / 2**30)


def test_tensor_parallel_spreads_states_and_most_activations() -> None:
    one, two = plan_of(num_gpus=8), plan_of(num_gpus=8, tensor_model_parallel_size=2)
    assert two.states == one.states  # the same eight GPUs hold the same sixteen bytes a parameter
    assert one.activations / 2 < two.activations < 0.7 * one.activations  # gathered inputs are whole


def test_context_parallel_halves_activations_and_keeps_sharding_the_states() -> None:
    one, two = plan_of(num_gpus=8, compile="off"), plan_of(num_gpus=8, context_parallel_size=2)  # both without fused blocks
    assert two.states == one.states
    # KiB of a token: of plain blocks 136 and the norms' inputs, 32; of fused ones 108, and 44 as exchanged.
    assert two.activations == pytest.approx(one.activations / 2 * (108 + 44) / (136 + 32), rel=0.002)


def test_the_first_rank_of_a_pipeline_keeps_rows_in_flight() -> None:
    one, two = plan_of(num_gpus=1, peft="lora"), plan_of(num_gpus=2, peft="lora", pipeline_model_parallel_size=2)
    assert two.states < 0.6 * one.states
    assert two.activations > 0.8 * one.activations  # two rows of half the layers


@pytest.mark.parametrize(
    ("changed", "gib", "expected"),
    [
        ({"peft": "none", "num_gpus": 1}, 80.0, "full"),  # nothing to gather
        ({"peft": "none", "num_gpus": 2}, 131.0, "step"),
        ({"peft": "none", "num_gpus": 8}, 80.0, "step"),
        ({"peft": "none", "num_gpus": 8}, 73.0, "full"),  # rather than computing more again
        ({"peft": "none", "pipeline_model_parallel_size": 2}, 80.0, "step"),
        ({"peft": "lora", "activation_checkpointing": "full"}, 80.0, "replicated"),
        ({"peft": "lora", "activation_checkpointing": "full"}, 16.0, "full"),
        ({"peft": "lora", "activation_checkpointing": "full"}, None, "replicated"),  # a login node: 80 GiB are assumed
        ({"peft": "lora", "sharding": "step"}, 80.0, "step"),
    ],
)
def test_weights_are_held_with_the_least_communication_that_fits(
    changed: dict[str, Any], gib: float | None, expected: str
) -> None:
    assert resolve(given(**changed), LLAMA31_8B, gib, on_gpu=True).sharding == expected


@pytest.mark.parametrize(
    ("changed", "gib", "expected"),
    [
        ({"num_gpus": 1}, 141.0, ("bf16", "none")),
        ({"num_gpus": 1}, 100.0, ("bf16", "selective")),
        ({"num_gpus": 1}, 80.0, ("8bit", "full")),
        ({"num_gpus": 8}, 80.0, ("bf16", "none")),
        ({"num_gpus": 1, "optimizer_states": "fp32"}, 80.0, ("fp32", "full")),  # nothing fits: the least
        ({"num_gpus": 1, "peft": "lora"}, 80.0, ("fp32", "none")),
        ({"num_gpus": 1, "peft": "lora"}, 40.0, ("fp32", "selective")),
        ({"num_gpus": 1, "peft": "lora", "activation_checkpointing": "full"}, 80.0, ("fp32", "full")),
    ],
)
def test_states_are_as_exact_and_as_little_is_computed_again_as_fits(
    changed: dict[str, Any], gib: float, expected: tuple[str, str]
) -> None:
    strategy = resolve(given(**changed), LLAMA31_8B, gib, on_gpu=True)
    assert (strategy.optimizer_states, strategy.activation_checkpointing) == expected


@pytest.mark.parametrize(
    ("changed", "gib", "expected"),
    [
        ({}, 141.0, 24576),  # LoRA on one H200
        ({}, 80.0, 8192),
        ({}, 40.0, 8192),
        ({"activation_checkpointing": "selective"}, 141.0, 8192),  # who asks for less memory gets less
        ({"seq_length": 2048}, 141.0, 24576),
        ({"seq_length": 5000}, 141.0, 20000),  # whole samples of the longest
        ({"seq_length": 32768}, 180.0, 32768),
        ({"micro_batch_size": 4}, 180.0, 32768),  # as asked for
        ({"row_length": 9000}, 141.0, 9000),
        ({"row_length": 9000, "least_memory": True}, 141.0, 9000),
        ({"least_memory": True}, 141.0, 8192),
        ({"num_gpus": 2, "pipeline_model_parallel_size": 2}, 141.0, 8192),  # many rows, or stages wait
        ({"peft": "none"}, 141.0, 8192),
        ({"peft": "none", "num_gpus": 8}, 141.0, 16384),
    ],
    ids=str,
)
def test_rows_are_longer_where_that_fits_as_well(changed: dict[str, Any], gib: float, expected: int) -> None:
    config = given(**{"peft": "lora", "num_gpus": 1} | changed)
    strategy = resolve(config, LLAMA31_8B, gib, on_gpu=True)
    assert strategy.packs.capacity == expected, strategy
    asked = dataclasses.replace(config, row_length=config.row_length or config.micro_batch_size * config.seq_length)
    packs = resolve(asked, LLAMA31_8B, gib, on_gpu=True).packs
    assert dataclasses.replace(strategy, packs=packs) == resolve(asked, LLAMA31_8B, gib, on_gpu=True), "nothing else changes"


def test_rows_of_long_samples_are_as_asked_for() -> None:
    config = given(peft="lora", num_gpus=1)
    found = [resolve(config, LLAMA31_8B, 141.0, on_gpu=True, mean_sample=mean).packs.capacity for mean in (4096.0, 4097.0)]
    assert found == [24576, 8192]


def test_rows_are_not_longer_for_a_memory_that_nobody_knows() -> None:
    config = given(peft="lora", num_gpus=1, seq_length=2048)
    assert resolve(config, LLAMA31_8B, None, on_gpu=True).packs.capacity == 2048
    assert resolve(config, LLAMA31_8B, 80.0, on_gpu=True).packs.capacity > 2048


@pytest.mark.parametrize(("vocabulary", "in_fp8"), [(128256, True), (128264, False)])
def test_the_head_in_fp8_is_counted_where_its_products_can_be_in_fp8(vocabulary: int, in_fp8: bool) -> None:
    model = dataclasses.replace(LLAMA31_8B, vocab_size=vocabulary)
    config = given(peft="lora", num_gpus=1, row_length=8192)
    plain, fp8 = (
        plan_memory(resolve(way, model, 1e6, on_gpu=True), model) for way in (config, dataclasses.replace(config, fp8=True))
    )
    assert fp8.states - plain.states == in_fp8 * vocabulary * 4096


def test_rows_on_cpus_are_as_asked_for() -> None:
    assert resolve(given(peft="lora", num_gpus=1), LLAMA31_8B, 1000.0, on_gpu=False).packs.capacity == 8192


@pytest.mark.parametrize(("fp8", "gib"), [(False, 15.75), (True, 9.46)])
def test_the_least_memory_of_adapters_of_8b_is_that_of_the_arithmetic_by_hand(fp8: bool, gib: float) -> None:
    plan = plan_of(True, num_gpus=1, peft="lora", least_memory=True, fp8=fp8)
    # 32 blocks of 218 112 000 parameters, of which 8 192 are norms; head 0.98 GiB, no embedding; adapters 16 bytes and 2
    blocks, head, adapters = 32 * 218_112_000 * (1 if fp8 else 2) / 2**30, 128256 * 4096 * 2 / 2**30, 41_943_040 * 18 / 2**30
    assert (plan.states + plan.gathered) / 2**30 == pytest.approx(blocks + head + adapters, rel=1e-4)
    # The attention's backward pass, 8192 tokens, MiB: kept tensors of two blocks 256; three gradients of 64; q, k, v and
    # their gradients 96 each; keys' and values' gradients for each query head 128; float32 gradient of the queries 128
    attention = 256 + 3 * 64 + 2 * 96 + 128 + 128
    # In fp8, what follows the attention: the same kept tensors and gradients; 4096 tokens of gate and up 224, the gradient of
    # their product 112, three times the residual stream 96; the transposes of o, gate, up and down, a byte a weight
    # and once more the product of gate and up, a byte each.
    pieces = 256 + 3 * 64 + 224 + 112 + 96 + 56 + (4096 * 4096 + 3 * 4096 * 14336) / 2**20
    assert (plan.activations + plan.work) / 2**20 == pytest.approx(max(attention, pieces if fp8 else 0), abs=0.01)
    assert plan.tensors_gib == pytest.approx(gib, abs=0.06)


def test_what_waits_on_the_host_is_the_embedding_and_the_kept_tensors_of_all_blocks_but_the_last() -> None:
    expected = 128256 * 4096 * 2 / 2**30 + 31 * 128 / 1024  # input and attention output, 64 MiB each, for 8192 tokens
    assert low_memory_on_host_gib(LLAMA31_8B, 8192) == pytest.approx(expected)


def test_the_least_memory_leaves_the_embedding_on_the_host_unless_it_is_the_head() -> None:
    tied = dataclasses.replace(LLAMA31_8B, tie_word_embeddings=True)
    config = given(num_gpus=1, peft="lora", least_memory=True)
    strategy = resolve(config, tied, 1e6, on_gpu=True)
    assert plan_memory(strategy, tied) == plan_memory(strategy, LLAMA31_8B)


@pytest.mark.parametrize("name", ["parallelism.md", "parallelism.zh-TW.md"])
def test_the_table_of_the_documentation_is_the_plan_s(name: str) -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / name).read_text(encoding="utf-8")
    rows = {
        int(cells[1]): cells[2:6]
        for line in text.splitlines()
        if len(cells := [cell.strip() for cell in line.split("|")]) == 7 and cells[1].isdigit()
    }
    assert rows.keys() == {1, 2, 8, 16, 64}
    for gpus, cells in rows.items():
        for index, cell in enumerate(cells):
            gib = 80.0 if index % 2 == 0 else 141.0 / 1.073741824
            in_words = cell if "GiB" in cell else cells[index - 1]  # "the same"
            copies = re.search(r"--data_parallel_replicate_size (\d)", in_words)
            config = given(
                num_nodes=max(1, gpus // 8),
                num_gpus=min(gpus, 8),
                peft="lora" if index < 2 else "none",
                data_parallel_replicate_size=int(copies[1]) if copies else 1,
                row_length=8192,
            )
            choices = resolve(config, LLAMA31_8B, gib, on_gpu=True)
            planned = f"{plan_memory(choices, LLAMA31_8B).total_gib:.0f} GiB"
            assert in_words.endswith(planned), f"{gpus} GPUs, column {index + 1}: {planned} with {choices}"
            assert ("selective" in in_words) == (choices.activation_checkpointing == "selective")


@pytest.mark.parametrize("name", ["parallelism.md", "parallelism.zh-TW.md"])
def test_what_the_documentation_says_of_less_memory_is_the_plan_s(name: str) -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / name).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith(("1. `--activation_checkpointing", "2. "))]
    stated = [int(number) for line in lines for number in re.findall(r"(\d+) GiB", line)]
    ways: list[dict[str, Any]] = [
        *(
            {"activation_checkpointing": mode} | way
            for mode in ("selective", "full")
            for way in ({"num_gpus": 1, "peft": "lora"}, {"num_gpus": 8, "sharding": "full"})
        ),
        *(
            {"num_gpus": 8, "context_parallel_size": 8, "seq_length": 131072, "activation_checkpointing": "full"} | way
            for way in ({"peft": "lora"}, {"sharding": "full"})
        ),
    ]
    configs = [given(**way) for way in ways]
    plans = [plan_memory(resolve(config, LLAMA31_8B, 80.0, on_gpu=True), LLAMA31_8B) for config in configs]
    assert stated == [round(plan.total_gib) for plan in plans]
