"""The texts of the samples that a run answers, kept when it is prepared: the data files may change or go while it runs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import msgspec

from finetuning.config.run import Run
from finetuning.data.reading.columns import parse_columns
from finetuning.data.reading.records import Sample
from finetuning.data.reading.sources import read_samples_at
from finetuning.data.tokens.tokenized import MixedSplit, Split
from finetuning.files.atomic import write_text
from finetuning.files.documents import read_json

FILE_NAME = "sample_texts.json"  # in data/ of the experiment


@dataclass(frozen=True)
class AnsweredSample(Sample):
    source: int = 0  # of a mixture, which of its sources it is from


def answered_split(names: Iterable[str]) -> str | None:
    """The split whose first samples are answered before and after training."""
    return next((name for name in ("test", "validation") if name in set(names)), None)


def first_samples(splits: Mapping[str, Split], run: Run) -> list[AnsweredSample]:
    """The samples that are answered, from their files; none of texts and Megatron data, which ask nothing.

    Of a mixture, the first ones of each source, by turns.
    """
    name, count = answered_split(splits), run.config.num_sample_answers
    if name is None or count == 0:
        return []
    split = splits[name]
    if not isinstance(split, MixedSplit):
        return _first(split, run.sources[name], count, run.config.columns)
    sources = {source.name: (place, source) for place, source in enumerate(run.mixture)}
    found = []
    for source_name, part in zip(split.names, split.sources, strict=True):
        place, source = sources[source_name]
        found.append(_first(part, source.sources[name], count, source.columns, place))
    by_turns = [sample for turn in zip_longest(*found) for sample in turn if sample is not None]
    return by_turns[:count]


def _first(split: Split, file: str, count: int, columns: str | None, source: int = 0) -> list[AnsweredSample]:
    if file.endswith(".bin"):
        return []
    samples = read_samples_at(Path(file), set(split.lines[:count].tolist()), parse_columns(columns)).values()
    return [AnsweredSample(**vars(sample), source=source) for sample in samples if not sample.is_text]


def write_samples(folder: Path, samples: Sequence[AnsweredSample]) -> None:
    folder.mkdir(exist_ok=True)
    write_text(folder / FILE_NAME, json.dumps(msgspec.to_builtins(list(samples)), ensure_ascii=False, indent=1) + "\n")


def read_samples(folder: Path) -> list[AnsweredSample] | None:
    """What `write_samples` kept; None: an earlier version has prepared the run.

    Raises:
        InputError: the file is damaged.
    """
    try:
        return read_json(folder / FILE_NAME, list[AnsweredSample])
    except FileNotFoundError:
        return None
