"""`finetune data check | preview | prepare | ledger | prune | schema`: training data, looked at before and after a training."""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from finetuning.cli.common_flags import FlagParser, add_columns_flag, add_common_flags
from finetuning.cli.data_check import check_data, entries_with_flags, flags_as_entry, mixture_in, prompt_format_of, write_file
from finetuning.cli.data_ledger import print_ledger
from finetuning.config.mixture import Entry
from finetuning.config.rules import check_settings
from finetuning.config.settings import CHOICES, RunConfig
from finetuning.data.reading.check import Report, scan_sources
from finetuning.data.reading.columns import described, parse_columns
from finetuning.data.reading.findings import FILE_ERRORS, Finding, Findings
from finetuning.data.reading.scan import ScanSettings
from finetuning.data.reading.schema import record_schema
from finetuning.data.reading.sources import SPLITS, SUFFIXES, Source, find_sources, read_batches, stem_of
from finetuning.data.report.convert import (
    split_groups,
    unpack_json_array,
    write_folder,
    write_megatron_parts,
)
from finetuning.data.report.forms import FORMS
from finetuning.data.report.html import report_page
from finetuning.data.report.preview import preview_line, preview_text
from finetuning.data.report.terminal import SHOWN_PER_CODE, reading_progress, show_findings
from finetuning.data.tokens.prune import find_unused, remove_unused
from finetuning.errors import EXIT_BAD_INPUT, EXIT_FINISHED, InputError
from finetuning.files.atomic import temporary_folder
from finetuning.i18n import set_language, t
from finetuning.launch.fetch_data import locate_data
from finetuning.launch.hub import find_model
from finetuning.terminal import open_console

MEGATRON = "megatron"
DEFAULTS = RunConfig(hf_model_id="", dataset_path="")


def main(argv: Sequence[str]) -> int:
    """Runs the verb and returns its exit code: 0, or 2 where the data has errors."""
    parser = build_parser()
    given = parser.parse_args(argv)
    if given.lang:
        set_language(given.lang)
    _refuse_bad_numbers(given)
    action: Callable[[argparse.Namespace, Console], int] = given.action
    return action(given, open_console())


def _refuse_bad_numbers(given: argparse.Namespace) -> None:
    names = ("global_batch_size", "micro_batch_size", "row_length", "seq_length")
    problems = check_settings(replace(DEFAULTS, **{name: getattr(given, name) for name in names if hasattr(given, name)}))
    if getattr(given, "data_parallel_size", 1) < 1:
        problems.append(
            t(
                "--{name} {value}: {rule}",
                name="data_parallel_size",
                value=given.data_parallel_size,
                rule=t("must be 1 or more"),
            )
        )
    if problems:
        raise InputError(problems)


def build_parser() -> argparse.ArgumentParser:
    parser = FlagParser(
        prog="finetune data", description=t("Training data, looked at before and after a training."), add_help=False
    )
    parser.add_argument("-h", "--help", action="help", help=t("show this help and stop"))
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    check = verbs.add_parser(
        "check", help=t("report everything that is wrong or suspicious, with file and line"), add_help=False
    )
    check.set_defaults(action=check_data)
    check.add_argument(
        "paths", nargs="+", metavar="PATH", help=t("data folder, or files; or a mixture, as --dataset_path takes it")
    )
    _add_sample_flags(check, needs_model=False)
    _add_train_on(check)
    check.add_argument("--truncation", choices=CHOICES["truncation"], default="refuse", help=t("of a sample that is too long"))
    check.add_argument(
        "-g",
        "--global_batch_size",
        type=int,
        default=DEFAULTS.global_batch_size,
        metavar="N",
        help=t("samples per optimizer step, for the steps of an epoch and the packing"),
    )
    check.add_argument(
        "-m",
        "--micro_batch_size",
        type=int,
        default=DEFAULTS.micro_batch_size,
        metavar="N",
        help=t("a packed row may hold micro_batch_size x seq_length tokens"),
    )
    check.add_argument(
        "--row_length", type=int, metavar="N", help=t("tokens of a packed row; default: micro_batch_size x seq_length")
    )
    check.add_argument("--data_parallel_size", type=int, default=1, metavar="N", help=t("ranks that share a global batch"))
    check.add_argument("--json", type=Path, metavar="FILE", help=t("also write the report as JSON"))
    check.add_argument("--html", type=Path, metavar="FILE", help=t("also write the report as a page for a browser"))

    preview = verbs.add_parser("preview", help=t("show a sample exactly as the model sees it"), add_help=False)
    preview.set_defaults(action=_preview)
    preview.add_argument("path", metavar="PATH", help=t("data folder or file; or a mixture, as --dataset_path takes it"))
    preview.add_argument("--source", metavar="NAME", help=t("of a mixture, the source; default: the first"))
    _add_sample_flags(preview, needs_model=True)
    _add_train_on(preview)
    preview.add_argument("--split", choices=SPLITS, default="training", help=t("file of the folder"))
    preview.add_argument("--line", type=int, metavar="N", help=t("line of the file; default: the first that can be used"))
    preview.add_argument("--ids", action="store_true", help=t("also list every token with its id"))
    preview.add_argument("--html", type=Path, metavar="FILE", help=t("also write a page for a browser"))

    prepare = verbs.add_parser("prepare", help=t("convert data, drop duplicates, and split it without leakage"), add_help=False)
    prepare.set_defaults(action=_prepare)
    prepare.add_argument("source", type=Path, metavar="SRC", help=t("file, or folder of files, in any readable format"))
    prepare.add_argument("target", type=Path, metavar="OUT", help=t("folder to write; must be new or empty"))
    _add_sample_flags(prepare, needs_model=False)
    prepare.add_argument(
        "--to",
        choices=(*FORMS, MEGATRON),
        default="jsonl",
        help=t(
            "what the files hold: openai, sharegpt, input_output, or each sample as short as it can be (jsonl); or megatron: "
            ".bin and .idx"
        ),
    )
    prepare.add_argument("--validation_share", type=float, default=0.01, metavar="X", help=t("part of the samples, 0 to 0.5"))
    prepare.add_argument("--test_share", type=float, default=0.01, metavar="X", help=t("part of the samples, 0 to 0.5"))
    prepare.add_argument("--seed", type=int, default=DEFAULTS.seed, metavar="N", help=t("decides which samples are held out"))
    prepare.add_argument("--keep_duplicates", action="store_true", help=t("keep samples that are there twice"))

    ledger = verbs.add_parser("ledger", help=t("print the lines that a step of an experiment was trained on"), add_help=False)
    ledger.set_defaults(action=print_ledger)
    ledger.add_argument("-E", "--experiment", default=DEFAULTS.experiment, metavar="NAME", help=t("name of the experiment"))
    ledger.add_argument(
        "--experiments_dir",
        type=Path,
        default=Path(DEFAULTS.experiments_dir),
        metavar="FOLDER",
        help=t("folder that holds the experiments"),
    )
    ledger.add_argument("--step", type=int, metavar="N", help=t("optimizer step, from 1; default: a line for each step"))
    ledger.add_argument("--line", type=int, metavar="N", help=t("the steps that consumed this line instead"))
    ledger.add_argument("--source", metavar="NAME", help=t("of a mixture, only this source"))

    prune = verbs.add_parser("prune", help=t("remove tokens that no experiment needs any more"), add_help=False)
    prune.set_defaults(action=_prune)
    prune.add_argument(
        "--experiments_dir",
        type=Path,
        default=Path(DEFAULTS.experiments_dir),
        metavar="FOLDER",
        help=t("folder that holds the experiments"),
    )
    prune.add_argument(
        "--keep", type=int, default=3, metavar="N", help=t("newest ones without an experiment that stay all the same")
    )
    prune.add_argument("--dryrun", action="store_true", help=t("only say what would be removed"))
    schema = verbs.add_parser("schema", help=t("print the records that are read as JSON Schema"), add_help=False)
    schema.set_defaults(action=_schema)
    for verb in (check, preview, prepare, ledger, prune, schema):
        add_common_flags(verb)
    return parser


def _add_sample_flags(parser: argparse.ArgumentParser, *, needs_model: bool) -> None:
    parser.add_argument(
        "--hf_model_id",
        required=needs_model,
        metavar="MODEL",
        help=t("model whose tokenizer counts the tokens: a local folder, or a name on the hub"),
    )
    add_columns_flag(parser)
    parser.add_argument("--seq_length", type=int, default=DEFAULTS.seq_length, metavar="N", help=t("longest sample in tokens"))
    parser.add_argument(
        "--prompt_template", metavar="TEXT", help=t("text with {{input}} and {{output}} instead of the chat template")
    )
    parser.add_argument("--system_prompt", metavar="TEXT", help=t("system message put before every sample"))


def _add_train_on(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--train_on", choices=CHOICES["train_on"], default=DEFAULTS.train_on, help=t("answers of a sample that are trained")
    )


def _preview(given: argparse.Namespace, console: Console) -> int:
    with tempfile.TemporaryDirectory(dir=temporary_folder()) as scratch:
        return _preview_of(_entry_to_preview(given, Path(scratch)), given, console)


def _preview_of(entry: Entry, given: argparse.Namespace, console: Console) -> int:
    source = find_sources(Path(entry.path)).get(given.split)
    if source is None:
        raise InputError(t("{path}: has no {split} file", path=entry.path, split=given.split))
    model_path = find_model(given.hf_model_id, None, with_weights=False)
    prompt_format = prompt_format_of(entry, model_path, source.path, given.train_on)
    preview = preview_line(source, given.line, prompt_format, columns=parse_columns(entry.columns))
    console.print(preview_text(preview, with_ids=given.ids))
    if given.html:
        write_file(given.html, report_page(Report(), None, [preview], f"{preview.file}:{preview.line}"), console)
    return EXIT_FINISHED if all(holds for _, holds in preview.promises) else EXIT_BAD_INPUT


def _entry_to_preview(given: argparse.Namespace, scratch: Path) -> Entry:
    """The data set, or the source of a mixture."""
    entries = entries_with_flags(mixture_in([given.path], scratch), given)
    names = [entry.name for entry in entries]
    if given.source is not None and given.source not in names:
        known = ", ".join(names) or t("none")
        raise InputError(t("--source {name}: there is no such source; there are: {names}", name=given.source, names=known))
    if not entries:
        return flags_as_entry(given)._replace(path=locate_data(given.path, None, scratch, {}).path)
    return entries[names.index(given.source) if given.source is not None else 0]


def _prepare(given: argparse.Namespace, console: Console) -> int:
    _check_prepare(given)
    columns = parse_columns(given.columns)
    if columns:
        console.print(t("columns: {columns}", columns=described(columns)), highlight=False)
    model_path = None
    if given.to == MEGATRON:
        model_path = find_model(given.hf_model_id, None, with_weights=False)
    with tempfile.TemporaryDirectory(dir=temporary_folder()) as scratch:
        paths = _readable_files(given.source, Path(scratch))
        prompt_format = prompt_format_of(flags_as_entry(given), model_path, paths[0]) if model_path else None
        sources = {str(index): Source(path) for index, path in enumerate(paths)}
        with reading_progress(paths) as progress:
            report = scan_sources(sources, ScanSettings(None, 0, columns=columns), None, progress, is_one_body=True)
        if unread := [str(finding) for finding in report.findings.sorted() if finding.code in FILE_ERRORS]:
            raise InputError(unread)
        show_findings(console, report, SHOWN_PER_CODE)
        selection = report.selection
        assert selection is not None
        is_kept = ~selection.is_repeated | given.keep_duplicates
        shares = (1 - given.validation_share - given.test_share, given.validation_share, given.test_share)
        part = np.full(len(is_kept), -1)
        part[is_kept] = split_groups(selection.groups[is_kept], shares, given.seed)
        if not is_kept.any():
            raise InputError(t("{path}: holds no samples", path=given.source))
        if prompt_format is not None:
            parts = write_megatron_parts(paths, selection, part, given.target, prompt_format, columns)
        else:
            parts, unplaced = write_folder(paths, selection, part, given.target, given.to, columns)
            _show_unplaced(unplaced, console)
    records = sum(file.records for file in report.files)
    written = sum(part.samples for part in parts)
    sizes = ", ".join(f"{part.name} {part.samples:,}" for part in parts)
    console.print(
        t(
            "{folder}: {written:,} of {records:,} sample{records:s} written ({sizes}); the others are listed above",
            folder=given.target,
            written=written,
            records=records,
            sizes=sizes,
        )
    )
    return EXIT_FINISHED


def _show_unplaced(unplaced: list[Finding], console: Console) -> None:
    findings = Findings()
    findings.extend(unplaced)
    show_findings(console, Report(findings=findings), SHOWN_PER_CODE)


def _check_prepare(given: argparse.Namespace) -> None:
    problems = []
    for name in ("validation_share", "test_share"):
        if not 0 <= getattr(given, name) <= 0.5:
            problems.append(t("--{name} {value}: {rule}", name=name, value=getattr(given, name), rule=t("must be 0 to 0.5")))
    if given.to == MEGATRON and not given.hf_model_id:
        problems.append(t("--to megatron writes tokens; give the model whose tokenizer makes them as --hf_model_id"))
    if given.target.exists() and (not given.target.is_dir() or any(given.target.iterdir())):
        problems.append(t("{folder}: exists and is not empty; give a new folder", folder=given.target))
    if problems:
        raise InputError(problems)


def _readable_files(source: Path, scratch: Path) -> list[Path]:
    """The data files of SRC; a JSON array is unpacked into `scratch`.

    Raises:
        InputError: there is none.
    """
    if source.is_dir():
        candidates = sorted(file for file in source.iterdir() if file.is_file())
    elif source.is_file():
        candidates = [source]
    else:
        raise InputError(t("{path}: there is no such file", path=source))
    paths = []
    for file in candidates:
        if file.suffix == ".json" or (stem_of(file) and _is_array(file)):
            unpack_json_array(file, scratch / f"{file.name}.jsonl")
            paths.append(scratch / f"{file.name}.jsonl")
        elif stem_of(file):
            paths.append(file)
    if not paths:
        raise InputError(t("{path}: not a data file; use {suffixes}", path=source, suffixes=", ".join((*SUFFIXES, ".json"))))
    return paths


def _is_array(path: Path) -> bool:
    first = next(iter(read_batches(path)), None)
    return isinstance(first, Finding) and first.code == "json_array"


def _prune(given: argparse.Namespace, console: Console) -> int:
    if given.keep < 0:
        raise InputError(t("--{name} {value}: {rule}", name="keep", value=given.keep, rule=t("must be 0 or more")))
    unused = find_unused(given.experiments_dir, given.keep)
    for entry in unused:
        console.print(t("{folder}  {size:.1f} MiB", folder=entry.folder, size=entry.size / 2**20))
        if not given.dryrun:
            remove_unused(entry)
    size = sum(entry.size for entry in unused) / 2**20
    if given.dryrun:
        console.print(t("{count} folder{count:s} of tokens would be removed, {size:.1f} MiB", count=len(unused), size=size))
    else:
        console.print(t("{count} folder{count:s} of tokens removed, {size:.1f} MiB", count=len(unused), size=size))
    return EXIT_FINISHED


def _schema(given: argparse.Namespace, console: Console) -> int:
    print(json.dumps(record_schema(), ensure_ascii=False, indent=1))
    return EXIT_FINISHED
