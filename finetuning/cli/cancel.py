"""`finetune cancel NAME`: makes an experiment save and stop; only with `--now` it is killed, however often it is asked."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from finetuning.cli.common_flags import verb_parser
from finetuning.errors import EXIT_FAILED, InputError
from finetuning.i18n import t
from finetuning.launch.experiments import DEFAULT_FOLDER, Experiment, find_experiment
from finetuning.launch.outcome import newest_checkpoint, record_outcome, saved_step
from finetuning.launch.slurm.job import cancel, is_live, job_state, signal_job
from finetuning.launch.slurm.submit import outcome_of_job
from finetuning.launch.stop_requests import KILL_SIGNAL
from finetuning.launch.workers import STOP_MARK
from finetuning.runtime.status import STATUS_FILE
from finetuning.terminal import open_console

POLL_INTERVAL_S = 1.0
WAIT_S = 600.0


def main(argv: Sequence[str]) -> int:
    parser = verb_parser("cancel", t("Makes an experiment save and stop."))
    parser.add_argument("name", help=t("name of the experiment"))
    parser.add_argument("--now", action="store_true", help=t("do not wait until it has saved"))
    parser.add_argument("--experiments_dir", default=DEFAULT_FOLDER, type=Path, help=t("folder that holds the experiments"))
    given = parser.parse_args(argv)
    found = find_experiment(given.experiments_dir, given.name)
    if not found.is_live:
        raise InputError(
            t("experiment {name} does not run: {state} {reason}", name=found.name, state=found.state, reason=found.reason)
        )
    _refuse_others(found)
    console = open_console()
    mark = found.folder / "logs" / STOP_MARK
    if mark.exists() and not given.now:
        doing, seconds = found.reason or found.status.get("doing") or found.state, time.time() - mark.stat().st_mtime
        console.print(
            t(
                "{name} was asked to stop {seconds:.0f} s ago: {doing}; finetune cancel --now {name} kills it, without saving",
                name=found.name,
                seconds=seconds,
                doing=doing,
            )
        )
    if found.job_id:
        _cancel_job(found, now=given.now)
    else:
        _signal_launcher(found, now=given.now)
    console.print(t("asked {name} to stop; waiting until it has ended (Ctrl-C ends only the waiting) …", name=found.name))
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        found = find_experiment(given.experiments_dir, given.name)
        if not found.is_live and not (found.job_id and is_live(found.job_id)):  # its script may take a moment longer
            _record_end_of_job(found)
            console.print(
                f"{found.name}: {found.state}, {newest_checkpoint(found.folder)}; "
                + (t("the same command goes on from there") if saved_step(found.folder) else t("the same command starts anew"))
            )
            return 0
        time.sleep(POLL_INTERVAL_S)
    console.print(
        t("{name} still runs after {seconds:.0f} s; finetune cancel --now does not wait", name=found.name, seconds=WAIT_S)
    )
    return EXIT_FAILED


def _refuse_others(found: Experiment) -> None:
    """Who has written the status chooses which process or job is ended."""
    owner = (found.folder / STATUS_FILE).stat().st_uid
    if owner != os.geteuid():
        raise InputError(t("experiment {name} belongs to user {owner}, who alone can end it", name=found.name, owner=owner))


def _cancel_job(found: Experiment, *, now: bool) -> None:
    """A job that waits is taken away; one that runs is told to save, without the requeue that a time limit brings."""
    assert found.job_id is not None
    if now or found.job is None or found.job.name != "RUNNING":
        cancel(found.job_id)
    else:
        signal_job(found.job_id, "INT")


def _signal_launcher(found: Experiment, *, now: bool) -> None:
    pid = found.status.get("launcher_pid")
    if pid is None:
        raise InputError(t("experiment {name} was started by hand; end it where its torchrun runs", name=found.name))
    host = found.status.get("host", os.uname().nodename)
    if host != os.uname().nodename:
        raise InputError(t("experiment {name} runs on {host}; cancel it there", name=found.name, host=host))
    os.kill(int(pid), KILL_SIGNAL if now else signal.SIGTERM)
    os.kill(int(pid), signal.SIGCONT)  # Ctrl-Z may have stopped it


def _record_end_of_job(found: Experiment) -> None:
    """Nobody may have been there to write how a job ended."""
    if found.job_id and found.state != found.status.get("state"):
        record_outcome(found.folder, outcome_of_job(found.folder, found.job_id, job_state(found.job_id)))
