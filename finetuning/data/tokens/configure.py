"""The data set of a run: which files, which split, which prompt format, and everything that is wrong with it.

`configure_dataset` is the specification's name. It reads and tokenizes on the launching machine, before anything is
started; the workers only see the arrays it leaves behind (`finetuning.data.tokens.tokenized`).
"""

import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from finetuning.config.mixture import Entry
from finetuning.data.prompts.prompt_format import PromptFormat, load_prompt_format
from finetuning.data.prompts.sample_pieces import ALL_ANSWERS
from finetuning.data.reading.check import Report, bad_lines, read_report, scan_sources, split_98_1_1
from finetuning.data.reading.columns import Columns, parse_columns
from finetuning.data.reading.findings import ERROR, ERRORS, FILE_ERRORS, Finding
from finetuning.data.reading.leakage import read_digests
from finetuning.data.reading.records import Sample
from finetuning.data.reading.scan import REFUSE, ScanSettings
from finetuning.data.reading.sources import (
    SPLITS,
    Source,
    begins_with_text,
    find_sources,
    fingerprint,
    read_samples_at,
    stem_of,
)
from finetuning.data.report.terminal import reading_progress
from finetuning.data.tokens.megatron import read_megatron, with_ending
from finetuning.data.tokens.tokenized import SPLIT_FILE, Split, open_split
from finetuning.errors import InputError
from finetuning.files.atomic import INCOMPLETE, delete, sync, sync_folder, tells_no_room
from finetuning.files.sealed import damage_of, seal
from finetuning.i18n import t

LISTED_PROBLEMS = 20
LAYOUT_VERSION = 6  # of the arrays and of what a check finds: a change makes old tokens unused
REPORT_FILE = "report.json"


@dataclass(frozen=True)
class Dataset:
    """A checked, tokenized data set."""

    folder: Path  # of the arrays, one folder a split
    sources: dict[str, Source]
    prompt_format: PromptFormat
    splits: Mapping[str, Split]
    was_split: bool  # a raw file was split 98/1/1
    fingerprint: str  # of the files' bytes and the split
    example: Sample | None  # the first training sample; None: Megatron data, which has no text
    report: Report
    damage: str | None = None  # of the tokens of before, which were built anew
    mixture: "tuple[SourceDataset, ...]" = ()  # of several sources; none: it is one

    @property
    def folders(self) -> list[Path]:
        """Its own and those of its sources."""
        return [self.folder, *(source.dataset.folder for source in self.mixture)]


@dataclass(frozen=True)
class SourceDataset:
    """A source of a mixture."""

    entry: Entry
    dataset: Dataset
    part: int  # of the sum of all parts


def configure_dataset(
    dataset_path: str | Path,
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
    """Finds, checks and tokenizes the data set of a run.

    Args:
        dataset_path: folder with training.jsonl (and validation.jsonl, test.jsonl), or with one raw .jsonl, which is
            split 98/1/1; or the path of that raw file. `.jsonl.gz`, `.jsonl.zst` and `.parquet` work as well, and a folder
            or prefix of Megatron's .bin and .idx.
        model_path: local model folder in Hugging Face format; only its tokenizer is read.
        tokens_dir: where the arrays go, in a sub-folder named by content; reused when it is there. Several processes may
            ask for the same one at once: one builds it, the others wait.
        seq_length: longest sample, in tokens.
        prompt_template: text with {input} and {output}; None: the tokenizer's chat template.
        system_prompt: system message of the chat template.
        truncation: what happens to a longer sample: refuse, cut_input or drop.
        skip_bad_samples: drop what cannot be used, instead of refusing the data.
        train_on: all_answers, or last_answer of each sample.
        columns: names that fields have in the data, `input=question,output=answer.text`.

    Raises:
        InputError: listing the problems, at most LISTED_PROBLEMS lines of each file.
    """
    path, tokens_dir = Path(dataset_path), Path(tokens_dir)
    named = parse_columns(columns)
    megatron = find_megatron(path)
    sources = megatron or find_sources(path)
    if megatron:
        texts = {"prompt_template": prompt_template, "system_prompt": system_prompt}
        texts |= {"train_on": train_on if train_on != ALL_ANSWERS else None, "columns": columns}
        useless = [t("--{name} has no effect: Megatron data holds tokens", name=name) for name, text in texts.items() if text]
        if useless:
            raise InputError(useless)
    try:
        needs_template = not megatron and not begins_with_text(sources["training"].path, named)
        prompt_format = load_prompt_format(
            Path(model_path), prompt_template, system_prompt, needs_template=needs_template, train_on=train_on
        )
    except InputError as error:  # of the model; what is wrong with the data is told as well
        raise InputError(error.problems + ([] if megatron else check_files(path, columns))) from None
    identity = fingerprint(sources)
    template = [prompt_format.fingerprint, prompt_format.template_digest, prompt_format.table_size]
    facts = [LAYOUT_VERSION, identity, *template, seq_length, truncation, skip_bad_samples, train_on, columns]
    folder = tokens_dir / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def build(target: Path) -> None:
        if megatron:
            _write_megatron_splits(sources, target, seq_length)
        else:
            settings = ScanSettings(prompt_format, seq_length, truncation, named)
            with reading_progress([source.path for source in sources.values()]) as progress:
                report = scan_sources(sources, settings, target, progress)
            _refuse_bad_data(report, sources, skip_bad_samples)
            (target / REPORT_FILE).write_text(json.dumps(report.as_json(), ensure_ascii=False), encoding="utf-8")

    damage = build_once(folder, build)
    with suppress(OSError):  # of somebody else, on a read-only file system
        os.utime(folder)  # when it was last used, for `finetune data prune`
    splits: dict[str, Split] = {name: open_split(folder / name) for name in sources}
    report = Report() if megatron else read_report(folder / REPORT_FILE)
    report.digests = read_digests(folder)
    example = None if megatron else _first_sample(sources["training"], splits["training"], named)
    was_split = any(source.is_shared for source in sources.values())
    return Dataset(folder, sources, prompt_format, splits, was_split, identity, example, report, damage)


def _first_sample(source: Source, split: Split, columns: Columns) -> Sample:
    return next(iter(read_samples_at(source.path, {int(split.lines[0])}, columns).values()))


def check_files(path: Path, columns: str | None = None) -> list[str]:
    """What is wrong with the files of a data set, as far as it can be told without a model."""
    try:
        sources = find_sources(path)
        _refuse_bad_data(
            scan_sources(sources, ScanSettings(None, 0, columns=parse_columns(columns))), sources, skip_bad_samples=False
        )
    except InputError as error:
        return error.problems
    return []


def build_once(folder: Path, build: Callable[[Path], None]) -> str | None:
    """Makes `folder` by `build(temporary folder)` unless it is there; it appears complete or not at all.

    Safe when several processes, also on several machines, do it at once, and when one of them is killed half-way. What is
    there is compared with what was written; where it is damaged it is built anew, and what was damaged is returned.

    Raises:
        NoRoom: the disk is full; what was written so far is removed.
    """
    if folder.is_dir() and damage_of(folder) is None:
        return None
    lock_file = folder.parent / f"{folder.name}.lock"
    with tells_no_room(folder.parent), _open_in_folder(lock_file) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released by the system when its holder dies
        damage = damage_of(folder) if folder.is_dir() else None
        if folder.is_dir() and damage is None:
            return None
        if damage is not None:
            delete(folder)
        # The name is our own, should the file system not know locks.
        temporary = folder.parent / f"{INCOMPLETE}{folder.name}-{socket.gethostname()}-{os.getpid()}"
        _remove_abandoned(folder)
        try:
            build(temporary)
            seal(temporary)
            sync_folder(temporary)
            try:
                temporary.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
            sync(folder.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            lock_file.unlink(missing_ok=True)  # who waits for it still gets it; a second builder has a name of its own
            with suppress(OSError):
                folder.parent.rmdir()  # only where nothing else is in it: a failed build leaves nothing
    return damage


def _open_in_folder(file: Path) -> TextIO:
    """Opens a file for appending, and makes its folder, which another process may be removing."""
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            return file.open("a", encoding="utf-8")
        except FileNotFoundError:
            continue


def _remove_abandoned(folder: Path) -> None:
    """What builders of this machine that were killed have left."""
    host = socket.gethostname()
    for pattern in (f"{INCOMPLETE}{folder.name}-{host}-*", f"{folder.name}.{host}-*.incomplete"):  # the latter of before 0.2
        for left in folder.parent.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)


def problems_of(report: Report) -> list[str]:
    """The errors as lines to read, at most LISTED_PROBLEMS of each file."""
    problems: list[str] = []
    by_file: dict[str, list[Finding]] = {}
    for finding in bad_lines(report.findings):
        by_file.setdefault(finding.file, []).append(finding)
    for file in dict.fromkeys(file.name for file in report.files):
        found = by_file.get(file, [])
        problems += [str(finding) for finding in found[:LISTED_PROBLEMS]]
        total = sum(number for (name, code), number in report.findings.counts.items() if name == file and code in ERRORS)
        if total > LISTED_PROBLEMS:
            problems.append(t("{file}: and {rest} more line{rest:s} like these", file=file, rest=total - LISTED_PROBLEMS))
    return problems


def _refuse_bad_data(report: Report, sources: dict[str, Source], skip_bad_samples: bool) -> None:
    bad = bad_lines(report.findings)
    if skip_bad_samples:
        bad = [finding for finding in bad if finding.code in FILE_ERRORS]
    problems = [str(finding) for finding in bad] if skip_bad_samples else problems_of(report)
    told = {finding.file for finding in bad}
    for file in report.files:
        if file.samples == 0 and file.name not in told:
            problems.append(t("{path}: holds no samples", path=file.name))
        elif file.samples < len(SPLITS) and report.was_split and not problems:
            problems.append(
                t(
                    "{path}: {count} sample{count:s} cannot be split into training, validation and test; 3 are needed",
                    path=file.name,
                    count=file.samples,
                )
            )
    if not problems:
        return
    usable = sum(file.samples for file in report.files)
    if usable and report.findings.count(ERROR) and not skip_bad_samples and not any(f.code in FILE_ERRORS for f in bad):
        total = sum(file.records for file in report.files)
        problems.append(t("--skip_bad_samples would drop {bad} of {total} sample{total:s}", bad=total - usable, total=total))
    raise InputError(problems)


def find_megatron(path: Path) -> dict[str, Source]:
    """The splits of Megatron data: a prefix, its .bin or .idx, or a folder with `training*.bin` or one pair.

    Empty where it is none, or where the folder has other training data as well.
    """
    if path.is_dir():
        if any(stem_of(file) == "training" for file in path.iterdir()):
            return {}
        pairs = sorted(file for file in path.glob("*.idx") if with_ending(file, ".bin").is_file())
        named = {name: [file for file in pairs if file.name.startswith(name)] for name in SPLITS}
        if named["training"] and all(len(files) <= 1 for files in named.values()):
            return {name: Source(with_ending(files[0], ".bin")) for name, files in named.items() if files}
        if len(pairs) == 1:
            return {name: Source(with_ending(pairs[0], ".bin"), is_shared=True) for name in SPLITS}
        if pairs:
            raise InputError(
                t(
                    "--dataset_path {path}: {files} — name them training*.bin, validation*.bin and test*.bin, or give one of "
                    "them",
                    path=path,
                    files=", ".join(file.name for file in pairs),
                )
            )
        return {}
    if path.suffix in (".bin", ".idx") or with_ending(path, ".idx").is_file():
        return {name: Source(with_ending(path, ".bin"), is_shared=True) for name in SPLITS}
    return {}


def _write_megatron_splits(sources: dict[str, Source], folder: Path, seq_length: int) -> None:
    for name, source in sources.items():
        documents = np.arange(len(read_megatron(source.path)))
        if source.is_shared:
            if len(documents) < len(SPLITS):
                raise InputError(
                    t(
                        "{path}: {count} document{count:s} cannot be split into training, validation and test; 3 are needed",
                        path=source.path,
                        count=len(documents),
                    )
                )
            documents = documents[split_98_1_1(len(documents)) == SPLITS.index(name)]
        if not len(documents):
            raise InputError(t("{path}: holds no samples", path=source.path))
        (folder / name).mkdir(parents=True)
        np.save(folder / name / "documents.npy", documents)
        settings = {"megatron": str(source.path.resolve()), "seq_length": seq_length}
        (folder / name / SPLIT_FILE).write_text(json.dumps(settings), encoding="utf-8")
