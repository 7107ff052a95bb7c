"""Greedy answers against transformers' own generate."""

from pathlib import Path

import pytest
import torch
import transformers
from torch.distributed.tensor import DTensor

from finetuning.data.prompts.prompt_format import load_prompt_format
from finetuning.data.reading.records import Sample
from finetuning.training.sample_answers import generate
from tests.models import build
from tests.processes import run_processes
from tests.references import load_reference

pytestmark = pytest.mark.dist

QUESTIONS = ["你好！", "請用一句話說明什麼是遞迴，並舉一個例子。", "1+1=?"]
NEW_TOKENS = 12


def prompts(model_folder: Path) -> list[list[int]]:
    prompt_format = load_prompt_format(model_folder, None, None)
    return [prompt_format.encode_prompt(Sample(1, question, "")) for question in QUESTIONS]


def answers(model_folder: Path, end_token_ids: tuple[int, ...]) -> list[list[int]]:
    model = build(model_folder)
    return generate(model, prompts(model_folder), end_token_ids=end_token_ids, max_new_tokens=NEW_TOKENS)


def expected(model_folder: Path, end_token_ids: tuple[int, ...]) -> list[list[int]]:
    model = load_reference(model_folder).eval()
    model.generation_config = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=list(end_token_ids), pad_token_id=0
    )
    found = []
    for prompt in prompts(model_folder):
        tokens = torch.tensor([prompt])
        new = model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens))[0, len(prompt) :].tolist()
        found.append(new[:-1] if new[-1] in end_token_ids else new)
    return found


@pytest.mark.parametrize("world_size", [1, 2])
def test_answers_are_those_of_transformers(tiny_model: Path, world_size: int) -> None:
    ends = load_prompt_format(tiny_model, None, None).end_token_ids
    reference = expected(tiny_model, ends)
    assert run_processes(world_size, answers, tiny_model, ends) == [reference] * world_size
    assert len({tuple(answer) for answer in reference}) == len(QUESTIONS)


def test_an_answer_ends_before_its_end_token_while_others_go_on(tiny_model: Path) -> None:
    ends = (expected(tiny_model, ())[1][4],)  # a token that the second answer holds is made an end token
    reference = expected(tiny_model, ends)
    assert len(reference[1]) <= 4 < max(map(len, reference))
    assert run_processes(1, answers, tiny_model, ends) == [reference]


def kinds_of_parameters(model_folder: Path) -> list[bool]:
    model = build(model_folder)
    generate(model, prompts(model_folder), end_token_ids=(), max_new_tokens=2)
    return [isinstance(parameter, DTensor) for parameter in model.parameters()]


def test_afterwards_the_model_shows_its_shards_again(tiny_tied_model: Path) -> None:
    assert all(run_processes(2, kinds_of_parameters, tiny_tied_model)[0])
