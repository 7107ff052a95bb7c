"""`finetune logs NAME`: what an experiment has printed; with -f also what it prints from now on, until it ends."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from finetuning.cli.common_flags import verb_parser
from finetuning.errors import EXIT_INTERRUPTED, InputError
from finetuning.i18n import t
from finetuning.launch.experiments import BROKEN, DEFAULT_FOLDER, find_experiment
from finetuning.launch.slurm.follow import ASK_INTERVAL_S, POLL_INTERVAL_S, Tail


def main(argv: Sequence[str]) -> int:
    parser = verb_parser("logs", t("What an experiment has printed."))
    parser.add_argument("name", help=t("name of the experiment"))
    parser.add_argument("-f", "--follow", action="store_true", help=t("go on until it ends; Ctrl-C ends only the watching"))
    parser.add_argument("--rank", type=int, help=t("everything that this rank printed, warnings of libraries too"))
    parser.add_argument("--experiments_dir", default=DEFAULT_FOLDER, type=Path, help=t("folder that holds the experiments"))
    given = parser.parse_args(argv)
    found = find_experiment(given.experiments_dir, given.name)
    log = found.log if given.rank is None else found.folder / "logs" / f"rank_{given.rank}.log"
    try:
        if not log.is_file() and not (given.follow and found.is_live):
            state = f"{found.state}: {found.reason}" if found.state == BROKEN else found.state
            raise InputError(t("experiment {name} has no {log} yet ({state})", name=given.name, log=log, state=state))
        _show(given.experiments_dir, given.name, Tail(log, sys.stdout), follow=given.follow)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except PermissionError as error:
        raise InputError(t("{file}: cannot be read: {reason}", file=log, reason=error.strerror)) from None
    return 0


def _show(experiments_dir: Path, name: str, tail: Tail, *, follow: bool) -> None:
    tail.show()
    asked_at = time.monotonic()
    while follow:
        time.sleep(POLL_INTERVAL_S)
        tail.show()
        if time.monotonic() - asked_at > ASK_INTERVAL_S:
            asked_at = time.monotonic()
            if not find_experiment(experiments_dir, name).is_live:
                tail.show()
                return
