"""How a run has ended, from what its processes left."""

from pathlib import Path

import pytest

from finetuning.launch.outcome import decide_outcome
from finetuning.runtime.failures import write_killed
from finetuning.runtime.status import FAILED, FINISHED, RUNNING, write_status

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("state", "ends"), [(FINISHED, FINISHED), (RUNNING, FAILED)])
def test_a_process_that_is_killed_on_its_way_out_makes_no_finished_run_fail(tmp_path: Path, state: str, ends: str) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    write_status(tmp_path, state, step=3, max_steps=3)
    write_killed(logs, 1, "SIGABRT")
    outcome = decide_outcome(tmp_path, log=logs / "torchrun.log")
    assert outcome.state == ends
    assert (outcome.reason is None) == (ends == FINISHED)
