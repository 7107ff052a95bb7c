"""A worker can tell whether the processes above it are still those that started it, and does not wait for lost siblings."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetuning.lifeline import LAUNCHER_PID, launcher_is_gone

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
from finetuning.lifeline import end_with_parent, end_with_siblings

end_with_parent()
signal.signal(signal.SIGTERM, lambda *_: None)
end_with_siblings(lambda: True)
folder, rank = Path(sys.argv[1]), os.environ["RANK"]
(folder / rank).touch()
while True:
    if rank == "1" and (folder / "0").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
"""


def start_torchrun(folder: Path, workers: int) -> subprocess.Popen[bytes]:
    script = folder / "worker.py"
    script.write_text(HANGS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers), str(script)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.Popen([*command, str(folder)], env=environment, stderr=subprocess.DEVNULL)


@pytest.mark.dist
def test_workers_of_torchrun_end_at_once_when_one_of_them_was_killed(tmp_path: Path) -> None:
    process = start_torchrun(tmp_path, 2)
    assert process.wait(timeout=120) == 1
    assert time.time() - (tmp_path / "killed").stat().st_mtime < 20, "torchrun's own patience is 30 s"


@pytest.mark.dist
def test_sigterm_alone_does_not_end_a_worker_whose_siblings_are_well(tmp_path: Path) -> None:
    process = start_torchrun(tmp_path, 1)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "0").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (worker,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(worker), signal.SIGTERM)
        time.sleep(1)
        os.kill(int(worker), 0)
        assert "Z" not in Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2]
    finally:
        process.kill()
        process.wait()


def parent_of(pid: int) -> int:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("PPid:"))
    return int(line.split()[1])
