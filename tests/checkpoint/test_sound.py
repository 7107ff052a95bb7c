"""A run goes on from the newest checkpoint whose every byte is as it was written, and a full disk leaves no half one."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from finetuning.checkpoint.files import INFO_FILE, checkpoint_name, find_checkpoints
from finetuning.checkpoint.sound import newest_checkpoint
from finetuning.checkpoint.store import load_weights, save_checkpoint
from finetuning.errors import NoRoom, RunError
from finetuning.files.atomic import write_text
from tests.models import build
from tests.processes import run_processes

pytestmark = pytest.mark.dist


def flip_a_bit(folder: Path) -> None:
    file = folder / "__0_0.distcp"
    content = bytearray(file.read_bytes())
    content[content.index(torch.full((8,), 7.0).numpy().tobytes()) + 3] ^= 1
    file.write_bytes(content)


def find_newest(folder: Path, num_saved: int, damaged: tuple[int, ...]) -> tuple[int | None, list[str], list[str]]:
    """Step that is gone on from, what is said, what lies in the folder then; two ranks that share the reading."""
    for step in range(1, num_saved + 1):
        path = folder / checkpoint_name(step)
        dcp.save({"a": torch.full((8,), 7.0), "b": torch.zeros(8)}, checkpoint_id=path)
        if dist.get_rank() == 0:
            files = {file.name: file.stat().st_size for file in path.iterdir()}
            write_text(path / INFO_FILE, f'{{"step": {step}, "files": {str(files).replace(chr(39), chr(34))}}}')
            if step in damaged:
                flip_a_bit(path)
    dist.barrier()
    try:
        found, said = newest_checkpoint(folder)
    except RunError as error:
        return None, [str(error)], []
    dist.barrier()
    return found.step if found else 0, said, sorted(path.name for path in folder.iterdir())


def test_a_damaged_checkpoint_is_named_kept_aside_and_passed_over(tmp_path: Path) -> None:
    for step, said, names in run_processes(2, find_newest, tmp_path, 3, (3,)):
        assert step == 2
        path = tmp_path / "step=000003"
        assert said == [f"passed over: {path}: __0_0.distcp is damaged at byte 0; it is kept as damaged-step=000003"]
        assert names == ["damaged-step=000003", "latest", "step=000001", "step=000002"]
    assert (tmp_path / "latest").readlink() == Path("step=000002")


def test_a_link_that_a_killed_process_left_behind_is_set_anew(tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to("step=000001")
    for step, said, _ in run_processes(2, find_newest, tmp_path, 2, ()):
        assert (step, said) == (2, [])
    assert (tmp_path / "latest").readlink() == Path("step=000002")


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew_by_itself(tmp_path: Path) -> None:
    for step, said, _ in run_processes(2, find_newest, tmp_path, 2, (1, 2)):
        assert step is None
        assert said[0].endswith("no sound checkpoint is before it. To begin anew, give another --experiment name")


def test_a_run_without_checkpoints_begins_at_the_beginning(tmp_path: Path) -> None:
    assert run_processes(2, find_newest, tmp_path, 0, ()) == [(0, [], [])] * 2


def save_until_full(model_folder: Path, folder: Path) -> tuple[int, str]:
    model = build(model_folder)
    for step in range(1, 9):
        try:
            save_checkpoint(folder / checkpoint_name(step), model, {}, {"step": step})
        except NoRoom as error:
            return step, str(error)
    return 0, ""


def test_a_disk_that_one_rank_finds_full_ends_on_all_and_leaves_no_half_checkpoint(tiny_model: Path, small_disk: Path) -> None:
    first, second = run_processes(2, save_until_full, tiny_model, small_disk)
    assert first == second and first[0] == 2
    assert first[1].startswith(f"{small_disk}: no room left (No space left on device")
    assert sorted(path.name for path in small_disk.iterdir()) == ["latest", "step=000001"]
    assert [checkpoint.step for checkpoint in find_checkpoints(small_disk)[0]] == [1]


def take_damaged_weights(model_folder: Path, path: Path) -> str:
    model = build(model_folder)
    save_checkpoint(path, model, {}, {"step": 1})
    dist.barrier()
    if dist.get_rank() == 0:
        file = path / "__1_0.distcp"
        content = bytearray(file.read_bytes())
        middle = slice(len(content) // 2, len(content) // 2 + 4096)  # more than lies between two pieces
        content[middle] = bytes(byte ^ 1 for byte in content[middle])
        file.write_bytes(content)
    dist.barrier()
    try:
        load_weights(path, model)
    except RunError as error:
        return str(error)
    return "loaded"


def test_damaged_weights_are_never_the_start_of_another_run(tiny_model: Path, tmp_path: Path) -> None:
    first, second = run_processes(2, take_damaged_weights, tiny_model, tmp_path / checkpoint_name(1))
    assert first == second and first.startswith(f"{tmp_path / checkpoint_name(1)}: __1_0.distcp is damaged at byte")
