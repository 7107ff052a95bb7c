"""benchmarks/learning.py: runs side by side are what a plain loop of transformers, PEFT and torch's AdamW gives for each."""

import math
from dataclasses import replace
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from benchmarks.learning import BETAS, CLIP, EPS, IGNORED, LINEARS, Case, Runs, groups, rate_at
from benchmarks.learning_data import data_sets
from finetuning.formats.gguf.header import GgufHeader

pytestmark = pytest.mark.unit

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 61, "rms_norm_eps": 1e-5}
HEADS, KV_HEADS, STEPS, THETA = 4, 2, 4, 10000.0
HEADER = GgufHeader(
    3,
    {
        "llama.block_count": 2,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": THETA,
    },
    {},
)
NAMES = dict(zip(LINEARS, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), strict=True))


def reference_model() -> transformers.LlamaForCausalLM:
    torch.manual_seed(3)
    settings = transformers.LlamaConfig(
        **SHAPE,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        tie_word_embeddings=True,
        rope_theta=THETA,
        initializer_range=0.2,
    )
    return transformers.LlamaForCausalLM(settings)


def as_gguf(model: transformers.LlamaForCausalLM) -> dict[str, Tensor]:
    """Weights by llama.cpp's names, with the rows of queries and keys in its order."""
    stored = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    found = {"token_embd.weight": stored["model.embed_tokens.weight"]}
    for layer in range(SHAPE["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for ours, theirs in NAMES.items():
            weight = stored[f"{at}{'self_attn' if theirs[0] in 'qkvo' else 'mlp'}.{theirs}.weight"]
            if theirs in ("q_proj", "k_proj"):
                weight = weight.unflatten(0, (HEADS if theirs == "q_proj" else KV_HEADS, 2, -1)).transpose(1, 2).flatten(0, 2)
            found[f"blk.{layer}.{ours}.weight"] = weight
        found[f"blk.{layer}.attn_norm.weight"] = stored[f"{at}input_layernorm.weight"]
        found[f"blk.{layer}.ffn_norm.weight"] = stored[f"{at}post_attention_layernorm.weight"]
    return found | {"output_norm.weight": stored["model.norm.weight"]}


def batch_of(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, SHAPE["vocab_size"], (3, 12), generator=generator)
    labels = torch.full_like(tokens, IGNORED)
    for row, (start, stop) in enumerate(((2, 6), (7, 11), (4, 5))):
        labels[row, start:stop] = tokens[row, start + 1 : stop + 1]
    return tokens, labels


def plain_loop(model: nn.Module, case: Case) -> list[float]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups_of = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": case.weight_decay},
        {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups_of if group["params"]], betas=BETAS, eps=EPS)
    losses = []
    for step in range(STEPS):
        tokens, labels = batch_of(step)
        loss = F.cross_entropy(model(input_ids=tokens).logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, CLIP)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(case, step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def side_by_side(cases: list[Case], base: dict[str, Tensor], start: Any = None) -> list[list[float]]:
    runs = Runs(cases, base, HEADER, torch.device("cpu"), torch.float32)
    if start is not None:
        start(runs)
    losses = []
    for step in range(STEPS):
        tokens, labels = (part.expand(len(cases), -1, -1) for part in batch_of(step))
        rates = torch.tensor([rate_at(case, step) for case in cases])
        correction = torch.tensor([1 - beta ** (step + 1) for beta in BETAS])
        losses.append(runs.step(4, 2, tokens, labels, rates, correction).tolist())
    return [list(of_run) for of_run in zip(*losses, strict=True)]


def test_adapters_learn_as_in_peft() -> None:
    base = as_gguf(reference_model())
    case = Case("style", rank=4, steps=STEPS, warmup=0.0)
    cases = [replace(case, lr=2e-2), replace(case, lr=5e-3, scale=0.5, schedule="wsd", seed=2)]
    started: list[dict[str, Tensor]] = []

    def remember(runs: Runs) -> None:
        weights = runs.weights(runs.trained)
        started.extend({name: weight[run].clone() for name, weight in weights.items()} for run in range(len(cases)))

    found = side_by_side(cases, base, remember)
    for case, adapters, losses in zip(cases, started, found, strict=True):
        settings = peft.LoraConfig(r=case.rank, lora_alpha=case.scale * case.rank, target_modules=list(NAMES.values()))
        model = peft.get_peft_model(reference_model(), settings)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_A." in name:
                    layer, module = name.split(".layers.")[1].split(".")[0], name.split(".lora_A.")[0].split(".")[-1]
                    ours = next(ours for ours, theirs in NAMES.items() if theirs == module)
                    parameter.copy_(adapters[f"blk.{layer}.{ours}.a"])
        assert losses == pytest.approx(plain_loop(model, case), rel=2e-5)
    assert found[0] != found[1]


def test_all_weights_learn_as_in_transformers() -> None:
    base = as_gguf(reference_model())
    cases = [Case("style", method="all", steps=STEPS, warmup=0.5, lr=rate) for rate in (1e-2, 1e-3)]
    for case, losses in zip(cases, side_by_side(cases, base), strict=True):
        assert losses == pytest.approx(plain_loop(reference_model(), case), rel=2e-5)


def test_no_question_of_the_validation_is_trained_and_every_answer_follows_from_what_is() -> None:
    for training, validation in data_sets().values():
        assert not {question for question, _ in training} & {question for question, _ in validation}
    training, validation = data_sets()["knowledge"]
    assert {answer for _, answer in validation} == {answer for _, answer in training}


def test_runs_of_a_group_differ_in_nothing_that_changes_a_shape() -> None:
    for group in groups():
        assert len({(case.data, case.method, case.rank, case.batch, case.steps) for case in group}) == 1
        assert all(math.isfinite(rate_at(case, case.steps - 1)) for case in group)
