"""A worker can tell whether the processes above it are still those that started it."""

import os
import sys
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


def parent_of(pid: int) -> int:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("PPid:"))
    return int(line.split()[1])
