"""Expected GPU memory: known cases by hand, and what must make it larger or smaller."""

from pathlib import Path
from typing import Any

import pytest
import torch

from finetuning.config import LORA_TARGETS, RunConfig
from finetuning.model.config import LlamaConfig, RopeScaling, read_llama_config
from finetuning.model.llama import Llama
from finetuning.model.lora import add_lora
from finetuning.plan import plan_memory, trained_parameters

pytestmark = pytest.mark.unit

LLAMA31_8B = LlamaConfig(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, head_dim=128, rms_norm_eps=1e-5, rope_theta=500000.0, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192),
    max_position_embeddings=131072, tie_word_embeddings=False, dtype="bfloat16",
)  # fmt: skip


def given(**changed: Any) -> RunConfig:
    return RunConfig(hf_model_id="model", dataset_path="data", **changed)


def test_llama_31_8b_has_the_published_number_of_parameters() -> None:
    assert LLAMA31_8B.num_parameters == 8_030_261_248


def test_adapters_on_all_linears_of_8b_have_the_known_number_of_parameters() -> None:
    assert trained_parameters(given(peft="lora", lora_rank=16), LLAMA31_8B) == 41_943_040  # PEFT, r = 16


@pytest.mark.parametrize("targets", [LORA_TARGETS, ("q_proj", "v_proj"), ("down_proj",)], ids=",".join)
def test_the_number_of_trained_parameters_is_that_of_the_model(targets: tuple[str, ...], tiny_model: Path) -> None:
    shape = read_llama_config(tiny_model)
    with torch.device("meta"):
        model = Llama(shape)
        assert trained_parameters(given(), shape) == sum(p.numel() for p in model.parameters())
        add_lora(model, 4, 8.0, targets)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained_parameters(given(peft="lora", lora_rank=4, lora_targets=targets), shape) == trained


def test_full_states_take_sixteen_bytes_a_parameter_spread_over_the_ranks() -> None:
    one = plan_memory(given(num_gpus=1), LLAMA31_8B)
    assert one.states == 16 * LLAMA31_8B.num_parameters  # float32: weight, gradient, two moments
    assert plan_memory(given(num_gpus=8), LLAMA31_8B).states == one.states // 8


def test_adapters_need_far_less_than_all_weights() -> None:
    full, lora = plan_memory(given(num_gpus=1), LLAMA31_8B), plan_memory(given(num_gpus=1, peft="lora"), LLAMA31_8B)
    assert lora.total_gib < full.total_gib / 2
    assert lora.states > 2 * LLAMA31_8B.num_parameters  # the frozen weights in bfloat16 are there all the same


def test_recomputing_blocks_and_shorter_rows_need_less() -> None:
    plain = plan_memory(given(), LLAMA31_8B)
    assert plan_memory(given(activation_checkpointing="full"), LLAMA31_8B).activations < plain.activations / 4
    assert plan_memory(given(seq_length=4096), LLAMA31_8B).activations < 0.6 * plain.activations
    assert plan_memory(given(micro_batch_size=2), LLAMA31_8B).activations > 1.8 * plain.activations


def test_the_total_is_the_sum_of_its_parts() -> None:
    plan = plan_memory(given(), LLAMA31_8B)
    assert plan.total_gib == pytest.approx((plan.states + plan.gathered + plan.activations + 2 * 2**30) / 2**30)
