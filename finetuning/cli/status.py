"""`finetune status [NAME]`: status of an experiment, or how it ended; without a name, the latest one."""

import json
from collections.abc import Sequence
from pathlib import Path

from finetuning.cli.common_flags import verb_parser
from finetuning.cli.plan_screens import beside_words
from finetuning.errors import InputError
from finetuning.i18n import t
from finetuning.launch.expected import as_dict, expected_and_used
from finetuning.launch.experiments import BROKEN, DEFAULT_FOLDER, Experiment, find_experiment, find_experiments
from finetuning.launch.outcome import newest_checkpoint
from finetuning.runtime.time_spent import in_words
from finetuning.terminal import open_console

LABEL_WIDTH = 12


def main(argv: Sequence[str]) -> int:
    parser = verb_parser("status", t("Status of an experiment, or how it ended."))
    parser.add_argument("name", nargs="?", help=t("name of the experiment; default: the latest"))
    parser.add_argument("--experiments_dir", default=DEFAULT_FOLDER, type=Path, help=t("folder that holds the experiments"))
    parser.add_argument("--json", action="store_true", help=t("one JSON object instead of text"))
    given = parser.parse_intermixed_args(argv)  # flags may stand between the positional arguments
    if given.name is None:
        experiments = find_experiments(given.experiments_dir)
        if not experiments:
            raise InputError(t("no experiments in {folder}", folder=given.experiments_dir))
        found = experiments[0]
    else:
        found = find_experiment(given.experiments_dir, given.name)
    console = open_console()
    if given.json:
        job = None if found.job is None else vars(found.job)
        both = expected_and_used(found.folder)
        facts = {**found.status, "state": found.state, "reason": found.reason, "job": job}
        facts["plan"] = None if both is None else as_dict(*both)
        console.print(json.dumps(facts, ensure_ascii=False))
        return 0
    for label, value in _lines(found):
        console.print(f"{label:<{LABEL_WIDTH}}{value}")
    return 0


def _lines(found: Experiment) -> list[tuple[str, str]]:
    status = found.status
    lines = [(t("experiment"), found.name), (t("state"), f"{found.state} · {found.reason}" if found.reason else found.state)]
    if found.state == BROKEN:
        return [*lines, (t("folder"), str(found.folder))]
    if status.get("doing") and found.is_live:
        lines.append((t("now"), status["doing"]))
    step = f"{found.progress}, {newest_checkpoint(found.folder)}"
    loss = status.get("train_loss")
    lines.append((t("step"), step if loss is None else t("{step}, loss {loss:.4f}", step=step, loss=loss)))
    if spent := status.get("spent"):
        lines.append((t("time"), in_words(spent)))
    if (both := expected_and_used(found.folder)) is not None:
        lines.append((t("plan"), beside_words(*both)))
    where = found.place
    if found.job is not None:
        where += f" · {found.job.name}" + (f" · {found.job.nodes}" if found.job.nodes else "")
    if status.get("restarts"):
        where += " · " + t("requeued {count} time{count:s}", count=status["restarts"])
    lines.append((t("where"), where))
    lines.append((t("changed"), str(status.get("updated_at", ""))))
    lines.append((t("folder"), str(found.folder)))
    lines.append((t("log"), str(found.log)))
    return lines
