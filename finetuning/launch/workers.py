"""Starts torchrun with the workers of one machine and sees them to their end: finished, failed, asked to stop, or hung.

torchrun lives in a session of its own, so Ctrl-C reaches this launcher only, which passes it on to the workers: they
finish their step, save and leave. torchrun itself would kill them after 30 seconds, in the middle of a long save.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from finetuning.errors import InputError, NoRoom
from finetuning.i18n import t
from finetuning.launch.stall_watch import StallWatch, process_state
from finetuning.launch.stop_requests import StopRequests
from finetuning.runtime.failures import first_failure, write_hung, write_killed
from finetuning.runtime.process_lifetime import SHOW_STACKS, end_with_parent
from finetuning.runtime.progress import BOARD_FILE, Phase, ProgressBoard, in_words
from finetuning.runtime.status import FINISHED, RUNNING, STARTING, STOPPED, read_status, write_status

POLL_INTERVAL_S = 0.1
LOOK_INTERVAL_S = 1.0
GRACE_AFTER_FAILURE_S = 15.0  # for ranks that wait for one that has failed
GRACE_TO_LEAVE_S = 5.0  # for workers that were asked to stop and have nothing to save
STACKS_S = 10.0  # for workers to write where they are, on a busy machine
OTHER_NODES_S = 10.0  # for the launchers of other nodes to have asked theirs; they look once a second, on busy machines
TORCHRUN_ENDS_S = 30.0  # once its workers are killed
STOP_MARK = "stop-asked"  # in the folder of logs: when the file was made, the run was asked to stop
# Of torchrun's report about the workers that failed.
FAILED_WORKER = re.compile(r"^\s*rank +: (\d+) .*\n\s*exitcode +: -(\d+) ", re.MULTILINE)


@dataclass(frozen=True)
class Ended:
    """How the workers of this machine ended."""

    code: int  # torchrun's exit code
    nothing_lost: bool  # no worker had steps to save


class Workers:
    """The workers of one machine; `run` starts them and returns when all are gone."""

    def __init__(
        self,
        num_processes: int,
        logs: Path,
        log_name: str,
        stop: StopRequests,
        stall_timeout_s: float | None,
        *,
        first_rank: int = 0,
        num_nodes: int = 1,
    ):
        self.num_nodes = num_nodes
        self.logs, self.log_name, self.stop, self.first_rank = logs, log_name, stop, first_rank
        self.experiment_dir = logs.parent
        self.board = ProgressBoard(num_processes)
        self.watch = StallWatch(self.board, stall_timeout_s, first_rank)
        self.given_up = False  # this launcher has killed them
        self.told_signals = 0
        self.could_leave_s = 0.0

    def run(self, command: Sequence[str], environment: dict[str, str], descriptors: Sequence[int] = ()) -> Ended:
        (self.logs / STOP_MARK).unlink(missing_ok=True)
        with (self.logs / self.log_name).open("ab") as log:
            log_start = log.tell()
            self.torchrun = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stderr=log,
                env={**environment, BOARD_FILE: self.board.file},
                start_new_session=True,
                pass_fds=descriptors,
                preexec_fn=partial(end_with_parent, os.getpid()),
            )
        self.stop.pass_on = self._pass_on
        try:
            code = self._wait()
            nothing_lost = not any(slot.trains for slot in self.board.read())
        finally:
            self.stop.pass_on = lambda: None
            if self.torchrun.poll() is None:
                self._end_now()
            self.board.close()
        if code != 0 and not self.given_up and not self.stop.kill:
            _record_killed(self.logs, self.log_name, log_start)
        return Ended(code, nothing_lost)

    def _wait(self) -> int:
        """Until torchrun has ended; its exit code."""
        looked_at = time.monotonic()
        failed_s = ending_s = 0.0
        while (code := self.torchrun.poll()) is None:
            time.sleep(POLL_INTERVAL_S)
            self._tell_signals()
            if self.given_up or self.stop.kill:
                ending_s += POLL_INTERVAL_S
                self._pass_on()  # again: a process that was just starting
                if ending_s > TORCHRUN_ENDS_S:
                    self._end_now()
                continue
            if self.stop.received:
                self._hurry()
            if first_failure(self.logs) is not None or not self.experiment_dir.is_dir():
                failed_s += POLL_INTERVAL_S
                if self.stop.received or failed_s > GRACE_AFTER_FAILURE_S:
                    self._kill()
            if (elapsed_s := time.monotonic() - looked_at) > LOOK_INTERVAL_S:
                looked_at = time.monotonic()
                self._look(elapsed_s)
        return code

    def _pass_on(self) -> None:
        kill = self.stop.kill or self.given_up
        signal_workers(self.torchrun.pid, signal.SIGKILL if kill else signal.SIGTERM)

    def _hurry(self) -> None:
        """After a stop: those that cannot have heard of it hear again, those that have nothing to save do not stay."""
        state = self._state()
        if state == STARTING:
            self._pass_on()  # a process that is just becoming a worker loses it
        slots = self.board.read()
        stays = any(slot.trains or slot.phase == Phase.LEAVING for slot in slots) or state in (STOPPED, FINISHED)
        self.could_leave_s = 0.0 if stays else self.could_leave_s + POLL_INTERVAL_S
        if self.could_leave_s > GRACE_TO_LEAVE_S:
            self._kill()

    def _state(self) -> str | None:
        """What status.json says; None: somebody has damaged it."""
        try:
            return read_status(self.experiment_dir).get("state")
        except InputError:
            return None

    def _kill(self) -> None:
        self.given_up = True
        self._pass_on()

    def _end_now(self) -> None:
        signal_workers(self.torchrun.pid, signal.SIGKILL)
        self.torchrun.kill()
        self.torchrun.wait()

    def _look(self, elapsed_s: float) -> None:
        """Tells when they do not get on, and ends them when that has lasted too long."""
        text = self.watch.look(elapsed_s)
        if text is not None:
            self._tell(text)
            if self.first_rank == 0 and self.watch.waited_s and (state := self._state()) in (STARTING, RUNNING):
                with suppress(OSError, NoRoom):  # it is on the screen as well
                    write_status(self.experiment_dir, state, stall=text)  # rank 0 writes nothing meanwhile, and takes it back
        if self.watch.has_hung:
            sentence = self.watch.sentence()
            self._show_stacks()
            if self._state() not in (STOPPED, FINISHED):
                message = t(
                    "the run hung and was ended. {sentence}. Where each rank was is at the end of {logs}/rank_*.log",
                    sentence=sentence,
                    logs=self.logs,
                )
                write_hung(self.logs, self.first_rank, message)
            self._kill()

    def _show_stacks(self) -> None:
        """Makes every worker write where each of its threads is; one that was stopped has to go on for a moment for that."""
        pids = [slot.pid for slot in self.board.read() if slot.pid]
        stopped = [pid for pid in pids if process_state(pid) == "T"]
        logs = [self.logs / f"rank_{self.first_rank + rank}.log" for rank in range(len(pids))]
        before = [_size(log) for log in logs]
        _send(pids, SHOW_STACKS)
        _send(stopped, signal.SIGCONT)
        deadline = time.monotonic() + STACKS_S
        while any(_size(log) == size for log, size in zip(logs, before, strict=True)) and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL_S)
        _send(stopped, signal.SIGSTOP)
        if self.num_nodes > 1:
            time.sleep(OTHER_NODES_S)  # before these are gone

    def _tell_signals(self) -> None:
        """Says what becomes of the signals that have arrived since the last call."""
        new = self.stop.received[self.told_signals :]
        if not new:
            return
        is_first, self.told_signals = self.told_signals == 0, self.told_signals + len(new)
        with suppress(OSError):  # a full disk must not keep a run from being stopped
            (self.logs / STOP_MARK).touch()
        slot = max(self.board.read(), key=lambda each: each.step)
        kills = t("finetune cancel --now {name} kills it", name=self.experiment_dir.name)
        if self.stop.presses:
            kills = t("press again to kill")
        if self.stop.kill:
            text = t("killing it, without saving")
        elif not is_first:
            text = t("still {doing}; {kills}", doing=in_words(Phase(slot.phase), slot.step), kills=kills)
        elif slot.trains:
            text = t("saving; {kills}", kills=kills)
        else:
            text = t("stopping, with nothing to save; {kills}", kills=kills)
        print(text, flush=True)

    def _tell(self, text: str) -> None:
        print(text, flush=True)
        with suppress(OSError), (self.logs / "train.log").open("a", encoding="utf-8") as log:
            log.write(text + "\n")


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def signal_workers(torchrun_pid: int, number: int) -> None:
    """Sends a signal to every worker; to torchrun while it has none yet, or where the system does not tell its children."""
    try:
        children = Path(f"/proc/{torchrun_pid}/task/{torchrun_pid}/children").read_text().split()
    except FileNotFoundError:
        children = []
    _send([int(pid) for pid in children] or [torchrun_pid], number)


def _send(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _record_killed(logs: Path, log_name: str, start: int) -> None:
    """Leaves a failure for each worker that a signal ended from outside, which could not write its own."""
    if not (logs / log_name).is_file():  # somebody has removed the experiment's folder
        return
    with (logs / log_name).open("rb") as log:
        log.seek(start)
        report = log.read().decode(errors="replace")
    for rank, number in FAILED_WORKER.findall(report):
        if int(number) != signal.SIGTERM:  # torchrun sends that to the others itself
            write_killed(logs, int(rank), signal.Signals(int(number)).name)
