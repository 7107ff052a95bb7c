"""Whether a sample is far too long, told from a small part of it.

Tokenizing costs about 200 bytes of memory a token and a second a megabyte, so a text of megabytes is counted in pieces, and
only as far as its length matters. A piece may cut a token in two, so SLACK tokens a piece are let off: what is found is a lower
bound.
"""

import dataclasses
from collections.abc import Iterable

from finetuning.data.prompts.prompt_format import PromptFormat
from finetuning.data.reading.records import Sample

PIECE_CHARACTERS = 1 << 16
SLACK = 16


def is_far_longer(prompt_format: PromptFormat, sample: Sample, limit: int) -> bool:
    """Whether a sample certainly has more than `limit` tokens. Of one up to PIECE_CHARACTERS that is not asked."""
    return sum(map(len, sample.texts())) > PIECE_CHARACTERS and _count(prompt_format, sample.texts(), limit) > limit


def shorten_questions(prompt_format: PromptFormat, sample: Sample, limit: int) -> Sample | None:
    """A sample that is far longer than `limit` tokens with its longest questions cut, so that it is not any more.

    It is still long enough for `PromptFormat.cut_input` to make it fit exactly. None: what may not be cut is too long.
    """
    if sample.messages or sample.is_text:
        return None
    answers = [answer for _, answer in sample.turns]
    if _count(prompt_format, answers, limit) > limit:
        return None
    questions = [question for question, _ in sample.turns]
    counts = [_count(prompt_format, [question], limit) for question in questions]
    total = sum(counts)
    for index in sorted(range(len(questions)), key=lambda index: -len(questions[index])):
        if total <= limit:
            break
        total -= counts[index]
        kept = _characters(prompt_format, questions[index], limit) if total <= limit else 0
        questions[index] = questions[index][:kept]
    *history, (last, _) = zip(questions, answers, strict=True)
    return dataclasses.replace(sample, input=last, history=tuple(history))


def _count(prompt_format: PromptFormat, texts: Iterable[str], limit: int) -> int:
    """A lower bound of the tokens of the texts together; not counted on above `limit`."""
    text = "".join(text.strip() if prompt_format.parts.trims else text for text in texts)
    tokens = 0
    for start in range(0, len(text), PIECE_CHARACTERS):
        tokens += max(_tokens(prompt_format, text[start : start + PIECE_CHARACTERS]) - SLACK, 0)
        if tokens > limit:
            break
    return tokens


def _characters(prompt_format: PromptFormat, text: str, limit: int) -> int:
    """How many characters of a text, in whole pieces, have more than `limit` tokens."""
    tokens = end = 0
    while end < len(text) and tokens <= limit:
        tokens += max(_tokens(prompt_format, text[end : end + PIECE_CHARACTERS]) - SLACK, 0)
        end += PIECE_CHARACTERS
    return end


def _tokens(prompt_format: PromptFormat, text: str) -> int:
    return prompt_format.count_tokens(text)
