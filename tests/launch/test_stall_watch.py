"""When a run counts as hung, and what is said before: by what its workers show, not by the time of day."""

import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetuning.launch.stall_watch import SHORTEST_LIMIT_S, SILENT_LIMIT_S, StallWatch
from finetuning.launch.stop_requests import StopRequests
from finetuning.launch.torchrun import torchrun_options, worker_environment
from finetuning.launch.workers import Workers
from finetuning.runtime.failures import first_failure
from finetuning.runtime.progress import BOARD_FILE, Phase, Progress, ProgressBoard
from finetuning.runtime.status import RUNNING, read_status, write_status


@pytest.fixture
def board() -> Iterator[ProgressBoard]:
    board = ProgressBoard(1)
    yield board
    board.close()


@pytest.fixture
def worker(board: ProgressBoard, monkeypatch: pytest.MonkeyPatch) -> Progress:
    """One that has done steps of 2 s."""
    monkeypatch.setenv(BOARD_FILE, board.file)
    monkeypatch.setenv("LOCAL_RANK", "0")
    progress = Progress()
    for step in (1, 2, 3):
        progress.step_is_certain()
        progress.step_done(step, seconds=50.0 if step == 1 else 2.0)
    return progress


def wait(watch: StallWatch, seconds: int) -> list[tuple[int, str]]:
    """What is told, and when, while nothing happens for so long."""
    told = [(second, watch.look(1.0)) for second in range(seconds)]
    return [(second, text) for second, text in told if text is not None]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("asked", "notices", "end"),
    [(None, [10, 20, 40, 80, 160], SHORTEST_LIMIT_S), (15, [8], 15), (1, [4], 8), (0, [10, 20, 40], 0)],
)
def test_a_run_that_does_no_step_is_told_about_and_then_hung(
    asked: float | None, notices: list[int], end: float, board: ProgressBoard, worker: Progress
) -> None:
    watch = StallWatch(board, asked)
    told = wait(watch, int(end) or 60)
    assert [second for second, _ in told] == notices
    assert all(text.startswith(f"No step for {second} s (usually 2 s)") for second, text in told)
    limit = f"; the run is ended after {end:.0f} s of it (--stall_timeout_s)"
    assert all(text.endswith(limit) if end else "--stall_timeout_s" not in text for _, text in told)
    assert not watch.has_hung
    wait(watch, 2)
    assert watch.has_hung == (end > 0)


@pytest.mark.unit
def test_progress_starts_the_wait_again_and_is_told_where_its_lack_was(board: ProgressBoard, worker: Progress) -> None:
    watch = StallWatch(board, None)
    assert wait(watch, 9) == []
    worker.beat()
    assert wait(watch, 9) == []
    wait(watch, 9)
    worker.step_done(4, 1.0)
    assert wait(watch, 1) == [(0, "it goes on, after 17 s")]


@pytest.mark.unit
def test_phases_that_show_nothing_for_long_have_longer(board: ProgressBoard, worker: Progress) -> None:
    watch = StallWatch(board, None)
    with worker.during(Phase.SAVING):
        told = wait(watch, int(SILENT_LIMIT_S))
        assert told[0] == (
            180,
            "No sign of progress for 180 s, saving step 3; the run is ended after 1800 s of it (--stall_timeout_s)",
        )
        assert not watch.has_hung
    with worker.during(Phase.VALIDATING):
        assert wait(watch, 12)[-1][1].startswith("No sign of progress for 10 s, validating after step 3")


@pytest.mark.unit
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
def test_bytes_that_are_written_are_progress(board: ProgressBoard, worker: Progress, tmp_path: Path) -> None:
    watch = StallWatch(board, None)
    with (tmp_path / "checkpoint").open("wb") as file:
        for _ in range(40):
            file.write(bytes(2**21))
            file.flush()
            assert wait(watch, 5) == []


@pytest.mark.unit
def test_a_pause_of_the_launcher_itself_counts_for_a_second(board: ProgressBoard, worker: Progress) -> None:
    watch = StallWatch(board, None)
    watch.look(1.0)
    assert watch.look(8 * 3600.0) is None
    assert not watch.has_hung


@pytest.mark.unit
def test_a_board_leaves_no_file_once_all_workers_have_opened_it(board: ProgressBoard, worker: Progress) -> None:
    assert Path(board.file).exists()
    (slot,) = board.read()
    assert not Path(board.file).exists()
    assert (slot.pid, slot.phase, slot.trains, slot.step, slot.usual_s) == (os.getpid(), Phase.TRAINING, True, 3, 2.0)


# Rank 0 waits for rank 1 in C, which hangs after some steps.
HANGS = """
import os, re, signal, sys, time
from finetuning.runtime.process_lifetime import begin_worker
begin_worker()
import torch.distributed as dist
import torch
from finetuning.runtime.progress import Phase, Progress
from finetuning.runtime.output import redirect_output
from pathlib import Path

def loop_in_python():
    while True:
        pass

def hold_the_interpreter_in_c():
    re.match("(a+)+$", "a" * 60 + "b")

def sleep_through_signals():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    while True:
        time.sleep(1000)

rank = int(os.environ["RANK"])
redirect_output(Path(sys.argv[1]) / f"rank_{rank}.log")
signal.signal(signal.SIGTERM, lambda *_: None)
progress = Progress()
dist.init_process_group("gloo")
for step in range(1, 6):
    dist.all_reduce(torch.ones(1))
    progress.step_is_certain()
    progress.step_done(step, 0.01)
if rank == 1:
    globals()[sys.argv[2]]()
dist.all_reduce(torch.ones(1))
"""


@pytest.mark.dist
@pytest.mark.parametrize("way", ["loop_in_python", "hold_the_interpreter_in_c", "sleep_through_signals"])
def test_workers_that_hang_in_any_way_show_their_stacks_and_are_gone(way: str, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    write_status(tmp_path, RUNNING, step=5)
    (tmp_path / "worker.py").write_text(HANGS)
    command = [*torchrun_options(2), str(tmp_path / "worker.py"), str(logs), way]
    with StopRequests((signal.SIGTERM,), can_kill=True) as stop:
        ended = Workers(2, logs, "torchrun.log", stop, 12.0).run(command, worker_environment(2))
    assert ended.code != 0
    failure = first_failure(logs)
    assert failure is not None
    assert re.match(
        r"the run hung and was ended\. No step for 1\d s \(usually 0\.01 s\)\. Where each rank was", failure["message"]
    )
    stacks = [(logs / f"rank_{rank}.log").read_text() for rank in (0, 1)]
    assert "in all_reduce" in stacks[0]
    assert f"in {way}" in stacks[1]
    assert read_status(tmp_path)["stall"].startswith("No step for ")
    pattern = str(tmp_path / "worker.py").encode()
    assert [entry for entry in Path("/proc").glob("[0-9]*") if pattern in cmdline(entry)] == []


def cmdline(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
