"""Samples of one file for evaluating, generating and comparing, every line of it checked."""

from pathlib import Path
from typing import IO

from finetuning.config.llama import LlamaConfig
from finetuning.data.prompts.length import is_far_longer
from finetuning.data.prompts.prompt_format import PromptFormat
from finetuning.data.reading.findings import ERROR, Finding, describe, excerpt
from finetuning.data.reading.records import Sample
from finetuning.data.reading.sources import SUFFIXES, parse, read_batches, stem_of
from finetuning.errors import InputError
from finetuning.i18n import t

SHOWN_PROBLEMS = 20
MAX_PROMPTS_MIB = 64


def read_samples(file: Path, limit: int | None, *, needs_answer: bool = True) -> list[Sample]:
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
            sample, _, found = parse(record, line, needs_answer=needs_answer)
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


def check_prompts(samples: list[Sample], prompt_format: PromptFormat, config: LlamaConfig) -> None:
    """What can be told of samples before they become tokens.

    Raises:
        InputError: the prompt format cannot write a sample, or it is far longer than the model has positions.
    """
    problems = []
    for sample in samples:
        if problem := prompt_format.problem_of(sample):
            problems.append(t("line {line}: {problem}", line=sample.line, problem=describe(problem.code, problem.values)))
        elif is_far_longer(prompt_format, sample, config.max_position_embeddings):
            problems.append(t("line {line}: more than {limit} tokens, and the model was made for at most {limit}",
                              line=sample.line, limit=config.max_position_embeddings))  # fmt: skip
    if problems:
        raise InputError(problems[:SHOWN_PROBLEMS])


def check_lengths(samples: list[Sample], lengths: list[int], config: LlamaConfig) -> None:
    """
    Raises:
        InputError: a sample has more tokens than the model has positions.
    """
    limit = config.max_position_embeddings
    problems = [
        t("line {line}: {tokens} tokens, and the model was made for at most {limit}", line=sample.line, tokens=length,
          limit=limit)
        for sample, length in zip(samples, lengths, strict=True)
        if length > limit
    ]  # fmt: skip
    if problems:
        raise InputError(problems[:SHOWN_PROBLEMS])
