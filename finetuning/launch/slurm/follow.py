"""Follows a Slurm job: shows its log as it grows, and says what it waits for, until it has ended."""

import time
from pathlib import Path
from typing import TextIO

from rich.console import Console

from finetuning.i18n import printable, t
from finetuning.launch.slurm.job import FORGOTTEN, UNREACHABLE, JobState, job_state

POLL_INTERVAL_S = 0.5
ASK_INTERVAL_S = 3.0  # the controller serves everybody
LAST_LINES_S = 5.0  # network file systems show the end of a log late


def follow(job_id: str, log: Path, console: Console, output: TextIO) -> JobState:
    """Shows the job's log from its beginning until the job has ended; returns its last state.

    The log need not exist yet. An end that a requeue takes back at once is none.
    """
    tail = Tail(log, output)
    shown = before = JobState("")
    asked_at = 0.0
    while True:
        tail.show()
        if time.monotonic() - asked_at < ASK_INTERVAL_S:
            time.sleep(POLL_INTERVAL_S)
            continue
        asked_at = time.monotonic()
        state = job_state(job_id)
        if (state.name, state.reason) != (shown.name, shown.reason):
            shown = state
            _say(console, job_id, state)
        if (state.has_ended or state == FORGOTTEN) and state == before:
            break
        before = state
    deadline = time.monotonic() + LAST_LINES_S
    while tail.show() or time.monotonic() < deadline:
        if tail.seen_any and time.monotonic() > deadline - LAST_LINES_S + 1:
            break
        time.sleep(POLL_INTERVAL_S)
    return state


class Tail:
    """Copies what is appended to a file, whole lines only; the file may come later."""

    def __init__(self, path: Path, output: TextIO, start: int = 0):
        self.path, self.output, self.position = path, output, start
        self.seen_any = False

    def show(self) -> bool:
        """Copies what is new; False: nothing was."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.position)
                new = file.read()
        except FileNotFoundError:
            return False
        whole = new[: new.rfind(b"\n") + 1]
        self.position += len(whole)
        self.seen_any = self.seen_any or bool(whole)
        text = whole.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")
        self.output.write(printable(text))
        self.output.flush()
        return bool(whole)


def _say(console: Console, job_id: str, state: JobState) -> None:
    if state.name == "PENDING":
        console.print(t("job {job} waits: {reason}", job=job_id, reason=explain_reason(state.reason)))
    elif state.name == "RUNNING":
        console.print(t("job {job} runs on {nodes}", job=job_id, nodes=state.nodes))
    elif state == UNREACHABLE:
        console.print(t("Slurm's controller does not answer; the job is not affected, trying again …"))


def explain_reason(reason: str) -> str:
    """Slurm's word for why a job waits, with what it means where that is not plain."""
    meanings = {
        "Priority": t("other jobs come first"),
        "Resources": t("no free nodes at the moment"),
        "BeginTime": t("Slurm starts a requeued job again after about two minutes"),
        "Dependency": t("other jobs have to end first"),
        "PartitionTimeLimit": t("more --time than the partition allows; it will never start"),
        "PartitionNodeLimit": t("more --num_nodes than the partition allows; it will never start"),
        "ReqNodeNotAvail": t("nodes are down or reserved"),
    }
    meaning = meanings.get(reason.partition(",")[0])
    return f"{reason} ({meaning})" if meaning else reason or t("to be scheduled")
