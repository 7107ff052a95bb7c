"""`finetune list`: one line for each experiment."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from finetuning.cli.common_flags import verb_parser
from finetuning.i18n import t
from finetuning.launch.experiments import BROKEN, DEFAULT_FOLDER, find_experiments
from finetuning.terminal import SafeConsole

WIDTH_IN_FILES = 240


def main(argv: Sequence[str]) -> int:
    parser = verb_parser("list", t("All experiments of a folder, the latest first."))
    parser.add_argument("--experiments_dir", default=DEFAULT_FOLDER, type=Path, help=t("folder that holds the experiments"))
    folder = parser.parse_args(argv).experiments_dir
    experiments = find_experiments(folder)
    console = SafeConsole(highlight=False, markup=False, emoji=False)
    if not experiments:
        console.print(t("no experiments in {folder}", folder=folder))
        return 0
    table = Table(box=None, pad_edge=False, show_edge=False)
    for heading in (t("experiment"), t("state"), t("step"), t("where"), t("last update")):
        table.add_column(heading, no_wrap=True)
    table.add_column(t("reason"), overflow="fold")
    for found in experiments:
        changed = str(found.status.get("updated_at", ""))[:19].replace("T", " ")
        known = ("", "") if found.state == BROKEN else (found.progress, found.place)
        table.add_row(found.name, found.state, *known, changed, found.reason)
    console.print(table, width=None if console.is_terminal else WIDTH_IN_FILES)
    return 0
