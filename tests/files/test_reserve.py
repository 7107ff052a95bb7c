"""On a disk without a byte left it is still written how a run ended: in the room that was kept aside."""

from pathlib import Path

import pytest

from finetuning.errors import NoRoom, RunError
from finetuning.files.atomic import require_room
from finetuning.files.reserve import RESERVE_BYTES, RESERVE_FILE, reserve_room
from finetuning.launch.outcome import decide_outcome, record_outcome
from finetuning.runtime.failures import first_failure, write_failure, write_killed
from finetuning.runtime.status import FAILED, RUNNING, read_status, write_status
from tests.disks import fill

pytestmark = pytest.mark.unit


def test_a_full_disk_has_room_for_the_reason(small_disk: Path) -> None:
    folder = small_disk / "experiment"
    folder.mkdir()
    reserve_room(folder)
    reserve_room(folder)
    assert (folder / RESERVE_FILE).stat().st_size == RESERVE_BYTES
    write_status(folder, RUNNING, step=3, max_steps=9)
    fill(small_disk)
    with pytest.raises(NoRoom, match=f"^{small_disk}: 0.00 GiB are needed, and 0.00 GiB are free"):
        require_room(small_disk, 100_000)
    write_failure(folder / "logs", 0, RunError("the reason"), None)
    assert not (folder / RESERVE_FILE).exists()
    outcome = decide_outcome(folder, log=folder / "log")
    record_outcome(folder, outcome)
    status = read_status(folder)
    assert (status["state"], status["reason"], status["step"]) == (FAILED, "the reason", 3)
    fill(small_disk)
    with pytest.raises(NoRoom, match="No space left on device"):
        write_status(folder, RUNNING, reason="x" * 100_000)
    record_outcome(folder, outcome)  # says nothing, as the screen has the reason
    assert read_status(folder)["reason"] == "the reason"
    with pytest.raises(NoRoom, match="No space left on device"):
        reserve_room(folder)
    assert not (folder / RESERVE_FILE).exists()


def test_a_folder_that_was_removed_is_said_and_does_not_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "experiment"
    write_failure(folder / "logs", 0, FileNotFoundError(2, "No such file", str(folder / "metrics.csv")), None)
    outcome = decide_outcome(folder, log=folder / "log")
    record_outcome(folder, outcome)
    assert outcome.state == FAILED and outcome.log is None
    assert outcome.reason == f"{folder}: the experiment's folder was removed, or cannot be reached any more, while it ran"
    assert not folder.exists()


def test_a_file_that_became_shorter_under_its_reader_is_not_from_outside(tmp_path: Path) -> None:
    write_killed(tmp_path / "logs", 1, "SIGBUS")
    failure = first_failure(tmp_path / "logs")
    assert failure is not None and "became shorter while it was read" in failure["message"]
