"""`finetune data ledger`: the lines that a step of an experiment was trained on."""

import argparse
from pathlib import Path

from rich.console import Console

from finetuning.config.run import read_run
from finetuning.data.batches.ledger import LEDGER_FILE, read_ledger
from finetuning.errors import EXIT_FINISHED, InputError
from finetuning.i18n import t


def print_ledger(given: argparse.Namespace, console: Console) -> int:
    folder = given.experiments_dir / given.experiment
    if not (folder / LEDGER_FILE).is_file():
        raise InputError(
            t("{folder}: there is no ledger; is --experiment the name of one that has been trained?", folder=folder)
        )
    run = read_run(folder / "run.yaml")
    names = [source.name for source in run.mixture]
    if given.source is not None and given.source not in names:
        raise InputError(
            t(
                "--source {name}: there is no such source; there are: {names}",
                name=given.source,
                names=", ".join(names) or t("none"),
            )
        )
    files = [f"{source.name}/{Path(source.sources['training']).name}" for source in run.mixture]
    files = files or [Path(run.sources["training"]).name]
    found = 0
    for entry in read_ledger(folder / LEDGER_FILE):
        sources = [0] * len(entry.lines) if entry.sources is None else entry.sources.tolist()
        if given.step is None and given.line is None and given.source is None:
            counts = ", ".join(f"{name} {sources.count(place)}" for place, name in enumerate(names))
            console.print(
                t(
                    "step {step}: {samples:,} sample{samples:s}, {tokens:,} token{tokens:s}, {answers:,} of them answers",
                    step=entry.step,
                    samples=len(entry.lines),
                    tokens=int(entry.tokens.sum()),
                    answers=int(entry.answer_tokens.sum()),
                )
                + (f" · {counts}" if counts else "")
            )
            found += 1
        elif given.step in (None, entry.step):
            for line, tokens, answers, source in zip(
                entry.lines.tolist(), entry.tokens, entry.answer_tokens, sources, strict=True
            ):
                if given.line in (None, line) and given.source in (None, *names[source : source + 1]):
                    place = f"{files[source]}:{line}"
                    console.print(
                        t(
                            "step {step}  {place}  {tokens:,} token{tokens:s}, {answers:,} of them answers",
                            step=entry.step,
                            place=place,
                            tokens=int(tokens),
                            answers=int(answers),
                        )
                    )
                    found += 1
    if not found:
        raise InputError(t("{folder}: the ledger has no such step or line", folder=folder))
    return EXIT_FINISHED
