"""Files inside a tar archive, read where they lie: nothing is unpacked, so no name can lead anywhere.

A compressed archive is decompressed once, as one plain tar, into a folder of the caller's.
"""

import gzip
import hashlib
import io
import os
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from typing_extensions import override

from finetuning.errors import InputError
from finetuning.files.atomic import INCOMPLETE, sync
from finetuning.i18n import t
from finetuning.storage.file_parts import FilePart, FileParts
from finetuning.storage.signs import GZIP

COPIED_AT_ONCE = 4 * 2**20  # bytes
LARGEST_RATIO, ALWAYS_ALLOWED = 100, 2**26  # weights hardly shrink; what grows beyond both is no archive of weights
MAX_ENTRIES = 2**14  # thousands of ranks write a file or two each
MAX_ENTRY_BYTES = 2**16  # of what stands before a file's content: its name, and what else is told about it


def archive_parts(file: Path, scratch: Path) -> FileParts:
    """The files of an archive; a compressed one is decompressed into `scratch` when that has not been done before.

    Raises:
        InputError: it is damaged, or has names or links that lead outside it.
    """
    with file.open("rb") as stream:
        compressed = stream.read(2) == GZIP
    plain = _decompressed(file, scratch) if compressed else file
    try:
        return FileParts(file, _contents(file, plain))
    except InputError:
        if compressed:
            plain.unlink(missing_ok=True)
        raise


def _contents(file: Path, plain: Path) -> dict[str, FilePart]:
    found = {}
    try:
        with _Entries(plain) as entries, tarfile.open(fileobj=entries, mode="r:") as archive:
            while (member := entries.next_of(archive)) is not None:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts:
                    raise InputError(t("{file}: has a file that leads outside it ({name})", file=file, name=member.name))
                if member.isdir():
                    continue
                if not member.isreg() or member.sparse is not None:
                    raise InputError(t("{file}: {name} is no plain file", file=file, name=member.name))
                found[str(path)] = FilePart(plain, member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise InputError(t("{file}: cannot be read: {error}", file=file, error=error)) from None
    size = plain.stat().st_size
    cut = next((name for name, part in found.items() if part.offset + part.length > size), None)
    if cut is not None:
        raise InputError(t("{file}: ends in the middle of {name}; copy it again", file=file, name=cut))
    return found


class _Entries(io.FileIO):
    """An archive with bounds on its entries and on what is read of each: tarfile believes what they declare."""

    count, left = 0, MAX_ENTRY_BYTES

    def next_of(self, archive: tarfile.TarFile) -> tarfile.TarInfo | None:
        self.count, self.left = self.count + 1, MAX_ENTRY_BYTES
        if self.count > MAX_ENTRIES:
            raise tarfile.ReadError(t("it holds more than {most:,} files and folders", most=MAX_ENTRIES))
        return archive.next()

    @override
    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= self.left:
            raise tarfile.ReadError(t("an entry takes more than {most:,} bytes before its content", most=MAX_ENTRY_BYTES))
        self.left -= size
        return super().read(size)


def _decompressed(file: Path, scratch: Path) -> Path:
    size = file.stat().st_size
    with file.open("rb") as stream:
        digest = hashlib.sha256(f"{file.name} {size}\n".encode() + stream.read(65536))
        stream.seek(max(0, size - 65536))
        digest.update(stream.read())
    target = scratch / f"{file.stem}-{digest.hexdigest()[:16]}.tar"
    if target.is_file():
        return target
    scratch.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{INCOMPLETE}{target.name}-{os.getpid()}")  # of another process: its own
    try:
        with file.open("rb") as raw, gzip.open(raw) as stream, temporary.open("wb") as out:
            written = 0
            while block := stream.read(COPIED_AT_ONCE):
                written += len(block)
                largest = max(LARGEST_RATIO * raw.tell(), ALWAYS_ALLOWED)  # of what has been read, so that it is refused soon
                if written > largest:
                    raise InputError(
                        t(
                            "{file}: grows from {size} to more than {largest} bytes, which weights do not",
                            file=file,
                            size=raw.tell(),
                            largest=largest,
                        )
                    )
                out.write(block)
        sync(temporary)
        temporary.rename(target)
        sync(scratch)
    except (OSError, EOFError, zlib.error) as error:
        free = shutil.disk_usage(scratch).free
        raise InputError(
            t(
                "{file}: cannot be decompressed into {folder} ({free:.1f} GB free): {error}",
                file=file,
                folder=scratch,
                free=free / 1e9,
                error=error,
            )
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    return target
