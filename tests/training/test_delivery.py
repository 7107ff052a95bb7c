"""Records reach a tracker whatever it does, and the training never waits for it."""

import csv
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetuning.i18n import t
from finetuning.training import delivery
from finetuning.training.delivery import Delivery, Trackers
from finetuning.training.metrics import COLUMNS, MetricsFile, MetricsTail
from finetuning.training.trackers import FAILED, FINISHED, Row, TensorBoardTracker
from tests.commands import ROOT

pytestmark = pytest.mark.unit


class Box:
    """A tracker in memory that can refuse and hang."""

    kind, name, address, max_rows, rewinds = "box", "the box", "here", 3, False

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.opened: list[str | None] = []
        self.ended: list[str] = []
        self.refuses = False
        self.moves = threading.Event()
        self.moves.set()

    def open(self, run_id: str | None, delivered: int) -> str:
        self._answer()
        self.opened.append(run_id)
        return run_id or f"run {len(self.opened)}"

    def send(self, rows: Sequence[Row]) -> None:
        assert len(rows) <= self.max_rows
        self._answer()
        self.rows += rows

    def finish(self, state: str, artifacts: Sequence[Path]) -> None:
        self._answer()
        self.ended.append(state)

    def reset(self) -> None:
        pass

    def _answer(self) -> None:
        self.moves.wait()
        if self.refuses:
            raise ConnectionRefusedError("nobody is here")

    def steps(self) -> list[int]:
        return [int(row["step"]) for row in self.rows]


class Said(list[str]):
    def __call__(self, text: str) -> None:
        self.append(text)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "SEND_INTERVAL_S", 0.01)
    monkeypatch.setattr(delivery, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(delivery, "SILENT_WAIT_S", 20.0)


@pytest.fixture
def box() -> Iterator[Box]:
    tracker = Box()
    yield tracker
    tracker.moves.set()


def trackers_with(tracker: object, folder: Path, resume_step: int, said: Said) -> Trackers:
    trackers = Trackers.__new__(Trackers)
    trackers.folder, trackers.say, trackers.log_artifacts, trackers.has_started = folder, said, False, False
    trackers.deliveries = [Delivery(tracker, folder, resume_step, said)]  # type: ignore[arg-type]
    return trackers


def append(folder: Path, steps: Sequence[int], resume_step: int = 0) -> None:
    metrics = MetricsFile(folder / "metrics.csv", resume_step)
    for step in steps:
        metrics.append(dict.fromkeys(COLUMNS, 0.5) | {"step": step, "train_loss": float(step), "val_loss": None})


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_every_step_arrives_once_and_the_end_as_well(box: Box, tmp_path: Path) -> None:
    said = Said()
    append(tmp_path, range(1, 9))
    trackers = trackers_with(box, tmp_path, 0, said)
    trackers.start()
    trackers.finish(FINISHED)
    assert box.steps() == list(range(1, 9))
    assert (box.opened, box.ended, said) == ([None], ["FINISHED"], [])
    progress = json.loads((tmp_path / "trackers" / "box.json").read_text())
    assert progress == {"address": "here", "run_id": "run 1", "delivered": 8, "ended": True}


def test_one_that_refuses_is_named_once_and_gets_everything_later(box: Box, tmp_path: Path) -> None:
    said = Said()
    append(tmp_path, [1, 2])
    trackers = trackers_with(box, tmp_path, 0, said)
    trackers.start()
    wait_until(lambda: box.steps() == [1, 2])
    box.refuses = True
    metrics = MetricsFile(tmp_path / "metrics.csv", 2)
    for step in range(3, 12):
        metrics.append(dict.fromkeys(COLUMNS, 0.5) | {"step": step})
        trackers.wake()
        time.sleep(0.01)
    away = t(
        "{tracker} takes no records ({reason}); the training goes on, and they are sent from metrics.csv later",
        tracker="the box",
        reason="nobody is here",
    )
    assert said == [away]
    box.refuses = False
    wait_until(lambda: box.steps() == list(range(1, 12)))
    trackers.finish(FINISHED)
    assert said == [away, "the box takes records again; it has got steps 3 to 11"]
    assert box.opened == [None, "run 1"]


def test_one_that_hangs_makes_nobody_wait_but_the_end_and_that_not_long(
    box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "SILENT_WAIT_S", 0.05)
    monkeypatch.setattr(delivery, "END_WAIT_S", 0.3)
    said = Said()
    box.moves.clear()
    append(tmp_path, [1, 2, 3])
    trackers = trackers_with(box, tmp_path, 0, said)
    started = time.monotonic()
    trackers.start()
    for _ in range(1000):
        trackers.wake()
    trackers.finish(FINISHED)
    assert time.monotonic() - started < 5
    assert said == [
        "waiting up to 0 s for the box",
        "the box has not got steps 1 to 3 (it is slow); metrics.csv has all steps, and the same command sends what is missing",
    ]


def test_a_run_that_failed_is_not_held_up(box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "SILENT_WAIT_S", 0.05)
    monkeypatch.setattr(delivery, "STOP_WAIT_S", 0.1)
    box.moves.clear()
    append(tmp_path, [1])
    trackers = trackers_with(box, tmp_path, 0, Said())
    trackers.start()
    started = time.monotonic()
    trackers.finish(FAILED)
    assert time.monotonic() - started < 5


def test_a_resumed_experiment_goes_on_in_its_run(box: Box, tmp_path: Path) -> None:
    append(tmp_path, [1, 2, 3, 4])
    first = trackers_with(box, tmp_path, 0, Said())
    first.start()
    first.finish(FAILED)
    append(tmp_path, [3, 4, 5], resume_step=2)
    second = trackers_with(box, tmp_path, 2, Said())
    second.start()
    second.finish(FINISHED)
    assert box.opened == [None, "run 1"]
    assert box.steps() == [1, 2, 3, 4, 5]  # the steps that are done again are the same numbers
    assert box.ended == ["FAILED", "FINISHED"]


def test_one_that_starts_over_or_goes_elsewhere_begins_a_run(box: Box, tmp_path: Path) -> None:
    append(tmp_path, [1, 2])
    first = trackers_with(box, tmp_path, 0, Said())
    first.start()
    first.finish(FAILED)
    append(tmp_path, [1, 2, 3])
    second = trackers_with(box, tmp_path, 0, Said())
    second.start()
    second.finish(FAILED)
    box.address = "there"  # type: ignore[misc]
    third = trackers_with(box, tmp_path, 3, Said())
    third.start()
    third.finish(FINISHED)
    assert box.opened == [None, None, None]
    assert box.steps() == [1, 2, 1, 2, 3, 1, 2, 3]


def test_a_validation_loss_that_came_late_is_sent_with_its_step(box: Box, tmp_path: Path) -> None:
    append(tmp_path, [1, 2])
    trackers = trackers_with(box, tmp_path, 2, Said())
    trackers.start()
    wait_until(lambda: box.steps() == [1, 2])
    MetricsFile(tmp_path / "metrics.csv", 2).fill_in(2, {"val_loss": 3.25})
    trackers.send_again(2)
    trackers.finish(FINISHED)
    assert [(row["step"], row["val_loss"]) for row in box.rows] == [("1", ""), ("2", ""), ("2", "3.25")]


def test_the_tail_of_a_file_gives_complete_rows_again_until_it_advances(tmp_path: Path) -> None:
    append(tmp_path, [1, 2])
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("3,0.5")
    tail = MetricsTail(tmp_path / "metrics.csv")
    assert [row["step"] for row in tail.read()] == [row["step"] for row in tail.read()] == ["1", "2"]
    tail.advance()
    assert tail.read() == []
    append(tmp_path, [3, 4], resume_step=2)  # a new file: from its beginning
    assert [row["step"] for row in tail.read()] == ["1", "2", "3", "4"]


def test_tensorboard_gets_over_a_folder_it_cannot_make(tmp_path: Path) -> None:
    said = Said()
    (tmp_path / "tensorboard").write_text("in the way")
    append(tmp_path, [1, 2, 3])
    trackers = trackers_with(TensorBoardTracker(tmp_path / "tensorboard"), tmp_path, 0, said)
    trackers.start()
    wait_until(lambda: len(said) == 1)
    (tmp_path / "tensorboard").unlink()
    trackers.finish(FINISHED)
    assert "TensorBoard takes no records" in said[0] and said[-1].endswith("it has got steps 1 to 3")
    assert losses(tmp_path / "tensorboard") == {1: 1.0, 2: 2.0, 3: 3.0}


def test_tensorboard_forgets_steps_that_are_done_again(tmp_path: Path) -> None:
    for steps, resume_step in (([1, 2, 3], 0), ([2, 3, 4], 1)):
        append(tmp_path, steps, resume_step)
        trackers = trackers_with(TensorBoardTracker(tmp_path / "tensorboard"), tmp_path, resume_step, Said())
        trackers.start()
        trackers.finish(FINISHED)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train_loss")] == [1, 2, 3, 4]


FULL = """
import resource, signal, sys
from pathlib import Path
from finetuning.training.trackers import TensorBoardTracker
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
tracker = TensorBoardTracker(Path(sys.argv[1]))
tracker.open(None, 0)
tracker.send([{"step": "1", "train_loss": "1.0"}])
size = next(Path(sys.argv[1]).iterdir()).stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, size + 20))
try:
    tracker.send([{"step": "2", "train_loss": "2.0"}])
except OSError as error:
    print(error.strerror, next(Path(sys.argv[1]).iterdir()).stat().st_size == size)
"""


def test_a_full_disk_leaves_no_half_record(tmp_path: Path) -> None:
    """A limit on the size of files gives the errors of a full disk: a short write first."""
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "File too large True\n"
    assert losses(tmp_path) == {1: 1.0}


def losses(folder: Path) -> dict[int, float]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("train_loss")}


def test_rows_have_the_time_of_their_step(tmp_path: Path) -> None:
    append(tmp_path, [1])
    with (tmp_path / "metrics.csv").open() as file:
        assert next(csv.DictReader(file))["time"] == "0.5"
