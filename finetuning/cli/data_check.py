"""`finetune data check`: all that is wrong or suspicious in data, of one set or of a mixture; and what other verbs share."""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from finetuning.config.llama import read_llama_config
from finetuning.config.mixture import Entry, divide, read_mixture
from finetuning.config.settings import RunConfig
from finetuning.config.strategy import GRANULARITY, PackPlan
from finetuning.data.batches.packing_statistics import PackingFacts, packing_facts
from finetuning.data.batches.source_order import Shares
from finetuning.data.prompts.prompt_format import PromptFormat, load_prompt_format
from finetuning.data.reading.check import Report, scan_sources, split_98_1_1
from finetuning.data.reading.columns import Columns, described, parse_columns
from finetuning.data.reading.mixed_report import mixed_report
from finetuning.data.reading.scan import ScanSettings
from finetuning.data.reading.sources import SPLITS, Source, begins_with_text, find_sources, stem_of
from finetuning.data.report.html import report_page
from finetuning.data.report.preview import Preview, preview_line
from finetuning.data.report.shares import share_lines
from finetuning.data.report.terminal import reading_progress, show_report
from finetuning.data.tokens.configure import find_megatron
from finetuning.data.tokens.mixture import with_defaults
from finetuning.errors import EXIT_BAD_INPUT, EXIT_FINISHED, InputError
from finetuning.files.atomic import temporary_folder
from finetuning.i18n import t
from finetuning.launch.fetch_data import locate_data
from finetuning.launch.hub import find_model

DEFAULTS = RunConfig(hf_model_id="", dataset_path="")


@dataclass(frozen=True)
class Checked:
    """A data set, and how its samples are read and written."""

    name: str  # of a source of a mixture; "": it is all there is
    sources: dict[str, Source]
    columns: Columns
    prompt_format: PromptFormat | None  # None: without a model


def check_data(given: argparse.Namespace, console: Console) -> int:
    with tempfile.TemporaryDirectory(dir=temporary_folder()) as scratch:
        return _check_data(given, console, Path(scratch))


def _check_data(given: argparse.Namespace, console: Console, scratch: Path) -> int:
    entries = mixture_in(given.paths, scratch)
    named = list(given.paths)
    if not entries and len(given.paths) == 1:
        given.paths = [locate_data(given.paths[0], None, scratch, {}).path]
    model_path = find_model(given.hf_model_id, None, with_weights=False) if given.hf_model_id else None
    parts = [_part(entry, _splits_of(entry), given, model_path) for entry in entries_with_flags(entries, given)]
    parts = parts or [_part(flags_as_entry(given), _sources_of(given.paths), given, model_path)]
    reports = []
    for part in parts:
        if part.columns:
            where = f"{part.name}: " if part.name else ""
            console.print(where + t("columns: {columns}", columns=described(part.columns)), highlight=False)
        settings = ScanSettings(part.prompt_format, given.seq_length, given.truncation, part.columns)
        with reading_progress([source.path for source in part.sources.values()]) as progress:
            reports.append(scan_sources(part.sources, settings, None, progress))
    report, shares = _mixed(entries, parts, reports) if entries else (reports[0], None)
    facts = _packing(report, given, read_llama_config(model_path).attention_cost, shares) if model_path else None
    show_report(console, report, facts)
    lines = share_lines([entry.name for entry in entries], shares, shares.epoch) if shares else []
    for line in lines:
        console.print(t("an epoch: {line}", line=line), highlight=False)
    if model_path is None:
        console.print(t("tokens were not counted; give --hf_model_id for lengths, packing and previews"))
    if given.json:
        value = report.as_json() | {"packing": facts.as_json() if facts else None} | ({"mixture": lines} if lines else {})
        write_file(given.json, json.dumps(value, ensure_ascii=False, indent=1), console)
    if given.html:
        previews = [preview for part, each in zip(parts, reports, strict=True) for preview in _previews(part, each)]
        subject = ", ".join(named)
        write_file(given.html, report_page(report, facts, previews, subject, lines), console)
    return EXIT_BAD_INPUT if report.has_errors or not any(file.samples for file in report.files) else EXIT_FINISHED


def mixture_in(paths: Sequence[str], scratch: Path) -> list[Entry]:
    """The sources of the mixture that is named, if it is one; what is not here is fetched into `scratch`."""
    entries = read_mixture(paths[0]) if len(paths) == 1 else []
    return [entry._replace(path=locate_data(entry.path, None, scratch, {}).path) for entry in entries]


def entries_with_flags(entries: Sequence[Entry], given: argparse.Namespace) -> list[Entry]:
    return [with_defaults(entry, flags_as_entry(given)) for entry in entries]


def flags_as_entry(given: argparse.Namespace) -> Entry:
    return Entry("", "", prompt_template=given.prompt_template, system_prompt=given.system_prompt, columns=given.columns)


def prompt_format_of(entry: Entry, model_path: Path, file: Path, train_on: str = DEFAULTS.train_on) -> PromptFormat:
    """How samples are written that are like the first of a file."""
    return load_prompt_format(
        model_path,
        entry.prompt_template,
        entry.system_prompt or None,
        needs_template=not begins_with_text(file, parse_columns(entry.columns)),
        train_on=train_on,
    )


def previews_of(
    sources: dict[str, Source], report: Report, prompt_format: PromptFormat, columns: Columns = ()
) -> list[Preview]:
    """The first usable sample of each split."""
    filled = [name for name in sources if report.splits[name].samples]
    return [preview_line(sources[name], None, prompt_format, columns=columns) for name in filled]


def write_file(path: Path, text: str, console: Console) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(t("cannot write to {folder}: {reason}", folder=path, reason=error.strerror or error)) from None
    console.print(t("written: {path}", path=path))


def _part(entry: Entry, sources: dict[str, Source], given: argparse.Namespace, model_path: Path | None) -> Checked:
    first = next(iter(sources.values())).path
    prompt_format = prompt_format_of(entry, model_path, first, given.train_on) if model_path else None
    return Checked(entry.name, sources, parse_columns(entry.columns), prompt_format)


def _mixed(entries: Sequence[Entry], parts: Sequence[Checked], reports: Sequence[Report]) -> tuple[Report, Shares | None]:
    """The reports as one, and the order of the mixture; None: a source has no sample that can be used."""
    by_name = {part.name: report for part, report in zip(parts, reports, strict=True)}
    counts = {
        split: np.concatenate([report.counts[split] for report in reports if split in report.counts])
        for split in SPLITS
        if any(split in report.counts for report in reports)
    }
    mixed = mixed_report(by_name, {})
    mixed.counts = counts
    sizes = [_training_samples(part, report) for part, report in zip(parts, reports, strict=True)]
    if not all(sizes):
        return mixed, None
    division = divide(entries, sizes)
    return mixed, Shares(tuple(sizes), division.parts, division.epoch)


def _training_samples(part: Checked, report: Report) -> int:
    source = part.sources["training"]
    samples = next(file.samples for file in report.files if file.name == source.path.name)
    return int((split_98_1_1(samples) == SPLITS.index("training")).sum()) if source.is_shared and samples else samples


def _previews(part: Checked, report: Report) -> list[Preview]:
    if part.prompt_format is None:
        return []
    found = previews_of(part.sources, report, part.prompt_format, part.columns)
    return [replace(preview, file=f"{part.name}/{preview.file}") for preview in found] if part.name else found


def _packing(report: Report, given: argparse.Namespace, attention_cost: float, shares: Shares | None) -> PackingFacts | None:
    name = next(iter(report.counts), None)
    if name is None or not len(report.counts[name]):
        return None
    capacity = given.row_length or given.micro_batch_size * given.seq_length
    return packing_facts(
        report.counts[name],
        global_batch_size=given.global_batch_size,
        data_parallel_size=given.data_parallel_size,
        plan=PackPlan(capacity, GRANULARITY["cuda"], attention_cost),
        seed=DEFAULTS.seed,
        shares=shares,
    )


def _splits_of(entry: Entry) -> dict[str, Source]:
    path = Path(entry.path)
    if find_megatron(path):
        raise InputError(t("{path}: Megatron data holds tokens; there is no text to check", path=path))
    return find_sources(path)


def _sources_of(given: Sequence[str]) -> dict[str, Source]:
    """A folder's splits, or each file as a part of its own."""
    paths = list(map(Path, given))
    if len(paths) == 1 and paths[0].is_dir() and find_megatron(paths[0]):
        raise InputError(t("{path}: Megatron data holds tokens; there is no text to check", path=paths[0]))
    if len(paths) == 1 and paths[0].is_dir():
        return find_sources(paths[0])
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise InputError([t("{path}: there is no such file", path=path) for path in missing])
    unknown = [path for path in paths if stem_of(path) is None]
    if unknown:
        raise InputError([t("{path}: not a data file", path=path) for path in unknown])
    stems = [stem_of(path) or path.name for path in paths]
    names = stems if len(set(stems)) == len(stems) else [str(path) for path in paths]
    return dict(zip(names, map(Source, paths), strict=True))
