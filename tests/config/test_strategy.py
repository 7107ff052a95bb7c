"""What a strategy says of packs and of products in fp8."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from finetuning.config.llama import LlamaConfig, read_llama_config
from finetuning.config.resolve import make_strategy
from finetuning.config.settings import RunConfig
from finetuning.config.strategy import HEAD_GRADIENT, Strategy

pytestmark = pytest.mark.unit


def strategy_of(model: LlamaConfig, sharding: str, *, on_gpu: bool = True, **changed: Any) -> Strategy:
    config = RunConfig(hf_model_id="model", dataset_path="data", **{"num_gpus": 1, **changed})
    states = "bf16" if config.peft == "none" and on_gpu else "fp32"
    return make_strategy(config, model, sharding, states, "none", 9000, on_gpu=on_gpu)


@pytest.fixture
def model(tiny_model: Path) -> LlamaConfig:
    return read_llama_config(tiny_model)


@pytest.mark.parametrize(
    ("changed", "expected"), [({"fp8": True}, 9008), ({}, 9000), ({"fp8": True, "peft": "lora"}, 9000)], ids=str
)
def test_packs_whose_products_over_tokens_are_in_fp8_are_multiples_of_16(
    changed: dict[str, Any], expected: int, model: LlamaConfig
) -> None:
    assert strategy_of(model, "replicated", **changed).packs.padded(8999) == expected


@pytest.mark.parametrize(
    ("vocabulary", "changed", "expected"),
    [
        (128256, {}, True),
        (128264, {}, False),  # 16 does not divide it
        (128256, {"fp8": False}, False),
        (128256, {"peft": "none"}, False),  # a head that is trainable
        (128256, {"least_memory": True}, False),
    ],
)
def test_the_gradient_through_the_head_is_in_fp8_where_it_is_frozen_and_its_vocabulary_allows_it(
    vocabulary: int, changed: dict[str, Any], expected: bool, model: LlamaConfig
) -> None:
    strategy = strategy_of(
        dataclasses.replace(model, vocab_size=vocabulary), "replicated", **{"peft": "lora", "fp8": True, **changed}
    )
    assert (HEAD_GRADIENT in strategy.fp8) is expected


@pytest.mark.parametrize(
    ("changed", "on_gpu", "expected"),
    [
        ({}, True, "fused"),
        ({}, False, "plain"),
        ({"compile": "on"}, False, "compiled"),
        ({"compile": "off"}, True, "plain"),
        ({"peft": "lora"}, True, "fused"),
        ({"peft": "lora", "lora_targets": ("q_proj",)}, True, "compiled"),
        ({"peft": "lora", "lora_rank": 512}, True, "compiled"),
        ({"peft": "lora", "num_gpus": 2, "tensor_model_parallel_size": 2}, True, "compiled"),
        ({"num_gpus": 2, "tensor_model_parallel_size": 2}, True, "fused"),
        ({"peft": "lora", "least_memory": True}, False, "low_memory"),
    ],
    ids=str,
)
def test_blocks_are_the_fastest_that_the_flags_allow(
    changed: dict[str, Any], on_gpu: bool, expected: str, model: LlamaConfig
) -> None:
    assert strategy_of(model, "replicated", on_gpu=on_gpu, **changed).blocks == expected


def test_adapters_on_weights_that_are_sharded_are_not_fused(model: LlamaConfig) -> None:
    assert strategy_of(model, "full", peft="lora").blocks == "compiled"


def test_a_pipeline_takes_packs_of_one_length_and_a_multiple_of_its_stages(model: LlamaConfig) -> None:
    packs = strategy_of(model, "step", num_gpus=4, pipeline_model_parallel_size=2, tensor_model_parallel_size=2).packs
    assert (packs.packs_multiple, packs.same_length, packs.multiple) == (2, True, 2)
    assert packs.without_gradients() == dataclasses.replace(packs, packs_multiple=1, same_length=False)
