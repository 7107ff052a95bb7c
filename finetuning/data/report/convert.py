"""`finetune data prepare`: any readable data into the specification's folder, or into Megatron's files.

Bad samples and duplicates are dropped and listed; near duplicates stay together in one part, so that nothing leaks from
training into validation or test. The same input and seed give the same files, byte for byte.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetuning.data.prompts.prompt_format import PromptFormat
from finetuning.data.reading.check import Selection
from finetuning.data.reading.columns import Columns
from finetuning.data.reading.findings import Finding, excerpt
from finetuning.data.reading.json_array import read_json_array
from finetuning.data.reading.records import Sample
from finetuning.data.reading.sources import SPLITS, parse, read_batches
from finetuning.data.report.forms import FORMS
from finetuning.data.tokens.megatron import write_megatron


@dataclass(frozen=True)
class Part:
    """How many samples went where."""

    name: str
    samples: int


def split_groups(groups: np.ndarray, shares: tuple[float, ...], seed: int) -> np.ndarray:
    """The part of each sample: whole groups, shuffled, until each part has its share; training takes the rest.

    Example: groups [0, 1, 1, 2], shares (0.5, 0.25, 0.25) -> training gets group 1, the others one sample each.
    """
    count = len(groups)
    part = np.zeros(count, np.int64)
    numbers, members = np.unique(groups, return_counts=True)
    order = np.argsort(np.random.PCG64(np.random.SeedSequence([seed, count])).random_raw(len(numbers)), kind="stable")
    wanted = [max(1, round(count * share)) if share > 0 else 0 for share in shares]
    target = np.zeros(len(numbers), np.int64)
    place = 0
    for held_out in range(1, len(shares)):
        taken = 0
        while taken < wanted[held_out] and place < len(order) - 1:
            if members[order[place]] <= 2 * wanted[held_out]:  # a large group of look-alikes belongs into training
                target[order[place]] = held_out
                taken += int(members[order[place]])
            place += 1
    part[:] = target[np.searchsorted(numbers, groups)]
    return part


def write_folder(
    paths: list[Path], selection: Selection, part: np.ndarray, folder: Path, form: str = "jsonl", columns: Columns = ()
) -> tuple[list[Part], list[Finding]]:
    """Writes training.jsonl, validation.jsonl and test.jsonl, samples in their order; those of part -1 are left out.

    Also returns those that the form, one of FORMS, has no place for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places = zip(selection.file.tolist(), selection.lines.tolist(), strict=True)
    chosen = dict(zip(places, part.tolist(), strict=True))
    counts = [0] * len(SPLITS)
    unplaced: list[Finding] = []
    files = [(folder / f"{name}.jsonl").open("w", encoding="utf-8", newline="\n") for name in SPLITS]
    try:
        for index, path in enumerate(paths):
            for sample in read_samples(path, columns):
                number = chosen.get((index, sample.line), -1)
                if number < 0:
                    continue
                record = FORMS[form](sample)
                if record is None:
                    unplaced.append(Finding("no_place_in_form", path.name, sample.line, {"form": form}, excerpt(sample.input)))
                    continue
                files[number].write(json.dumps(record, ensure_ascii=False) + "\n")
                counts[number] += 1
    finally:
        for file in files:
            file.close()
    for name, count in zip(SPLITS, counts, strict=True):
        if not count:
            (folder / f"{name}.jsonl").unlink()
    return [Part(name, count) for name, count in zip(SPLITS, counts, strict=True)], unplaced


def write_megatron_parts(
    paths: list[Path],
    selection: Selection,
    part: np.ndarray,
    folder: Path,
    prompt_format: PromptFormat,
    columns: Columns = (),
) -> list[Part]:
    """Writes `training_text_document.bin` and `.idx`, and the same for the other parts: one document a sample."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for number, name in enumerate(SPLITS):
        files, lines = selection.file[part == number].tolist(), selection.lines[part == number].tolist()
        wanted = set(zip(files, lines, strict=True))
        if wanted:
            documents = _documents(paths, wanted, prompt_format, columns)
            count = write_megatron(folder / f"{name}_text_document", documents, prompt_format.facts.vocab_size)
            parts.append(Part(name, count))
    return parts


def read_samples(path: Path, columns: Columns = ()) -> Iterator[Sample]:
    """The usable samples of a file, in order."""
    for batch in read_batches(path):
        if not isinstance(batch, Finding):
            for number, record in batch.records:
                sample = parse(record, number, columns=columns)[0]
                if sample is not None:
                    yield sample


def unpack_json_array(path: Path, target: Path) -> None:
    """Writes the values of a JSON array as lines, so that they can be read like any other file."""
    with target.open("w", encoding="utf-8", newline="\n") as file:
        for line in read_json_array(path):
            file.write(line + "\n")


def _documents(
    paths: list[Path], wanted: set[tuple[int, int]], prompt_format: PromptFormat, columns: Columns
) -> Iterator[np.ndarray]:
    for index, path in enumerate(paths):
        for sample in read_samples(path, columns):
            if (index, sample.line) in wanted:
                yield prompt_format.encode(sample)[0]
