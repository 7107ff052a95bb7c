"""Parts of files, and the tensors whose numbers lie in them: read by blocks, straight into the result.

A part is a file, or one of the files inside an uncompressed archive: nothing has to be unpacked to be read.
"""

import io
import itertools
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from finetuning.errors import InputError
from finetuning.i18n import t

MAX_BYTES_AT_ONCE = 2**30  # of one read, which the kernel cuts at 2 GiB


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


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, row-major and little-endian."""

    part: FilePart
    dtype: torch.dtype
    size: torch.Size

    def read_into(self, target: Tensor, offsets: Sequence[int]) -> None:
        """Fills `target` (CPU, of this dtype) with the block of its shape that begins at `offsets`.

        Raises:
            EOFError: the file ends too early.
            OSError: it cannot be read.
        """
        if not target.is_contiguous():
            whole = torch.empty(target.shape, dtype=target.dtype)
            self.read_into(whole, offsets)
            target.copy_(whole)
            return
        # From `inner` on the block is as wide as the tensor, so that it lies in one run of bytes.
        inner = max((dim for dim, size in enumerate(self.size) if target.shape[dim] != size), default=0)
        strides = [math.prod(self.size[dim + 1 :]) for dim in range(len(self.size))]
        numbers: Any = target.view(-1).view(torch.uint8).numpy() if target.numel() else target.numpy()
        run = math.prod(target.shape[inner:]) * self.dtype.itemsize
        if run == 0:
            return
        with self.part.path.open("rb", buffering=0) as file:
            filled = 0
            for outer in itertools.product(*(range(size) for size in target.shape[:inner])):
                places = (*outer, *[0] * (len(self.size) - inner))
                first = sum((offset + place) * stride for offset, place, stride in zip(offsets, places, strides, strict=True))
                file.seek(self.part.offset + first * self.dtype.itemsize)
                _fill(file, memoryview(numbers)[filled : filled + run])
                filled += run


class TensorTable(Protocol):
    """Tensors under the names that they were saved with."""

    @property
    def where(self) -> Path: ...

    @property
    def sizes(self) -> Mapping[str, torch.Size]: ...

    def dtype(self, key: str) -> torch.dtype: ...

    def read_block(self, key: str, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """The block of these sizes that begins at `offsets`, on the CPU.

        Raises:
            InputError: the file is missing, damaged or cut short.
        """


@dataclass(frozen=True)
class StoredTable:
    """Tensors of one file of torch.save."""

    where: Path
    tensors: Mapping[str, StoredTensor]

    @property
    def sizes(self) -> dict[str, torch.Size]:
        return {name: tensor.size for name, tensor in self.tensors.items()}

    def dtype(self, key: str) -> torch.dtype:
        return self.tensors[key].dtype

    def read_block(self, key: str, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
        found = torch.empty(tuple(sizes), dtype=self.dtype(key))
        try:
            self.tensors[key].read_into(found, offsets)
        except (OSError, EOFError) as error:
            raise InputError(t("{file}: cannot read {name}: {error}", file=self.where, name=key, error=error)) from None
        return found


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


def _fill(file: io.RawIOBase, buffer: memoryview) -> None:
    filled = 0
    while filled < len(buffer):
        count = file.readinto(buffer[filled : filled + MAX_BYTES_AT_ONCE])
        if not count:
            raise EOFError("the file ends too early")
        filled += count


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
