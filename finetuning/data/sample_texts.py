"""The texts of the samples that a run answers, kept when it is prepared: the data files may change or go while it runs."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from finetuning.data.reading.columns import Columns
from finetuning.data.reading.records import Sample
from finetuning.data.reading.sources import read_samples_at
from finetuning.data.tokens.tokenized import Split
from finetuning.files.atomic import write_text
from finetuning.files.documents import read_json

FILE_NAME = "sample_texts.json"  # in data/ of the experiment


def answered_split(names: Iterable[str]) -> str | None:
    """The split whose first samples are answered before and after training."""
    return next((name for name in ("test", "validation") if name in set(names)), None)


def first_samples(splits: Mapping[str, Split], sources: Mapping[str, str], count: int, columns: Columns = ()) -> list[Sample]:
    """The samples that are answered, from their file; none of texts and Megatron data, which ask nothing."""
    name = answered_split(splits)
    if name is None or count == 0 or sources[name].endswith(".bin"):
        return []
    samples = read_samples_at(Path(sources[name]), set(splits[name].lines[:count].tolist()), columns).values()
    return [sample for sample in samples if not sample.is_text]


def write_samples(folder: Path, samples: list[Sample]) -> None:
    folder.mkdir(exist_ok=True)
    write_text(folder / FILE_NAME, json.dumps(msgspec.to_builtins(samples), ensure_ascii=False, indent=1) + "\n")


def read_samples(folder: Path) -> list[Sample] | None:
    """What `write_samples` kept; None: an earlier version has prepared the run.

    Raises:
        InputError: the file is damaged.
    """
    try:
        return read_json(folder / FILE_NAME, list[Sample])
    except FileNotFoundError:
        return None
