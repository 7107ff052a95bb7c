"""Checkpoints that are written beside the training: what they hold, who waits for them, and what becomes of their errors."""

import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from finetuning.checkpoint.background import BackgroundSaves
from finetuning.checkpoint.files import checkpoint_name, find_checkpoints
from finetuning.errors import NoRoom, StopRequested
from finetuning.runtime.progress import Phase, Progress
from finetuning.storage import dcp_save
from finetuning.storage.dcp_reader import ShardedFiles, damaged_part
from tests.disks import fill
from tests.processes import run_processes

pytestmark = pytest.mark.dist


def state_of(value: float) -> dict[str, Tensor]:
    """Something that all ranks hold alike, and something of each rank's own."""
    return {"model.same": torch.full((1000,), value), f"random.rank{dist.get_rank()}": torch.full((1000,), value)}


class Saving:
    """The saves of a rank, their first one held up until `release`."""

    def __init__(self, folder: Path, memory_bytes: int = 2**30):
        self.folder, self.said = folder, list[str]()
        self.progress, self.released = Progress(), threading.Event()
        self.saves = BackgroundSaves(torch.device("cpu"), self.progress, self.said.append, lambda: memory_bytes)

    def save(self, step: int, state: dict[str, Tensor]) -> None:
        self.saves.save(self.folder / checkpoint_name(step), state, {"step": step}, completed=self._wait)

    def _wait(self) -> None:
        assert self.released.wait(60)

    def steps(self) -> list[int]:
        return [checkpoint.step for checkpoint in find_checkpoints(self.folder)[0]]


def change_while_it_saves(folder: Path) -> dict[str, object]:
    """What is known of a save while it is under way and afterwards; the state changes at once."""
    saving = Saving(folder)
    state = state_of(1.0)
    saving.save(1, state)
    for tensor in state.values():
        tensor.fill_(2.0)
    saving.saves.before_update()
    during = (saving.saves.newly_saved(), saving.progress.saved_step, saving.progress.saves, saving.progress.phase)
    saving.released.set()
    saving.saves.finish()
    return {"during": during, "after": (saving.progress.saved_step, saving.progress.saves), "said": saving.said}


def test_a_checkpoint_holds_what_the_state_was_when_its_save_began(tmp_path: Path) -> None:
    for found in run_processes(2, change_while_it_saves, tmp_path):
        assert found["during"] == (None, 0, True, Phase.STARTING)
        assert found["after"] == (1, False)
        assert len(found["said"]) == 1 and found["said"][0].startswith("step 1: checkpoint saved in")
    files = ShardedFiles(tmp_path / "latest")
    assert damaged_part(files, 0, 1) is None
    assert set(files.tensors) == {"model.same", "random.rank0", "random.rank1"}
    for name in files.tensors:
        assert torch.equal(files.read(name), torch.full((1000,), 1.0))


def save_twice(folder: Path, memory_bytes: int) -> tuple[list[list[int]], list[str]]:
    """Which checkpoints are there after the second save has begun, and when it is done."""
    saving = Saving(folder, memory_bytes)
    saving.released.set()
    saving.save(1, state_of(1.0))
    saving.save(2, state_of(2.0))
    begun = saving.steps()
    saving.saves.finish()
    dist.barrier()
    return [begun, saving.steps()], saving.said


def test_the_next_save_waits_for_the_one_before(tmp_path: Path) -> None:
    for (begun, done), said in run_processes(2, save_twice, tmp_path, 2**30):
        assert 1 in begun and done == [1, 2]
        assert [text.split(":")[0] for text in said] == ["step 1", "step 2"]


def test_without_memory_for_a_copy_the_training_waits_for_each_save_and_it_is_said(tmp_path: Path) -> None:
    for (begun, done), said in run_processes(2, save_twice, tmp_path, 1000):
        assert begun == done == [1, 2]
        assert "the training waits for each checkpoint to be written" in said[0] and len(said) == 3


def fill_the_disk_meanwhile(folder: Path) -> dict[str, object]:
    saving = Saving(folder)
    saving.released.set()
    saving.save(1, state_of(1.0))
    saving.saves.finish()
    dist.barrier()
    if dist.get_rank() == 0:
        filler = fill(folder)
    dist.barrier()
    saving.save(2, state_of(2.0))
    while not saving.saves.has_failed:
        pass
    try:
        saving.saves.finish()
    except NoRoom as error:
        message = str(error)
    dist.barrier()  # rank 0 removes
    left = sorted(path.name for path in folder.iterdir() if not path.name.startswith("filler"))
    dist.barrier()
    if dist.get_rank() == 0:
        filler.unlink()
    dist.barrier()
    saving.save(3, state_of(3.0))
    saving.saves.finish()
    dist.barrier()
    return {"message": message, "left": left, "steps": saving.steps(), "saved": saving.progress.saved_step}


def test_a_disk_that_fills_up_during_a_save_is_an_error_of_all_ranks_and_leaves_nothing(small_disk: Path) -> None:
    for found in run_processes(2, fill_the_disk_meanwhile, small_disk):
        assert str(found["message"]).startswith(f"{small_disk}: no room left (No space left on device")
        assert found["left"] == ["latest", "step=000001"]
        assert (found["steps"], found["saved"]) == ([1, 3], 3)


def leave(folder: Path, error: BaseException | None, full: bool) -> tuple[str, list[int], int]:
    """How it ends, and what is there then, when the work ends in this way with a save under way."""
    saving = Saving(folder)
    saving.progress.starts_at(0)
    if full:
        fill(folder)
    threading.Timer(0.3, saving.released.set).start()
    try:
        with saving.saves:
            saving.save(1, state_of(1.0))
            if error is not None:
                raise error
        ended = "well"
    except (ValueError, NoRoom, StopRequested) as met:
        ended = type(met).__name__
    return ended, saving.steps(), saving.progress.saved_step


@pytest.mark.parametrize("error", [None, ValueError(), StopRequested()], ids=["end", "error", "stop"])
def test_nobody_leaves_before_the_save_under_way_is_on_the_disk(tmp_path: Path, error: BaseException | None) -> None:
    ((ended, steps, saved),) = run_processes(1, leave, tmp_path, error, False)
    assert ended == ("well" if error is None else type(error).__name__)
    assert steps == [1]
    assert saved == (0 if isinstance(error, ValueError) else 1)


@pytest.mark.parametrize(
    ("error", "expected"), [(None, "NoRoom"), (ValueError(), "ValueError"), (StopRequested(), "NoRoom")], ids=str
)
def test_a_save_that_fails_at_the_end_is_told_unless_something_else_has_failed(
    small_disk: Path, error: BaseException | None, expected: str
) -> None:
    ((ended, steps, _),) = run_processes(1, leave, small_disk, error, True)
    assert (ended, steps) == (expected, [])


def write_in_threads(folder: Path) -> tuple[list[str], str]:
    """The files of four threads, and the error when the disk is full in one of them."""
    dcp_save.BYTES_OF_A_WRITER = 1000
    state = {f"tensor{index}": torch.full((250 * (index + 1),), float(index)) for index in range(9)}
    target = folder / "written"
    target.mkdir()
    dcp_save.write_sharded_files(target, state)
    files = ShardedFiles(target)
    assert damaged_part(files, 0, 1) is None
    assert all(torch.equal(files.read(name), value) for name, value in state.items())
    fill(folder)
    try:
        dcp_save.write_sharded_files(folder / "other", {name: value.repeat(100) for name, value in state.items()})
    except NoRoom as error:
        return sorted(path.name for path in target.iterdir()), str(error)
    return [], "written"


def test_several_threads_write_a_file_each_and_tell_when_the_disk_is_full(small_disk: Path) -> None:
    ((names, error),) = run_processes(1, write_in_threads, small_disk)
    assert names == [".metadata", "__0_0.distcp", "__0_1_0.distcp", "__0_2_0.distcp", "__0_3_0.distcp"]
    assert "no room left" in error
