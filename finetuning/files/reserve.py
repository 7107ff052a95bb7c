"""Room that is kept aside in an experiment's folder, so that on a full disk it can still be written how the run ended."""

import os
from collections.abc import Callable
from pathlib import Path

from finetuning.errors import NoRoom
from finetuning.files.atomic import tells_no_room

RESERVE_FILE = ".reserved"
RESERVE_BYTES = 512 * 2**10  # of status.json and of the errors of some ranks, with their tracebacks


def reserve_room(folder: Path) -> None:
    """Takes the room, unless it is taken already.

    Raises:
        NoRoom: there is not even this much.
    """
    file = folder / RESERVE_FILE
    if file.is_file() and file.stat().st_size == RESERVE_BYTES:
        return
    with tells_no_room(folder):
        try:
            file.write_bytes(os.urandom(RESERVE_BYTES))  # random: some file systems store nothing for zeros
        except OSError:
            file.unlink(missing_ok=True)
            raise


def write_anyhow(folder: Path, write: Callable[[], None]) -> None:
    """Writes; where there is no room, in the room that was kept aside.

    Raises:
        NoRoom: that was not enough, or somebody has used it already.
    """
    try:
        write()
    except NoRoom:
        (folder / RESERVE_FILE).unlink(missing_ok=True)
        write()
