"""Samples of one file for evaluating, generating and comparing, every line of it checked."""

from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from finetuning.config.llama import LlamaConfig
from finetuning.data.prompts.length import is_far_longer
from finetuning.data.prompts.promises import unknown_token
from finetuning.data.prompts.prompt_format import PromptFormat
from finetuning.data.reading.columns import Columns
from finetuning.data.reading.finding_words import describe
from finetuning.data.reading.findings import ERROR, Finding, Problem, excerpt
from finetuning.data.reading.records import Sample
from finetuning.data.reading.sources import SUFFIXES, parse, read_batches, stem_of
from finetuning.errors import InputError
from finetuning.i18n import t

SHOWN_PROBLEMS = 20
MAX_PROMPTS_MIB = 64


def read_samples(file: Path, limit: int | None, *, needs_answer: bool = True, columns: Columns = ()) -> list[Sample]:
    """The samples of a data file in order, at most `limit`; without `needs_answer`, an input alone will do.

    Raises:
        InputError: the file or a line of it cannot be used; with file and line of each.
    """
    if not file.is_file():
        raise InputError(t("{file}: there is no such file", file=file))
    if stem_of(file) is None:
        raise InputError(t("{file}: not a data file; use {suffixes}", file=file, suffixes=", ".join(SUFFIXES)))
    samples: list[Sample] = []
    problems: list[str] = []
    for batch in read_batches(file):
        if isinstance(batch, Finding):
            if batch.severity == ERROR:
                problems.append(str(batch))
            continue
        for line, record in batch.records:
            sample, _, found = parse(record, line, needs_answer=needs_answer, columns=columns)
            if sample is None:
                problems += [str(problem.at(file.name, line)) for problem in found]
            elif limit is None or len(samples) < limit:
                samples.append(sample)
        if limit is not None and len(samples) >= limit:
            break
    if not samples and not problems:
        problems.append(t("{file}: holds no samples", file=file))
    if problems:
        more = len(problems) - SHOWN_PROBLEMS
        raise InputError(problems[:SHOWN_PROBLEMS] + ([t("… and {count} more", count=more)] if more > 0 else []))
    return samples


def read_prompts(stream: IO[bytes], name: str) -> list[str]:
    """The lines of a text; they end at line feeds, with or without a carriage return before, and nowhere else.

    Raises:
        InputError: too much of it, or not UTF-8.
    """
    content = stream.read((MAX_PROMPTS_MIB << 20) + 1)
    if len(content) > MAX_PROMPTS_MIB << 20:
        raise InputError(t("{file}: larger than {most} MiB", file=name, most=MAX_PROMPTS_MIB))
    try:
        lines = content.decode("utf-8").removeprefix("\ufeff").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(t("{file}: not UTF-8 (byte {position})", file=name, position=error.start)) from None
    return [line.removesuffix("\r") for line in lines]


def check_characters(prompts: list[str]) -> None:
    """
    Raises:
        InputError: a prompt of the command line is not UTF-8.
    """
    for number, prompt in enumerate(prompts, start=1):
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError:
            raise InputError(t("prompt {number} is not UTF-8: {prompt}", number=number, prompt=excerpt(prompt))) from None


def check_prompts(samples: list[Sample], prompt_format: PromptFormat, config: LlamaConfig, *, with_answer: bool) -> None:
    """What can be told of samples before they become tokens.

    Raises:
        InputError: the template has no place for a sample, or writes it in another way than the format does, or the sample is
            far longer than the model has positions.
    """
    limit = config.max_position_embeddings
    placed = [(sample, prompt_format.problem_of(sample, with_answer=with_answer)) for sample in samples]
    _refuse([(sample, problem) for sample, problem in placed if problem is not None])
    long = [sample for sample in samples if is_far_longer(prompt_format, sample, limit)]
    if long:
        raise InputError(
            [
                t(
                    "line {line}: more than {limit} tokens, and the model was made for at most {limit}",
                    line=sample.line,
                    limit=limit,
                )
                for sample in long[:SHOWN_PROBLEMS]
            ]
        )
    differences = prompt_format.differences(samples, with_answer=with_answer)
    _refuse([(sample, problem) for sample, problem in zip(samples, differences, strict=True) if problem is not None])


def check_tokens(
    samples: list[Sample],
    tokens: Sequence[Sequence[int] | np.ndarray],
    new_tokens: int,
    prompt_format: PromptFormat,
    config: LlamaConfig,
) -> None:
    """
    Args:
        new_tokens: how many more each may become.

    Raises:
        InputError: a sample has more tokens than the model has positions, or one that has no row in the embedding table.
    """
    limit = config.max_position_embeddings
    problems = [
        t(
            "line {line}: {tokens} token{tokens:s}, and the model was made for at most {limit}",
            line=sample.line,
            tokens=len(found) + new_tokens,
            limit=limit,
        )
        for sample, found in zip(samples, tokens, strict=True)
        if len(found) + new_tokens > limit
    ]
    if problems:
        raise InputError(problems[:SHOWN_PROBLEMS])
    unknown = [(sample, unknown_token(np.asarray(found), prompt_format)) for sample, found in zip(samples, tokens, strict=True)]
    _refuse([(sample, problem) for sample, problem in unknown if problem is not None])


def _refuse(found: list[tuple[Sample, Problem]]) -> None:
    if found:
        raise InputError(
            [
                t("line {line}: {problem}", line=sample.line, problem=describe(problem.code, problem.values))
                for sample, problem in found[:SHOWN_PROBLEMS]
            ]
        )
