"""A folder that knows what it holds: the size and a checksum of every file, written last, compared before it is used.

A rename that survives a power failure says nothing of the bytes: files can be empty, or full of zeros. Of a large file some
blocks stand for all, so that a start does not wait for the disk.
"""

import json
import zlib
from pathlib import Path

import msgspec

from finetuning.errors import InputError
from finetuning.files.documents import read_json
from finetuning.i18n import t

SEAL_FILE = "contents.json"
WHOLE_BYTES = 128 * 2**20  # a file up to this size is read whole: a quarter of a second at most
BLOCK_BYTES, BLOCKS = 2**20, 64  # of a larger one: as much as is read at its beginning, its end and evenly between


class _File(msgspec.Struct):
    size: int
    crc32: int


def seal(folder: Path) -> None:
    """Writes the list of everything in the folder and below."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    found = {str(file.relative_to(folder)): {"size": file.stat().st_size, "crc32": _checksum(file)} for file in files}
    (folder / SEAL_FILE).write_text(json.dumps(found, indent=1), encoding="utf-8")


def damage_of(folder: Path) -> str | None:
    """What is not as it was when the folder was sealed; None: nothing."""
    try:
        known = read_json(folder / SEAL_FILE, dict[str, _File])
    except FileNotFoundError:
        return t("{file} is missing", file=SEAL_FILE)
    except InputError as error:
        return str(error)
    for name, expected in known.items():
        file = folder / name
        try:
            if file.stat().st_size != expected.size:
                return t(
                    "{file} has {found} bytes instead of {wanted}", file=name, found=file.stat().st_size, wanted=expected.size
                )
            if _checksum(file) != expected.crc32:
                return t("{file} has changed", file=name)
        except OSError as error:
            return t("{file}: cannot be read: {reason}", file=name, reason=error.strerror or error)
    return None


def _checksum(file: Path) -> int:
    size = file.stat().st_size
    places = list(range(0, size, BLOCK_BYTES))
    if size > WHOLE_BYTES:
        places = [place * (size - BLOCK_BYTES) // (BLOCKS - 1) for place in range(BLOCKS)]
    found = 0
    with file.open("rb") as stream:
        for place in places:
            stream.seek(place)
            found = zlib.crc32(stream.read(BLOCK_BYTES), found)
    return found
