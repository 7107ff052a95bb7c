"""Records on their way to trackers, each in a thread of its own, so that none can slow or end a training.

The queue is metrics.csv: the training appends to it and goes on; a thread reads what its tracker does not have yet, a bounded
part at a time, and waits and tries again where that fails. So what was missed, in this start or an earlier one, is sent when
the tracker answers again. How far each got is in `trackers/` of the experiment, with the id of its run. Imports no torch.
"""

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from finetuning.config.run import Run
from finetuning.files.atomic import write_text
from finetuning.files.documents import read_json
from finetuning.i18n import t
from finetuning.runtime.network import no_answer
from finetuning.training.metrics import MetricsTail, read_metrics
from finetuning.training.trackers import FINISHED, MlflowTracker, TensorBoardTracker, Tracker, WandbTracker, one_line

SEND_INTERVAL_S = 1.0  # steps of a second travel together
FIRST_PAUSE_S, MAX_PAUSE_S = 2.0, 60.0  # between two tries
END_WAIT_S = 30.0  # for what is still on its way when the run has finished
ARTIFACTS_WAIT_S = 600.0  # instead, while files are uploaded
STOP_WAIT_S = 5.0  # when it was stopped or has failed, and for a tracker that takes no records
SILENT_WAIT_S = 2.0  # before a person is told about the waiting

Say = Callable[[str], None]


class Progress(msgspec.Struct):
    """`trackers/KIND.json`: the tracker's run, and how much of this experiment it has."""

    address: str
    run_id: str | None = None
    delivered: int = 0  # the last step it has, with all before it
    ended: bool = False  # it knows that the run has finished


class Delivery:
    """The thread that brings the records of an experiment to one tracker."""

    def __init__(self, tracker: Tracker, folder: Path, resume_step: int, say: Say):
        self.tracker, self.say, self.resume_step = tracker, say, resume_step
        self.progress_file = folder / "trackers" / f"{tracker.kind}.json"
        self.tail = MetricsTail(folder / "metrics.csv")
        self.progress: Progress | None = None  # not read yet
        self.is_open = False
        self.away_since_step: int | None = None  # it has been said that records cannot be delivered
        self.again: deque[int] = deque()  # steps whose rows have changed
        self.end: tuple[str, Sequence[Path]] | None = None  # how the run ended, and what to upload
        self.reason = ""  # of the last failure
        self.woken, self.ending = threading.Event(), threading.Event()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._work, name=tracker.kind, daemon=True)

    def finish(self, state: str, artifacts: Sequence[Path]) -> None:
        self.end = state, artifacts
        self.ending.set()
        self.woken.set()

    def is_at_work(self) -> bool:
        """Something is left to do, and the tracker takes it."""
        return not self.done.is_set() and self.away_since_step is None

    def read_progress(self) -> Progress:
        new = Progress(self.tracker.address)
        try:
            progress = read_json(self.progress_file, Progress)
        except FileNotFoundError:
            return new
        if progress.address != self.tracker.address or (self.resume_step == 0 and progress.delivered > 0):
            return new  # elsewhere, or from the beginning: a run of its own
        if self.tracker.rewinds:
            progress.delivered = min(progress.delivered, self.resume_step)
        return progress

    def what_is_missing(self) -> str:
        """A sentence for the end of a run."""
        delivered = self.progress.delivered if self.progress else 0
        rows = read_metrics(self.tail.path)
        last = int(rows[-1]["step"]) if rows else 0
        if last > delivered:
            return t("steps {first} to {last}", first=delivered + 1, last=last)
        return t("the end of the run, or its files")

    def _work(self) -> None:
        pause = 0.0
        while not self.done.is_set():
            if not pause:
                self.woken.wait()
                self.ending.wait(SEND_INTERVAL_S)
            elif self.end is None:
                self.ending.wait(pause)
            else:
                time.sleep(pause)
            self.woken.clear()
            ending = self.end  # before the rows are read, which are all there then
            try:
                self._deliver()
                if ending is not None:
                    self._finish(*ending)
            except Exception as error:  # of whatever kind, of a client that is not ours: the training goes on
                self._went_away(error)
                pause = FIRST_PAUSE_S if ending or not pause else min(2 * pause, MAX_PAUSE_S)
            else:
                self._came_back()
                pause = 0.0

    def _deliver(self) -> None:
        if self.progress is None:
            self.progress = self.read_progress()
        progress = self.progress
        while self.again:
            progress.delivered = min(progress.delivered, self.again.popleft() - 1)
            self.tail.rewind()
        if not self.is_open:
            run_id = self.tracker.open(progress.run_id, progress.delivered)
            self.is_open = True
            if run_id != progress.run_id:
                progress.run_id, progress.delivered = run_id, 0
                self.tail.rewind()
            progress.ended = False
            self._write_progress()
        while rows := self.tail.read():
            new = [row for row in rows if int(row["step"]) > progress.delivered]
            for start in range(0, len(new), self.tracker.max_rows):
                part = new[start : start + self.tracker.max_rows]
                self.tracker.send(part)
                progress.delivered = int(part[-1]["step"])
                self._write_progress()
            self.tail.advance()

    def _finish(self, state: str, artifacts: Sequence[Path]) -> None:
        assert self.progress is not None
        self.tracker.finish(state, artifacts)
        self.progress.ended = state == FINISHED
        self._write_progress()
        self.done.set()

    def _write_progress(self) -> None:
        assert self.progress is not None
        self.progress_file.parent.mkdir(exist_ok=True)
        write_text(self.progress_file, msgspec.json.encode(self.progress).decode())

    def _went_away(self, error: Exception) -> None:
        self.is_open = False
        self.tracker.reset()
        address = self.tracker.address
        silent = no_answer(address) if address.startswith(("http://", "https://")) else None
        self.reason = silent or one_line(error) or type(error).__name__
        if self.away_since_step is None:
            traceback.print_exception(error)  # into the log of this process
            self.away_since_step = self.progress.delivered + 1 if self.progress else 1
            self.say(
                t(
                    "{tracker} takes no records ({reason}); the training goes on, and they are sent from metrics.csv later",
                    tracker=self.tracker.name,
                    reason=self.reason,
                )
            )

    def _came_back(self) -> None:
        self.reason = ""
        if self.away_since_step is None:
            return
        assert self.progress is not None
        first, self.away_since_step = self.away_since_step, None
        if self.progress.delivered >= first:
            self.say(
                t(
                    "{tracker} takes records again; it has got steps {first} to {last}",
                    tracker=self.tracker.name,
                    first=first,
                    last=self.progress.delivered,
                )
            )
        else:
            self.say(t("{tracker} takes records again", tracker=self.tracker.name))


class Trackers:
    """All trackers of a run; for rank 0. No method but `finish` waits for anything."""

    def __init__(self, run: Run, resume_step: int, say: Say):
        self.folder, self.say = Path(run.experiment_dir), say
        self.log_artifacts = run.config.log_artifacts
        self.deliveries = [Delivery(tracker, self.folder, resume_step, say) for tracker in trackers_of(run)]
        self.has_started = False

    def start(self) -> None:
        """When metrics.csv holds nothing but the steps up to the one that is resumed."""
        self.has_started = True
        for delivery in self.deliveries:
            delivery.woken.set()
            delivery.thread.start()

    def wake(self) -> None:
        """metrics.csv has a new row."""
        for delivery in self.deliveries:
            delivery.woken.set()

    def send_again(self, step: int) -> None:
        """The row of a step has changed."""
        for delivery in self.deliveries:
            delivery.again.append(step)
            delivery.woken.set()

    def finish(self, state: str) -> None:
        """Waits a bounded time until everything is delivered, and says what is not."""
        if not self.has_started:
            return
        artifacts = self._artifacts() if state == FINISHED and self.log_artifacts else []
        limit = STOP_WAIT_S if state != FINISHED else ARTIFACTS_WAIT_S if artifacts else END_WAIT_S
        for delivery in self.deliveries:
            delivery.finish(state, artifacts)
        try:
            self._wait(limit)
        finally:  # also where a person does not wait
            for delivery in self.deliveries:
                if not delivery.done.is_set():
                    self._say_missing(delivery)

    def _wait(self, limit: float) -> None:
        started = time.monotonic()
        if self._wait_until(started + SILENT_WAIT_S):
            return
        waiting = ", ".join(delivery.tracker.name for delivery in self.deliveries if not delivery.done.is_set())
        seconds = limit if any(delivery.is_at_work() for delivery in self.deliveries) else min(limit, STOP_WAIT_S)
        self.say(t("waiting up to {seconds:.0f} s for {trackers}", seconds=seconds, trackers=waiting))
        self._wait_until(started + min(limit, STOP_WAIT_S))
        while any(delivery.is_at_work() for delivery in self.deliveries) and time.monotonic() < started + limit:
            self._wait_until(min(time.monotonic() + SILENT_WAIT_S, started + limit))

    def _say_missing(self, delivery: Delivery) -> None:
        self.say(
            t(
                "{tracker} has not got {what} ({reason}); metrics.csv has all steps, and the same command sends what is "
                "missing",
                tracker=delivery.tracker.name,
                what=delivery.what_is_missing(),
                reason=delivery.reason or t("it is slow"),
            )
        )

    def _wait_until(self, deadline: float) -> bool:
        return all(delivery.done.wait(max(0.0, deadline - time.monotonic())) for delivery in self.deliveries)

    def _artifacts(self) -> list[Path]:
        wanted = (
            self.folder / "data" / "report.html",
            self.folder / "metrics.csv",
            self.folder / "results",
            self.folder / "export",
        )
        return [path for path in wanted if path.exists()]


def trackers_of(run: Run) -> list[Tracker]:
    config, folder = run.config, Path(run.experiment_dir)
    trackers: list[Tracker] = [TensorBoardTracker(folder / "tensorboard")]
    if config.mlflow_tracking_uri:
        trackers.append(MlflowTracker(run, config.mlflow_tracking_uri))
    if config.wandb_project:
        trackers.append(WandbTracker(run, config.wandb_project))
    return trackers


def deliver_rest(run: Run, step: int, say: Say) -> None:
    """Sends what trackers of a finished experiment have not got."""
    trackers = Trackers(run, step, say)
    trackers.deliveries = [delivery for delivery in trackers.deliveries if _lacks(delivery, step)]
    if trackers.deliveries:
        trackers.start()
        trackers.finish(FINISHED)
        for delivery in trackers.deliveries:
            if delivery.done.is_set():
                say(t("{tracker} has got what it missed", tracker=delivery.tracker.name))


def _lacks(delivery: Delivery, step: int) -> bool:
    if delivery.tracker.rewinds:  # TensorBoard reads a folder, which only this experiment writes
        return False
    progress = delivery.read_progress()
    return progress.delivered < step or not progress.ended
