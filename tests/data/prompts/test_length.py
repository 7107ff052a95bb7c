"""What is far too long is known from a part of it, and what fits is never called too long."""

import pytest

from finetuning.data.prompts import length
from finetuning.data.prompts.length import is_far_longer, shorten_questions
from finetuning.data.prompts.prompt_format import PromptFormat
from finetuning.data.reading.records import Sample

pytestmark = pytest.mark.unit

TEXTS = ("這是一句話。", "word ", "a", "  \n", "\U0001f468\u200d\U0001f469", "<|eot_id|>", "0123456789")


@pytest.mark.parametrize("text", TEXTS)
def test_only_what_is_longer_is_called_longer(prompt_format: PromptFormat, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(length, "PIECE_CHARACTERS", 500)
    sample = Sample(1, "q" + text * (5000 // len(text)) + "q", "b")
    tokens = len(prompt_format.encode(sample)[0])
    assert not is_far_longer(prompt_format, sample, tokens)
    assert is_far_longer(prompt_format, sample, tokens // 40)


def test_white_space_that_the_template_strips_does_not_count(prompt_format: PromptFormat) -> None:
    assert prompt_format.parts.trims
    assert not is_far_longer(prompt_format, Sample(1, " \n" * 300_000 + "q", "b"), 100)


def test_questions_are_cut_as_far_as_the_exact_cut_needs(prompt_format: PromptFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(length, "PIECE_CHARACTERS", 500)
    long = "這是一句話。" * 2_000
    sample = Sample(1, long, "b", None, (("short", "a"), (long[:-1], "b")))
    shorter = shorten_questions(prompt_format, sample, 300)
    assert shorter is not None
    assert [answer for _, answer in shorter.turns] == ["a", "b", "b"]
    questions = [question for question, _ in shorter.turns]
    assert questions[0] == "short" and max(map(len, questions)) < 2_000
    assert all(long.startswith(question) for question in questions[1:])
    assert len(prompt_format.encode(shorter)[0]) > 300
    cut = prompt_format.cut_input(shorter, 300)
    assert cut is not None and 250 < len(prompt_format.encode(cut)[0]) <= 300


def test_answers_that_are_too_long_cannot_be_cut(prompt_format: PromptFormat) -> None:
    assert shorten_questions(prompt_format, Sample(1, "q", "長" * 300_000), 300) is None
