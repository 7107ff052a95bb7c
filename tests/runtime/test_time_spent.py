"""Where the time of a run goes."""

import os
import subprocess
import sys
import time

import pytest

from finetuning.runtime import time_spent
from finetuning.runtime.process_lifetime import LAUNCHER_PID
from finetuning.runtime.progress import Phase, Progress
from finetuning.runtime.time_spent import END, PARTS, SAVES, START, STEPS, VALIDATION, TimeSpent, command_age_s, in_words

pytestmark = pytest.mark.unit


class Clock:
    """Stands still but for `pass_`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now_s = 1000.0
        monkeypatch.setattr(time_spent.time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(time_spent.time, "clock_gettime", lambda clock: 0.0)

    def pass_(self, seconds: float) -> None:
        self.now_s += seconds


def test_the_parts_of_a_run_add_up_from_the_command_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    progress = Progress()
    progress.spent = TimeSpent(5.0)  # imports, before it could count
    progress.enter(Phase.LOADING)
    clock.pass_(10)
    with progress.during(Phase.VALIDATING):  # of the untrained model
        clock.pass_(3)
    progress.enter(Phase.FIRST_STEP)
    clock.pass_(20)
    progress.step_done(1, 20.0)
    for step in range(2, 11):
        clock.pass_(2)
        progress.step_done(step, 2.0)
    with progress.during(Phase.VALIDATING):
        clock.pass_(4)
    with progress.during(Phase.SAVING):
        clock.pass_(1)
    progress.enter(Phase.TESTING)
    clock.pass_(6)
    with progress.held():
        clock.pass_(2)
    found = progress.spent.so_far()
    assert found == {START: 38.0, STEPS: 18.0, SAVES: 3.0, VALIDATION: 4.0, END: 6.0}
    assert progress.spent.total_s == sum(found.values()) == clock.now_s - 995.0
    assert in_words(found) == (
        "start 38 s (55%) · steps 18 s (26%) · waiting for saves 3 s (4%) · validation 4 s (6%) · end 6 s (9%)"
    )


def test_parts_that_took_no_time_are_not_named() -> None:
    assert in_words(dict.fromkeys(PARTS, 0.0) | {START: 0.4}) == ""
    assert in_words({STEPS: 7200.0}) == "steps 7,200 s (100%)"


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_the_time_counts_from_the_command_that_a_worker_works_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as launcher:
        monkeypatch.setenv(LAUNCHER_PID, str(launcher.pid))
        time.sleep(0.2)
        assert 0.1 < command_age_s() < 60
        launcher.kill()
    assert command_age_s() == 0.0
    monkeypatch.delenv(LAUNCHER_PID)
    assert command_age_s() < time.monotonic() - 0.0 and os.getpid() > 0
