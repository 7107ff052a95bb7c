"""What a run folder says about its data: `data/report.html`, `report.json`, `findings.jsonl` and `preview.txt`."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from finetuning.data.batches.packing_statistics import packing_facts
from finetuning.data.reading.columns import parse_columns
from finetuning.data.reading.scan import CUT_INPUT
from finetuning.data.report.html import report_page
from finetuning.data.report.preview import Preview, preview_line, preview_text
from finetuning.data.report.shares import share_lines
from finetuning.data.tokens.configure import Dataset
from finetuning.data.tokens.megatron import MegatronSplit
from finetuning.data.tokens.tokenized import MixedSplit
from finetuning.files.atomic import copy_file, write_text
from finetuning.launch.prepare import Prepared


def write_data_report(prepared: Prepared, folder: Path) -> None:
    """Writes the four files; nothing for Megatron data, which has no text.

    Raises:
        NoRoom: the disk is full; those of an earlier start are untouched, or replaced as a whole.
    """
    dataset, run = prepared.dataset, prepared.run
    training = dataset.splits["training"]
    if isinstance(training, MegatronSplit):
        return
    folder.mkdir(exist_ok=True)
    facts = packing_facts(
        training.lengths + 1,
        global_batch_size=run.config.global_batch_size,
        data_parallel_size=run.config.data_parallel_size,
        plan=run.strategy.packs,
        seed=run.config.seed,
        shares=training.shares,
    )
    lines = []
    if isinstance(training, MixedSplit):
        lines = share_lines(training.names, training.shares, run.max_steps * run.config.global_batch_size)
    previews = _previews(prepared)
    value = dataset.report.as_json() | {"packing": facts.as_json()} | ({"mixture": lines} if lines else {})
    write_text(folder / "report.json", json.dumps(value, ensure_ascii=False, indent=1))
    write_text(folder / "report.html", report_page(dataset.report, facts, previews, run.config.dataset_path, lines))
    if dataset.mixture:
        write_text(folder / "findings.jsonl", "".join(_findings_of_sources(dataset)))
    else:
        copy_file(dataset.folder / "findings.jsonl", folder / "findings.jsonl")
    text = "\n\n".join(preview_text(preview).plain for preview in previews)
    write_text(folder / "preview.txt", text + "\n")


def _previews(prepared: Prepared) -> list[Preview]:
    """The first sample of each split, and of each source."""
    config = prepared.run.config
    cut_to = config.seq_length if config.truncation == CUT_INPUT else None
    each = [(source.entry.name, source.dataset, source.entry.columns) for source in prepared.dataset.mixture]
    found = []
    for name, dataset, columns in each or [("", prepared.dataset, config.columns)]:
        for split, source in dataset.sources.items():
            if isinstance(dataset.splits[split], MegatronSplit):
                continue
            line = int(dataset.splits[split].lines[0])
            preview = preview_line(source, line, dataset.prompt_format, cut_to=cut_to, columns=parse_columns(columns))
            found.append(replace(preview, file=f"{name}/{preview.file}") if name else preview)
    return found


def _findings_of_sources(dataset: Dataset) -> Iterator[str]:
    """All findings of a mixture, each with the name of its source."""
    for source in dataset.mixture:
        file = source.dataset.folder / "findings.jsonl"
        for line in file.open(encoding="utf-8") if file.is_file() else ():  # none of Megatron data
            finding = json.loads(line)
            yield json.dumps(finding | {"file": f"{source.entry.name}/{finding['file']}"}, ensure_ascii=False) + "\n"
