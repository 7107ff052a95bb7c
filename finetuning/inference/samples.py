"""Samples of one file for evaluating, generating and comparing, every line of it checked."""

from pathlib import Path

from finetuning.config.llama import LlamaConfig
from finetuning.data.reading.findings import Finding
from finetuning.data.reading.records import Sample
from finetuning.data.reading.sources import SUFFIXES, parse, read_batches, stem_of
from finetuning.errors import InputError
from finetuning.i18n import t

SHOWN_PROBLEMS = 20


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
            problems.append(str(batch))
            break
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
