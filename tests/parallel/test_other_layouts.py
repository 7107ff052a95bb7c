"""What comes after the gradients is the same in every layout: steps, checkpoints, evaluation, generation and export."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import transformers
from torch import Tensor

from finetuning.checkpoint.store import load_checkpoint, save_checkpoint
from finetuning.config.degrees import Degrees
from finetuning.config.llama import read_llama_config
from finetuning.config.settings import LORA_TARGETS, RunConfig
from finetuning.config.strategy import FUSED, PLAIN, PackPlan, Strategy, plan_context
from finetuning.data.batches.global_batch import make_step_batch
from finetuning.data.tokens.tokenized import open_split
from finetuning.formats.huggingface.write import export_model
from finetuning.formats.peft.write import export_adapters
from finetuning.parallel.parallelize import ParallelLlama
from finetuning.training.evaluate import evaluate
from finetuning.training.optimizer import build_optimizer, gradient_scaler, optimizer_state
from finetuning.training.sample_answers import generate
from finetuning.training.step import train_step
from tests.closeness import ROUNDING, assert_near
from tests.models import build, whole_logits
from tests.processes import run_processes
from tests.references import random_split

pytestmark = pytest.mark.dist

FULL = Strategy()
LORA = Strategy(lora_rank=3, lora_alpha=12.0, lora_targets=LORA_TARGETS, sharding="replicated")
ONE = Degrees()
LENGTHS, ANSWERS = [40, 33, 30, 21, 18, 14, 9, 7], [2, 30, 1, 12, 17, 3, 8, 1]
PROMPTS = [[1, 5, 9, 200, 31], [7, 8], [100, 101, 102, 103, 104, 105, 106]]
TOKENS = torch.tensor([1, 17, 300, 5, 9, 44, 8, 2])


def row_plan(model_folder: Path, degrees: Degrees) -> PackPlan:
    multiple = plan_context(read_llama_config(model_folder), degrees.cp, degrees.tp).multiple * degrees.tp
    return PackPlan(48, 8, 0.01, multiple=multiple, packs_multiple=degrees.pp, same_length=degrees.pp > 1)


def train_on(
    model_folder: Path, strategy: Strategy, degrees: Degrees, split_folder: Path, checkpoints: Path, begin: int, end: int
) -> list[float]:
    """Steps begin … end - 1, from the checkpoint after step `begin` to one after step `end`; returns the losses."""
    model = build(model_folder, strategy, degrees=degrees)
    optimizer = build_optimizer(model, learning_rate=3e-3, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1, fused=False)
    if begin > 0:
        load_checkpoint(checkpoints / f"step={begin}", model, optimizer_state(model, optimizer))
    split, losses = open_split(split_folder), []
    for step in range(begin, end):
        samples = (np.arange(6) + 3 * step) % len(split)
        batch = make_step_batch(
            split, samples, step, model.layout.data_rank, degrees.data_parallel, row_plan(model_folder, degrees)
        )
        losses.append(
            train_step(model, batch, optimizer.step, scale=gradient_scaler(optimizer), clip_grad=0.5, stop=False).loss
        )
        optimizer.zero_grad()
    save_checkpoint(checkpoints / f"step={end}", model, optimizer_state(model, optimizer), {"step": end})
    return losses


CHAIN = [
    ONE,
    Degrees(pp=2, tp=2),
    Degrees(dp_shard=2, cp=2),
    Degrees(dp_replicate=2, dp_shard=2, tp=2),
    Degrees(dp_replicate=2),
    ONE,
]


FUSED_CHAIN = [Degrees(dp_shard=2, cp=2), Degrees(pp=2), Degrees(cp=2), ONE]


@pytest.mark.parametrize(
    ("strategy", "chain"),
    [(FULL, CHAIN), (LORA, [*CHAIN[1:4], ONE]), (replace(LORA, blocks=FUSED), FUSED_CHAIN)],
    ids=["full", "lora", "lora, fused"],
)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_checkpoint_of_any_layout_goes_on_in_any_other(
    tiny_model: Path, tiny_tied_model: Path, tmp_path: Path, strategy: Strategy, chain: list[Degrees], tied: bool
) -> None:
    if tied:
        chain = chain[:3]
    base = tiny_tied_model if tied else tiny_model
    random_split(tmp_path / "split", LENGTHS, ANSWERS)
    found: list[float] = []
    for step, degrees in enumerate(chain):
        ranks = run_processes(
            degrees.world_size, train_on, base, strategy, degrees, tmp_path / "split", tmp_path / "chain", step, step + 1
        )
        assert all(losses == ranks[0] for losses in ranks)  # every rank knows the loss
        found += ranks[0]
    (expected,) = run_processes(1, train_on, base, strategy, ONE, tmp_path / "split", tmp_path / "one", 0, len(chain))
    # Adam divides by the size of a gradient, so rounding of tiny gradients becomes whole steps.
    assert found == pytest.approx(expected, rel=1e-4)
    assert max(expected) - min(expected) > 0.01


def answers_and_loss(
    model_folder: Path, strategy: Strategy, degrees: Degrees, split_folder: Path
) -> tuple[list[list[int]], float, Tensor]:
    model = build(model_folder, strategy, degrees=degrees)
    answers = generate(model, PROMPTS, end_token_ids=(3,), max_new_tokens=4)
    found = evaluate(model, open_split(split_folder), row_plan(model_folder, degrees))
    return answers, found.loss, logits_and_release(model)


def logits_and_release(model: ParallelLlama) -> Tensor:
    logits = whole_logits(model, TOKENS)
    model.release()
    return logits


@pytest.mark.parametrize(
    ("degrees", "fuse"),
    [
        (Degrees(tp=2), False),
        (Degrees(cp=2), False),
        (Degrees(pp=2), False),
        (Degrees(dp_shard=2), False),
        (Degrees(pp=2, tp=2), False),
        (Degrees(cp=2, tp=2), False),
        (Degrees(pp=2, cp=2), False),
        (Degrees(cp=2), True),
        (Degrees(dp_shard=2), True),
    ],
    ids=str,
)
def test_evaluation_and_generation_are_those_of_one_process(
    tiny_model: Path, tmp_path: Path, degrees: Degrees, fuse: bool
) -> None:
    random_split(tmp_path / "split", LENGTHS, ANSWERS)
    strategy = Strategy(sharding="full" if degrees.pp == 1 else "step", blocks=FUSED if fuse else PLAIN)
    ((answers, loss, logits),) = run_processes(1, answers_and_loss, tiny_model, FULL, ONE, tmp_path / "split")
    for found in run_processes(degrees.world_size, answers_and_loss, tiny_model, strategy, degrees, tmp_path / "split"):
        assert found[0] == answers
        assert found[1] == pytest.approx(loss, rel=ROUNDING)
        assert_near(found[2], logits)


def export(model_folder: Path, strategy: Strategy, degrees: Degrees, target: Path) -> Tensor:
    model = build(model_folder, strategy, degrees=degrees)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    model.refresh_copies()
    if strategy.lora_rank is None:
        export_model(model, target, model_folder, None)
    else:
        config = RunConfig(
            hf_model_id=str(model_folder),
            dataset_path="",
            peft="lora",
            lora_rank=3,
            lora_alpha=12.0,
            lora_targets=LORA_TARGETS,
        )
        export_adapters(model, target, config, model_folder, None)
    dist.barrier()
    return whole_logits(model, TOKENS)


@pytest.mark.parametrize("degrees", [Degrees(pp=2, tp=2), Degrees(dp_shard=2, cp=2)], ids=str)
@pytest.mark.parametrize("strategy", [FULL, LORA], ids=["full", "lora"])
def test_transformers_and_peft_load_the_export_of_any_layout(
    tiny_model: Path, tmp_path: Path, degrees: Degrees, strategy: Strategy
) -> None:
    ours = run_processes(degrees.world_size, export, tiny_model, strategy, degrees, tmp_path / "export")[0]
    if strategy is FULL:
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float64)
    else:
        import peft

        model = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float64)
    with torch.no_grad():
        theirs = model.eval()(input_ids=TOKENS[None]).logits[0]
    assert_near(ours, theirs)
