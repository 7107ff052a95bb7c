"""What a run folder says about its data: `data/report.html`, `report.json`, `findings.jsonl` and `preview.txt`."""

import json
from pathlib import Path

from finetuning.data.batches.packing_statistics import packing_facts
from finetuning.data.reading.columns import parse_columns
from finetuning.data.reading.scan import CUT_INPUT
from finetuning.data.report.html import report_page
from finetuning.data.report.preview import preview_line, preview_text
from finetuning.data.tokens.tokenized import TokenizedSplit
from finetuning.files.atomic import copy_file, write_text
from finetuning.launch.prepare import Prepared


def write_data_report(prepared: Prepared, folder: Path) -> None:
    """Writes the four files; nothing for Megatron data, which has no text.

    Raises:
        NoRoom: the disk is full; those of an earlier start are untouched, or replaced as a whole.
    """
    dataset, config = prepared.dataset, prepared.run.config
    training = dataset.splits["training"]
    if not isinstance(training, TokenizedSplit):
        return
    folder.mkdir(exist_ok=True)
    facts = packing_facts(
        training.counts,
        global_batch_size=config.global_batch_size,
        data_parallel_size=config.data_parallel_size,
        plan=prepared.run.strategy.packs,
        seed=config.seed,
    )
    cut_to = config.seq_length if config.truncation == CUT_INPUT else None
    columns = parse_columns(config.columns)
    previews = [
        preview_line(source, int(dataset.splits[name].lines[0]), dataset.prompt_format, cut_to=cut_to, columns=columns)
        for name, source in dataset.sources.items()
    ]
    value = dataset.report.as_json() | {"packing": facts.as_json()}
    write_text(folder / "report.json", json.dumps(value, ensure_ascii=False, indent=1))
    write_text(folder / "report.html", report_page(dataset.report, facts, previews, config.dataset_path))
    copy_file(dataset.folder / "findings.jsonl", folder / "findings.jsonl")
    text = "\n\n".join(preview_text(preview).plain for preview in previews)
    write_text(folder / "preview.txt", text + "\n")
