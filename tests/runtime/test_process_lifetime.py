"""A worker can tell whether the processes above it are still those that started it, and does not wait for lost siblings."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetuning.runtime.process_lifetime import LAUNCHER_PID, SIBLINGS_GRACE_S, launcher_is_gone

pytestmark = [pytest.mark.unit, pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")]


def test_torchrun_started_by_hand_has_no_launcher_to_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LAUNCHER_PID, raising=False)
    assert not launcher_is_gone()


def test_the_launcher_is_there_while_it_is_the_parent_of_the_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAUNCHER_PID, str(parent_of(os.getppid())))
    assert not launcher_is_gone()


def test_another_grandparent_means_that_torchrun_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    # Linux gives the children of a process that ended to another one, which this launcher did not start.
    monkeypatch.setenv(LAUNCHER_PID, str(os.getpid()))
    assert launcher_is_gone()


# A worker that trains and never comes to the end of its step, as if it hung in a message.
HANGS = """
import os, signal, sys, time
from pathlib import Path
from finetuning.runtime.process_lifetime import end_with_parent, end_with_siblings

end_with_parent()
signal.signal(signal.SIGTERM, lambda *_: None)
folder, rank, trains = Path(sys.argv[1]), os.environ["RANK"], sys.argv[2] == "trains"
end_with_siblings(lambda: trains)
(folder / rank).touch()
while True:
    if rank == "1" and all((folder / str(other)).exists() for other in range(int(os.environ["WORLD_SIZE"]))):
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
"""


def start_torchrun(folder: Path, workers: int, *, trains: bool = True) -> subprocess.Popen[bytes]:
    script = folder / "worker.py"
    script.write_text(HANGS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers), str(script)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    arguments = [str(folder), "trains" if trains else "exports"]
    return subprocess.Popen([*command, *arguments], env=environment, stderr=subprocess.DEVNULL)


@pytest.mark.dist
def test_workers_of_torchrun_end_soon_when_one_of_them_was_killed(tmp_path: Path) -> None:
    process = start_torchrun(tmp_path, 4)
    assert process.wait(timeout=120) == 1
    assert time.time() - (tmp_path / "killed").stat().st_mtime < 20, "torchrun's own patience is 30 s"


@pytest.mark.dist
@pytest.mark.parametrize(("lost", "trains"), [(False, True), (True, False)], ids=["siblings are well", "does not train"])
def test_sigterm_alone_does_not_end_a_worker(tmp_path: Path, lost: bool, trains: bool) -> None:
    process = start_torchrun(tmp_path, 2 if lost else 1, trains=trains)
    try:
        wait_for(tmp_path / ("killed" if lost else "0"))
        if not lost:
            (worker,) = children_of(process.pid)
            os.kill(worker, signal.SIGTERM)
        time.sleep(SIBLINGS_GRACE_S + 2)  # torchrun itself sends SIGTERM where one was lost
        (worker,) = children_of(process.pid)
        assert "Z" not in Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2]
    finally:
        process.kill()
        process.wait()


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def parent_of(pid: int) -> int:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("PPid:"))
    return int(line.split()[1])
