"""How a run ended, from what its workers left behind: the failure files of the ranks and `status.json`."""

import math
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from finetuning.checkpoint.files import newest_complete
from finetuning.errors import EXIT_FAILED, EXIT_FINISHED, EXIT_INTERRUPTED, EXIT_STOPPED, NoRoom
from finetuning.i18n import t
from finetuning.runtime.failures import first_failure, removed
from finetuning.runtime.progress import stop_reason
from finetuning.runtime.status import FAILED, FINISHED, RUNNING, STARTING, STOPPED, read_status, write_status
from finetuning.terminal import open_console

LOG_LINES_SHOWN = 20


@dataclass(frozen=True)
class Outcome:
    """How it ended; `reason` and `log` for all but a finished run, `first` is the failed rank if it left its error."""

    state: str
    exit_code: int
    reason: str | None = None
    log: Path | None = None
    rank: int | None = None


def decide_outcome(
    experiment_dir: Path,
    *,
    log: Path,
    stop_asked: bool = False,
    nothing_lost: bool = False,
    killed: bool = False,
    unexplained: str | None = None,
) -> Outcome:
    """Reads how the run ended; only once no worker of it is left.

    Args:
        log: where to look when no rank left its own error.
        stop_asked: somebody asked it to save and leave; workers that had not started yet could not write so.
        nothing_lost: every step that was done is in a checkpoint.
        killed: somebody did not wait for it to save.
        unexplained: what to say when nothing explains the end.
    """
    if not experiment_dir.is_dir():
        return Outcome(FAILED, EXIT_FAILED, removed(experiment_dir))
    logs = experiment_dir / "logs"
    failure, status = first_failure(logs), read_status(experiment_dir)
    state = status.get("state")
    if killed and state != FINISHED:
        step = saved_step(experiment_dir)
        reason = t("killed before it could save; the newest checkpoint is of step {step}", step=step)
        if not step:
            reason = t("killed before it could save; there is no checkpoint yet")
        return Outcome(STOPPED, EXIT_INTERRUPTED, reason)
    if stop_asked and failure is not None and failure["kind"] == "echo":
        failure = None  # of ranks that left one after the other
    if state == FINISHED and failure is not None and failure["kind"] in ("echo", "killed"):
        failure = None  # of a process on its way out: rank 0 says so when all ranks have written all
    if state == FINISHED and failure is None:
        return Outcome(FINISHED, EXIT_FINISHED)
    if state == STOPPED and failure is None:
        return Outcome(STOPPED, EXIT_STOPPED, status.get("reason"))
    if stop_asked and failure is None and (state == STARTING or (state == RUNNING and nothing_lost)):
        return Outcome(STOPPED, EXIT_STOPPED, stop_reason(status.get("step", 0), status.get("max_steps") or math.inf))
    if state == FAILED and failure is None and status.get("reason"):  # found out by the node part of a job
        return Outcome(FAILED, EXIT_FAILED, status["reason"], log)
    if failure is not None:
        if failure["kind"] == "hung":
            return Outcome(FAILED, EXIT_FAILED, failure["message"], logs)
        log = logs / f"rank_{failure['rank']}.log"
        return Outcome(FAILED, EXIT_FAILED, failure["message"], log, failure["rank"])
    reason = unexplained or t(
        "a worker process was killed, or could not start (out of memory? see the last lines of {log})", log=log
    )
    return Outcome(FAILED, EXIT_FAILED, reason, log)


def record_outcome(experiment_dir: Path, outcome: Outcome) -> None:
    """Writes it down, where there still is a folder; what cannot be written is only said."""
    if not experiment_dir.is_dir():
        return
    facts = {"reason": outcome.reason} if outcome.reason is not None else {}
    with suppress(NoRoom):  # the outcome says what happened, to the screen as well
        write_status(experiment_dir, outcome.state, exit_code=outcome.exit_code, ended_at=time.time(), **facts)


def show_failure(outcome: Outcome) -> None:
    """The first failing rank's own error, in red, and where to read more; on standard error."""
    errors = open_console(stderr=True)
    head = outcome.reason or ""
    if outcome.rank is not None:
        head = t("Rank {rank} failed: {reason}", rank=outcome.rank, reason=outcome.reason)
    errors.print(head, style="bold red")
    if outcome.rank is None and outcome.log is not None and outcome.log.is_file():
        lines = outcome.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES_SHOWN:]
        errors.print("\n".join(lines))
    if outcome.log is not None:
        errors.print(t("log: {log}", log=outcome.log))


def newest_checkpoint(experiment_dir: Path) -> str:
    """The step of the newest complete checkpoint in words."""
    step = saved_step(experiment_dir)
    return t("newest checkpoint at step {step}", step=step) if step else t("no checkpoint yet")


def saved_step(experiment_dir: Path) -> int:
    """The step that the same command would go on from; 0 without a complete checkpoint.

    The link `latest` is set after a checkpoint has got its name, so whoever is killed in between leaves it behind.
    """
    found = newest_complete(experiment_dir / "checkpoints")
    return found.step if found is not None else 0
