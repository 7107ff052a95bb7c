"""Parts of files: a file, or one of the files inside an uncompressed archive, which does not have to be unpacked to be read.

Imports no torch, so that what is no checkpoint is refused soon.
"""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import override


@dataclass(frozen=True)
class FilePart:
    """`length` bytes of a file from `offset` on."""

    path: Path
    offset: int
    length: int

    def open(self) -> io.BufferedReader:
        return io.BufferedReader(_Part(self))

    def read(self) -> bytes:
        with self.open() as stream:
            return stream.read()

    def within(self, offset: int, length: int) -> "FilePart":
        """A part of this part.

        Raises:
            ValueError: it reaches beyond the end.
        """
        if not 0 <= offset <= offset + length <= self.length:
            raise ValueError(f"bytes {offset} to {offset + length} of {self.length}")
        return FilePart(self.path, self.offset + offset, length)


@dataclass(frozen=True)
class FileParts:
    """What is together in a folder or an archive: name -> part. `where` is the folder or archive, for messages."""

    where: Path
    files: Mapping[str, FilePart]

    def under(self, folder: str) -> "FileParts":
        """The files below `folder`, with names from there."""
        inside = f"{folder}/"
        return FileParts(
            self.where / folder, {n.removeprefix(inside): part for n, part in self.files.items() if n.startswith(inside)}
        )


def folder_parts(folder: Path) -> FileParts:
    """The files of a folder, not of those below it."""
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    return FileParts(folder, {file.name: FilePart(file, 0, file.stat().st_size) for file in files})


def zip_parts(archive: FilePart) -> dict[str, FilePart]:
    """Name -> part, of a zip in which nothing is compressed, as torch.save writes it.

    Raises:
        ValueError: not such a zip, or it is damaged.
    """
    try:
        with archive.open() as stream, zipfile.ZipFile(stream) as opened:
            found = {}
            for entry in opened.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{entry.filename} is compressed")
                stream.seek(entry.header_offset)
                header = stream.read(30)
                if header[:4] != b"PK\3\4":
                    raise ValueError(f"{entry.filename} has no beginning")
                names_length = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
                found[entry.filename] = archive.within(entry.header_offset + 30 + names_length, entry.file_size)
            return found
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise ValueError(str(error)) from None


class _Part(io.RawIOBase):
    """A part of a file, as a file of its own."""

    def __init__(self, part: FilePart):
        self.part, self.position = part, 0
        self.file = part.path.open("rb", buffering=0)

    @override
    def close(self) -> None:
        self.file.close()
        super().close()

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.part.length}[whence]
        if position < 0:
            raise ValueError("before the beginning")
        self.position = position
        return position

    @override
    def tell(self) -> int:
        return self.position

    @override
    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self.part.length - self.position))
        self.file.seek(self.part.offset + self.position)
        count = self.file.readinto(memoryview(buffer)[:wanted]) or 0
        self.position += count
        return count
