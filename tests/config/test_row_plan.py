"""Rows that a layout and a precision can take, and when the head is in fp8."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetuning.config.llama import LlamaConfig, read_llama_config
from finetuning.config.settings import Run, RunConfig
from finetuning.parallel.parallelize import Technique, head_in_fp8
from finetuning.train import row_plan

pytestmark = pytest.mark.unit


def run(row_length: int, **changed: Any) -> Run:
    config = RunConfig(hf_model_id="model", dataset_path="data", num_gpus=1, **changed)
    return Run(
        config, "experiment", device="cuda", model_path="model", tokens_dir="tokens", sources={}, sharding="replicated",
        optimizer_states="bf16", activation_checkpointing="none", row_length=row_length, max_steps=1, warmup_steps=0,
        val_check_interval=1, save_every_n_steps=1, end_token_ids=(), initial_weights=None, identity={},
    )  # fmt: skip


@pytest.fixture
def model(tiny_model: Path) -> LlamaConfig:
    return read_llama_config(tiny_model)


@pytest.mark.parametrize(
    ("changed", "expected"), [({"fp8": True}, 9008), ({}, 9000), ({"fp8": True, "peft": "lora"}, 9000)], ids=str
)
def test_rows_whose_products_over_tokens_are_in_fp8_are_multiples_of_16(
    changed: dict[str, Any], expected: int, model: LlamaConfig
) -> None:
    assert row_plan(run(9000, **changed), model).padded(8999) == expected


@pytest.mark.parametrize(
    ("vocabulary", "changed", "expected"),
    [
        (128256, {}, True),
        (128264, {}, False),  # 16 does not divide it
        (128256, {"fp8": False}, False),
        (128256, {"lora_rank": None}, False),  # a head that is trained
    ],
)
def test_the_head_is_in_fp8_where_it_is_frozen_and_its_vocabulary_allows_it(
    vocabulary: int, changed: dict[str, Any], expected: bool, model: LlamaConfig
) -> None:
    technique = replace(Technique(lora_rank=16, fp8=True), **changed)
    assert head_in_fp8(replace(model, vocab_size=vocabulary), technique) is expected
