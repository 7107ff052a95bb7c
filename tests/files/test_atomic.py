"""Whole or not at all, with a limit on the size of files, which the system answers like a full disk."""

import errno
import os
import re
import resource
import stat
from pathlib import Path

import pytest

from finetuning.errors import NoRoom
from finetuning.files.atomic import copy_file, delete, no_room, remove_incomplete, whole_folder, write_text

pytestmark = pytest.mark.unit


@pytest.fixture
def small_files() -> object:
    """No file of this process may grow beyond 64 KiB: the system answers EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_that_does_not_fit_leaves_the_old_one(tmp_path: Path, small_files: object) -> None:
    file = tmp_path / "a.json"
    write_text(file, "old", mode=0o600)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(NoRoom) as caught:
        write_text(file, "x" * 100_000)
    assert str(caught.value) == (
        f"{tmp_path}: no room left (File too large: see `ulimit -f`, and what its file system takes). Raise that limit or "
        "take another folder, then run the same command again; nothing that was complete is lost"
    )
    assert file.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def test_each_way_of_having_no_room_is_told_with_what_helps(tmp_path: Path) -> None:
    quota = str(no_room(tmp_path / "new", OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))))
    assert quota.startswith(f"{tmp_path}/new: no room left (Disk quota exceeded). Make room in your quota there, then run")
    disk = str(no_room(tmp_path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    assert re.match(rf"{tmp_path}: no room left \(No space left on device; [\d.]+ GiB are free\)\. Make room there", disk)


def test_a_copy_that_does_not_fit_leaves_the_old_one(tmp_path: Path, small_files: object) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("old")
    copy_file(source, target)
    source.write_text("x" * 60_000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    with pytest.raises(NoRoom, match="no room left"):
        copy_file(source, target)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["source", "target"]


def test_a_folder_that_does_not_fit_leaves_the_old_one(tmp_path: Path, small_files: object) -> None:
    target = tmp_path / "folder"
    with whole_folder(target) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(NoRoom), whole_folder(target) as folder:
        (folder / "b").write_text("x" * 100_000)
    assert (target / "a").read_text() == "old"
    assert names(tmp_path) == ["folder"]


def test_what_a_killed_process_has_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".incomplete-a").mkdir()
    (tmp_path / ".incomplete-b-17").write_text("half")
    (tmp_path / ".deleted-c").mkdir()
    (tmp_path / "kept").mkdir()
    remove_incomplete(tmp_path)
    assert names(tmp_path) == ["kept"]
    delete(tmp_path / "kept")
    assert names(tmp_path) == []
