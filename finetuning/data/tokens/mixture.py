"""The data set of a run that mixes several: each source checked and tokenized by itself, then named together.

Tokens of a source do not depend on the others: other shares, or one source more, make nothing anew.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from finetuning.config.mixture import Division, Entry, divide
from finetuning.data.prompts.prompt_format import load_prompt_format
from finetuning.data.prompts.sample_pieces import ALL_ANSWERS
from finetuning.data.reading.mixed_report import mixed_report
from finetuning.data.reading.scan import REFUSE
from finetuning.data.reading.sources import SPLITS
from finetuning.data.tokens.configure import Dataset, SourceDataset, build_once, configure_dataset, find_megatron
from finetuning.data.tokens.tokenized import open_split, write_mixed_split
from finetuning.errors import InputError


def configure_mixture(
    entries: Sequence[Entry],
    model_path: str | Path,
    tokens_dir: str | Path,
    *,
    seq_length: int,
    prompt_template: str | None = None,
    system_prompt: str | None = None,
    truncation: str = REFUSE,
    skip_bad_samples: bool = False,
    train_on: str = ALL_ANSWERS,
    columns: str | None = None,
) -> Dataset:
    """`configure_dataset` of several sources; the arguments are those of the sources that have none of their own.

    Raises:
        InputError: listing the problems of all sources, each with its name.
    """
    tokens_dir = Path(tokens_dir)
    given = Entry("", "", prompt_template=prompt_template, system_prompt=system_prompt, columns=columns)
    entries = [with_defaults(entry, given) for entry in entries]
    found: list[Dataset] = []
    problems: list[str] = []
    for entry in entries:
        is_text = not find_megatron(Path(entry.path))
        try:
            dataset = configure_dataset(
                entry.path,
                model_path,
                tokens_dir,
                seq_length=seq_length,
                prompt_template=entry.prompt_template,
                system_prompt=entry.system_prompt or None,
                truncation=truncation,
                skip_bad_samples=skip_bad_samples,
                train_on=train_on if is_text else ALL_ANSWERS,
                columns=entry.columns,
            )
        except InputError as error:
            problems += [f"{entry.name}: {problem}" for problem in error.problems]
        else:
            found.append(dataset)
    if problems:
        raise InputError(problems)
    division = divide(entries, [len(dataset.splits["training"]) for dataset in found])
    folder = tokens_dir / _name(entries, found, division)
    names = {split: [place for place, each in enumerate(found) if split in each.splits] for split in SPLITS}

    def build(target: Path) -> None:
        for split, places in names.items():
            sources = {
                entries[place].name: (f"../../{found[place].folder.name}/{split}", division.parts[place]) for place in places
            }
            if sources:
                write_mixed_split(target / split, sources, division.epoch)

    damage = build_once(folder, build)
    with suppress(OSError):  # of somebody else, on a read-only file system
        os.utime(folder)
    splits = {split: open_split(folder / split) for split, places in names.items() if places}
    first = found[0]
    return Dataset(
        folder,
        {split: found[places[0]].sources[split] for split, places in names.items() if places},
        load_prompt_format(
            Path(model_path),
            prompt_template,
            system_prompt,
            needs_template=any(
                dataset.prompt_format.has_template and entry.prompt_template is None
                for entry, dataset in zip(entries, found, strict=True)
            ),
            train_on=train_on,
        ),
        splits,
        any(dataset.was_split for dataset in found),
        hashlib.sha256(" ".join(dataset.fingerprint for dataset in found).encode()).hexdigest()[:16],
        first.example,
        mixed_report(
            {entry.name: dataset.report for entry, dataset in zip(entries, found, strict=True)},
            {split: (np.asarray(each.lengths) + 1, np.asarray(each.answer_tokens)) for split, each in splits.items()},
        ),
        next((dataset.damage for dataset in found if dataset.damage is not None), damage),
        tuple(map(SourceDataset, entries, found, division.parts)),
    )


def with_defaults(entry: Entry, given: Entry) -> Entry:
    """What an entry does not say is as the flags say; a template of its own leaves no place for their system message."""
    if find_megatron(Path(entry.path)):
        return entry
    system_prompt = entry.system_prompt
    if system_prompt is None and entry.prompt_template is None:
        system_prompt = given.system_prompt
    return entry._replace(
        prompt_template=entry.prompt_template if entry.prompt_template is not None else given.prompt_template,
        system_prompt=system_prompt,
        columns=entry.columns if entry.columns is not None else given.columns,
    )


def _name(entries: Sequence[Entry], found: Sequence[Dataset], division: Division) -> str:
    facts = [[entry.name, dataset.folder.name] for entry, dataset in zip(entries, found, strict=True)]
    return hashlib.sha256(json.dumps(["mixture", facts, division.parts, division.epoch]).encode()).hexdigest()[:16]
