"""Reads files of torch.distributed.checkpoint tensor by tensor: rows of one weight at a time, without a process group.

`torch.distributed.checkpoint` itself needs every tensor's memory at once, and its `.metadata` is a pickle, which could run
anything. Here that file may name only what a checkpoint consists of, and of the tensors only the bytes that are asked for
are read, straight from the file into the result.

In: a folder with `.metadata` and `*.distcp` (ours, and Megatron's `torch_dist`). Out: names, shapes, dtypes, rows.
"""

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from typing_extensions import override

from finetuning.errors import InputError
from finetuning.i18n import t

METADATA_FILE = ".metadata"
DCP = "torch.distributed.checkpoint"
ALLOWED = {
    *((f"{DCP}.metadata", name) for name in (
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
        "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
    )),
    (f"{DCP}.filesystem", "_StorageInfo"), (f"{DCP}.filesystem", "_StoragePrefix"),
    ("torch", "Size"), ("torch.serialization", "_get_layout"), ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"), ("pathlib", "PurePosixPath"), ("pathlib._local", "PosixPath"),
}  # fmt: skip
ENTRY_HEADER = struct.Struct("<4s22xHH")  # of a file inside a zip: signature, lengths of name and extra field


class ShardedFiles:
    """The tensors of one folder.

    Raises (also later, from `read`):
        InputError: a file is missing, damaged, cut short, or names something that no checkpoint consists of.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.metadata = read_metadata(folder)
        self.tensors: dict[str, TensorStorageMetadata] = {
            name: entry for name, entry in self.metadata.state_dict_metadata.items() if isinstance(entry, TensorStorageMetadata)
        }

    def shape(self, key: str) -> torch.Size:
        return self.tensors[key].size

    def dtype(self, key: str) -> torch.dtype:
        return self.tensors[key].properties.dtype

    def read(self, key: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start:stop) of the whole tensor, put together from all pieces that hold some of them; on the CPU."""
        entry = self.tensors[key]
        if not entry.size:
            return self._read_piece(key, MetadataIndex(key, torch.Size([])), torch.Size([]), 0, 1, entry.properties.dtype)
        stop = entry.size[0] if stop is None else min(stop, entry.size[0])
        found = torch.empty((stop - start, *entry.size[1:]), dtype=entry.properties.dtype)
        filled = 0
        for piece in entry.chunks:
            first, last = max(start, piece.offsets[0]), min(stop, piece.offsets[0] + piece.sizes[0])
            if first >= last:
                continue
            rows = self._read_piece(
                key, MetadataIndex(key, piece.offsets), piece.sizes, first - piece.offsets[0], last - piece.offsets[0],
                entry.properties.dtype,
            )  # fmt: skip
            target = found[first - start : last - start]
            for dim in range(1, len(entry.size)):
                target = target.narrow(dim, piece.offsets[dim], piece.sizes[dim])
            target.copy_(rows)
            filled += rows.numel()
        if filled != found.numel():
            raise InputError(
                t("{folder}: {name} is not complete; {count} of {total} numbers are there", folder=self.folder, name=key,
                  count=filled, total=found.numel())
            )  # fmt: skip
        return found

    def _read_piece(
        self, key: str, index: MetadataIndex, sizes: torch.Size, first: int, last: int, dtype: torch.dtype
    ) -> Tensor:
        """Rows [first:last) of one stored piece."""
        info = self.metadata.storage_data.get(index)
        if info is None or info.transform_descriptors:
            raise InputError(t("{folder}: {name} is stored in a way that cannot be read", folder=self.folder, name=key))
        name = str(info.relative_path)
        if Path(name).name != name:
            raise InputError(t("{folder}: names a file outside itself ({file})", folder=self.folder, file=name))
        try:
            with (self.folder / name).open("rb") as file:
                return _read_rows(file, info.offset, info.length, sizes, first, last, dtype)
        except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile, struct.error) as error:
            raise InputError(
                t("{file}: cannot read {name}: {error}", file=self.folder / name, name=key,
                  error=str(error).split("\n", maxsplit=1)[0] or type(error).__name__)
            ) from None  # fmt: skip


def read_metadata(folder: Path) -> Metadata:
    """The table of contents, opened with an allow-list.

    Raises:
        InputError: there is none, it is damaged, or it wants to run something.
    """
    file = folder / METADATA_FILE
    try:
        with file.open("rb") as stream:
            found = _TableOfContents(stream).load()
    except _Forbidden as error:
        raise InputError(
            t("{file}: wants to use {what}, which no checkpoint needs; it was not opened", file=file, what=error)
        ) from None
    except Exception as error:  # a damaged pickle raises anything
        raise InputError(t("{file}: cannot be read: {error}", file=file, error=error)) from None
    if not isinstance(found, Metadata) or not isinstance(found.storage_data, dict):
        raise InputError(t("{file}: cannot be read: {error}", file=file, error=type(found).__name__))
    return found


class _Forbidden(Exception):
    pass


class _TableOfContents(pickle.Unpickler):
    @override
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED or (module == "torch" and isinstance(torch.__dict__.get(name), torch.dtype)):
            return super().find_class(module, name)
        raise _Forbidden(f"{module}.{name}")


def _read_rows(
    file: io.BufferedReader, offset: int, length: int, sizes: torch.Size, first: int, last: int, dtype: torch.dtype
) -> Tensor:
    """Rows of a tensor that torch.save wrote at `offset`: a zip with its numbers, uncompressed, as `…/data/0`."""
    view = io.BufferedReader(_Slice(file, offset, length))
    described = torch.load(view, map_location="meta", weights_only=True)
    if tuple(described.shape) != tuple(sizes) or described.dtype != dtype:
        raise ValueError(f"{tuple(described.shape)} {described.dtype} instead of {tuple(sizes)} {dtype}")
    with zipfile.ZipFile(view) as archive:
        entry = next((entry for entry in archive.infolist() if entry.filename.endswith("/data/0")), None)
        little = next((archive.read(e) for e in archive.infolist() if e.filename.endswith("/byteorder")), b"little")
    if entry is None:
        raise ValueError("no numbers in it")
    if not described.is_contiguous() or entry.compress_type != zipfile.ZIP_STORED or little != b"little":
        view.seek(0)
        whole = torch.load(view, map_location="cpu", weights_only=True)
        return whole[first:last] if sizes else whole
    view.seek(entry.header_offset)
    signature, name_length, extra_length = ENTRY_HEADER.unpack(view.read(ENTRY_HEADER.size))
    if signature != b"PK\x03\x04":
        raise ValueError("not the beginning of an entry")
    row = described[0].numel() if sizes else 1
    found = torch.empty((last - first) * row, dtype=dtype)
    begin = entry.header_offset + ENTRY_HEADER.size + name_length + extra_length
    begin += (described.storage_offset() + first * row) * dtype.itemsize
    file.seek(offset + begin)
    numbers: Any = found.view(torch.uint8).numpy()
    if found.numel() and file.readinto(numbers) != found.numel() * dtype.itemsize:
        raise EOFError("the file ends too early")
    return found.view(last - first, *sizes[1:]) if sizes else found[0]


class _Slice(io.RawIOBase):
    """A part of a file, as a file of its own."""

    def __init__(self, file: io.BufferedReader, offset: int, length: int):
        self.file, self.offset, self.length, self.position = file, offset, length, 0

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.length}[whence]
        return self.position

    @override
    def tell(self) -> int:
        return self.position

    @override
    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self.length - self.position))
        self.file.seek(self.offset + self.position)
        count = self.file.readinto(memoryview(buffer)[:wanted])
        self.position += count
        return count
