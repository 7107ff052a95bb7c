"""Files and folders that appear whole or not at all, also when the power fails or the disk is full.

Each is written beside its place, as `.incomplete-NAME` or `.incomplete-NAME-PID`, made durable, and renamed. What a killed
process has left under such a name is removed by the next one that writes there, or by `remove_incomplete`.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from finetuning.errors import InputError, NoRoom
from finetuning.i18n import t

INCOMPLETE, DELETED = ".incomplete-", ".deleted-"  # how names begin
PRIVATE = 0o600  # mode of files that hold settings, which name folders and accounts
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_text(file: Path, text: str, *, mode: int = 0o666, durable: bool = True) -> None:
    """Replaces a file; who reads it sees the old text or the new one. `mode` is narrowed by the umask.

    Without `durable` nobody waits for the disk, and after a power failure the file may be damaged.

    Raises:
        NoRoom: the disk is full; the old file is untouched.
    """
    temporary = file.with_name(f"{INCOMPLETE}{file.name}-{os.getpid()}")
    with tells_no_room(file.parent):
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                if durable:
                    os.fsync(stream.fileno())
            temporary.replace(file)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise


def copy_file(source: Path, target: Path) -> None:
    """As `write_text`, with what a file of any size holds."""
    temporary = target.with_name(f"{INCOMPLETE}{target.name}-{os.getpid()}")
    with tells_no_room(target.parent):
        try:
            shutil.copyfile(source, temporary)
            sync(temporary)
            temporary.replace(target)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """An empty folder to write into, which takes the place of `target` when the block ends without an error.

    For one process; several that write one folder use `begin_folder` and `finish_folder` on one of them.

    Raises:
        NoRoom: the disk is full; `target` is untouched and nothing is left beside it.
    """
    temporary = begin_folder(target)
    try:
        with tells_no_room(target.parent):
            yield temporary
            finish_folder(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def begin_folder(target: Path) -> Path:
    """An empty folder beside `target`."""
    temporary = target.with_name(INCOMPLETE + target.name)
    try:
        with tells_no_room(target.parent):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
    except OSError as error:
        raise InputError(t("{path}: cannot be made: {reason}", path=target, reason=error.strerror or error)) from None
    return temporary


def finish_folder(temporary: Path, target: Path) -> None:
    """Puts a complete folder in its place, after everything in it is on the disk; an earlier one goes."""
    with tells_no_room(target.parent):
        sync_folder(temporary)
        if target.exists() or target.is_symlink():
            delete(target)
        temporary.rename(target)
        sync(target.parent)


def point_to(link: Path, name: str) -> None:
    """Makes `link` a symbolic link to `name`, replacing it in one step."""
    temporary = link.with_name(f"{INCOMPLETE}{link.name}-{os.getpid()}")
    with tells_no_room(link.parent):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(name)
        temporary.replace(link)


def delete(path: Path) -> None:
    """Removes a folder, which is never seen half deleted, or a file or link."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    doomed = path.with_name(DELETED + path.name)
    shutil.rmtree(doomed, ignore_errors=True)
    shutil.rmtree(path.rename(doomed))


def remove_incomplete(folder: Path, *patterns: str) -> None:
    """Clears what killed processes have left in a folder; only while nobody writes there.

    `patterns` are names of other leftovers, of before they all began alike.
    """
    for pattern in (f"{INCOMPLETE}*", f"{DELETED}*", *patterns):
        for path in folder.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def sync_folder(folder: Path) -> None:
    """Makes everything in a folder durable."""
    for path in (*folder.rglob("*"), folder):
        if not path.is_symlink():
            sync(path)


def sync(path: Path) -> None:
    """Makes a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # file systems that cannot, of folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def temporary_folder() -> Path:
    """Where temporary files go.

    Raises:
        NoRoom: to none of the usual places.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise NoRoom(
            t(
                "no folder takes temporary files, as all are full or closed ({reason}). Make room in one of them, or set "
                "TMPDIR to another",
                reason=error.strerror,
            )
        ) from None


@contextmanager
def tells_no_room(folder: Path) -> Iterator[None]:
    """Turns what the system says when a disk, a quota or a file's size is at its limit into `NoRoom`."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise no_room(folder, error) from None


def require_room(folder: Path, needed: int) -> None:
    """
    Raises:
        NoRoom: fewer than `needed` bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise NoRoom(
            t(
                "{folder}: {needed:.2f} GiB are needed, and {free:.2f} GiB are free. Make room there, then run the same "
                "command again; nothing that was complete is lost",
                folder=folder,
                needed=needed / 2**30,
                free=free / 2**30,
            )
        )


def no_room(folder: Path, error: OSError) -> NoRoom:
    """What the system means by each of `NO_ROOM`, and what helps."""
    if error.errno == errno.EFBIG:
        return NoRoom(
            t(
                "{folder}: no room left ({reason}: see `ulimit -f`, and what its file system takes). "
                "Raise that limit or take another folder, then run the same command again; nothing that was complete is lost",
                folder=folder,
                reason=error.strerror,
            )
        )
    if error.errno == errno.EDQUOT:
        return NoRoom(
            t(
                "{folder}: no room left ({reason}). "
                "Make room in your quota there, then run the same command again; nothing that was complete is lost",
                folder=folder,
                reason=error.strerror,
            )
        )
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(there).free / 2**30
    return NoRoom(
        t(
            "{folder}: no room left ({reason}; {free:.1f} GiB are free). "
            "Make room there, then run the same command again; nothing that was complete is lost",
            folder=folder,
            reason=error.strerror,
            free=free,
        )
    )
