"""What was found in the data, on a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from finetuning.data.batches.packing_statistics import PackingFacts
from finetuning.data.reading.check import HISTOGRAM_EDGES, Report, SplitReport
from finetuning.data.reading.check import Progress as ProgressFunction
from finetuning.data.reading.finding_words import title
from finetuning.data.reading.findings import ERROR, ERRORS, WARNING, Finding
from finetuning.i18n import t

SHOWN_PER_CODE = 5
BAR_WIDTH = 32


@contextmanager
def reading_progress(paths: list[Path]) -> Iterator[ProgressFunction]:
    """A progress bar over the bytes of these files, on the terminal's error stream; nothing elsewhere."""
    console = Console(stderr=True)
    total = sum(path.stat().st_size for path in set(paths))
    if not console.is_terminal:
        yield lambda count: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(t("reading the data"), total=total)
        yield lambda count: progress.update(task, advance=count)


def show_report(console: Console, report: Report, facts: PackingFacts | None) -> None:
    """Files, findings with their first places, lengths, packing."""
    for file in report.files:
        formats = " · ".join(file.formats) or t("nothing")
        _print(
            console,
            t(
                "{file}: {samples:,} usable of {records:,} record{records:s}, {formats}, {size:.1f} MiB",
                file=file.name,
                samples=file.samples,
                records=file.records,
                formats=formats,
                size=file.size / 2**20,
            ),
        )
    show_findings(console, report, SHOWN_PER_CODE)
    for name, split in report.splits.items():
        _print(
            console,
            t(
                "{split}: {samples:,} sample{samples:s}, {tokens:,} token{tokens:s}, {answers:,} of them answers, "
                "median {median:,}, longest "
                "{longest:,}",
                split=name,
                samples=split.samples,
                tokens=split.tokens,
                answers=split.answer_tokens,
                median=split.median,
                longest=split.longest,
            ),
            "bold",
        )
        for line in _histogram(split):
            _print(console, line)
    if facts is not None:
        _print(
            console,
            t(
                "packing: {steps:,} step{steps:s} per epoch of {batch} sample{batch:s}; {fill:.1%} of the computed "
                "positions are real tokens; "
                "the slowest of {ranks} rank{ranks:s} has {imbalance:.1%} more work than the mean; padded instead, it would be "
                "{padded:.1f} times as much",
                steps=facts.steps_per_epoch,
                batch=facts.global_batch_size,
                fill=facts.fill,
                ranks=facts.data_parallel_size,
                imbalance=facts.imbalance,
                padded=facts.padded,
            ),
        )
    errors, warnings = report.findings.count(ERROR), report.findings.count(WARNING)
    if errors:
        _print(
            console,
            t(
                "✗ {errors} error{errors:s}, {warnings} warning{warnings:s}: errors stop a training",
                errors=errors,
                warnings=warnings,
            ),
            "bold red",
        )
    else:
        _print(console, t("✓ no errors, {warnings} warning{warnings:s}", warnings=warnings), "bold green")


def show_findings(console: Console, report: Report, shown_per_code: int) -> None:
    by_code: dict[str, list[Finding]] = {}
    for finding in report.findings.sorted():
        by_code.setdefault(finding.code, []).append(finding)
    for code, total in report.findings.by_code().items():
        style = "bold red" if code in ERRORS else "yellow"
        _print(console, f"{title(code)} ({total:,})", style)
        for finding in by_code.get(code, [])[:shown_per_code]:
            _print(console, f"  {finding}")
        if total > shown_per_code:
            _print(console, "  " + t("… and {rest:,} more", rest=total - shown_per_code), "dim")


def finding_summary(report: Report) -> str:
    """One line: how many of each kind; empty when there is nothing."""
    return ", ".join(f"{title(code)} {total:,}" for code, total in report.findings.by_code().items())


def _histogram(split: SplitReport) -> Iterator[str]:
    most = max(split.histogram, default=0)
    filled = [index for index, number in enumerate(split.histogram) if number]
    for index in range(filled[0], filled[-1] + 1) if filled else ():
        number = split.histogram[index]
        bar = "█" * max(round(BAR_WIDTH * number / most), 1 if number else 0)
        yield f"  {HISTOGRAM_EDGES[index] + 1:>6,} – {HISTOGRAM_EDGES[index + 1]:<7,} {bar:<{BAR_WIDTH}} {number:>9,}"


def _print(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True)
