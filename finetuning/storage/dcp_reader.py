"""Reads files of torch.distributed.checkpoint tensor by tensor: blocks of one weight at a time, without a process group.

torch's own reader unpickles `.metadata`, and what that calls bytes, with pickle, which could run anything. Here the file is
opened by `storage.safe_pickle`, what it declares is compared with the sizes of the files before anything is built, and of the
tensors only the bytes that are asked for are read, straight from the file into the result.

In: a folder with `.metadata` and `*.distcp` (ours, and Megatron's `torch_dist`). Out: names, shapes, dtypes, blocks.
"""

import math
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePath

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo  # torch 2.11-2.13
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)

from finetuning.errors import InputError
from finetuning.i18n import t
from finetuning.storage.file_parts import FileParts, folder_parts
from finetuning.storage.safe_pickle import read_pickle, read_stored
from finetuning.storage.signs import METADATA_FILE
from finetuning.storage.stored_tensors import StoredTensor


class ShardedFiles:
    """The tensors of one folder, or of a folder inside an archive.

    Raises (also later, from `read`):
        InputError: a file is missing, damaged, cut short, or names something that no checkpoint consists of.
    """

    def __init__(self, parts: FileParts | Path):
        self.parts = folder_parts(parts) if isinstance(parts, Path) else parts
        self.where = self.parts.where
        self.metadata = read_metadata(self.parts)
        self.tensors: dict[str, TensorStorageMetadata] = {
            name: entry for name, entry in self.metadata.state_dict_metadata.items() if isinstance(entry, TensorStorageMetadata)
        }
        self._pieces: dict[tuple[str, tuple[int, ...]], StoredTensor] = {}

    @cached_property
    def sizes(self) -> Mapping[str, torch.Size]:
        return {name: entry.size for name, entry in self.tensors.items()}

    def dtype(self, key: str) -> torch.dtype:
        return self.tensors[key].properties.dtype

    def read(self, key: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start:stop) of the whole tensor, on the CPU."""
        size = self.sizes[key]
        if not size:
            return self.read_block(key, (), ())
        stop = size[0] if stop is None else min(stop, size[0])
        return self.read_block(key, (start, *[0] * (len(size) - 1)), (stop - start, *size[1:]))

    def read_block(self, key: str, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """The block of these sizes that begins at `offsets`, put together from all pieces that hold some of it; on the CPU."""
        parts = [(piece, part) for piece in self.tensors[key].chunks if (part := _overlap(piece, offsets, sizes)) is not None]
        filled, total = sum(math.prod(lengths) for _, (_, lengths) in parts), math.prod(sizes)
        if filled != total:  # before there is memory for a block that only the table of contents has
            raise incomplete(self.where, key, filled, total)
        found = torch.empty(tuple(sizes), dtype=self.dtype(key))
        for piece, (begins, lengths) in parts:
            target = found
            for dim, (begin, length) in enumerate(zip(begins, lengths, strict=True)):
                target = target.narrow(dim, begin - offsets[dim], length)
            first = [begin - offset for begin, offset in zip(begins, piece.offsets, strict=True)]
            self.read_piece(key, piece, target, first)
        return found

    def read_piece(self, key: str, piece: ChunkStorageMetadata, target: Tensor, first: Sequence[int]) -> None:
        """Fills `target` (CPU) with the block of its shape that begins at `first` within the piece."""
        info = self.metadata.storage_data.get(MetadataIndex(key, piece.offsets))
        if info is None or info.transform_descriptors:
            raise InputError(t("{folder}: {name} is stored in a way that cannot be read", folder=self.where, name=key))
        name = str(info.relative_path)
        if Path(name).name != name:
            raise InputError(t("{folder}: names a file outside itself ({file})", folder=self.where, file=name))
        if name not in self.parts.files:
            raise InputError(t("{file}: is missing, and holds a part of {name}", file=self.where / name, name=key))
        try:
            index = (key, tuple(piece.offsets))
            if index not in self._pieces:
                stored = read_stored(self.parts.files[name].within(info.offset, info.length))
                if tuple(stored.size) != tuple(piece.sizes) or stored.dtype != target.dtype:
                    raise ValueError(f"{tuple(stored.size)} {stored.dtype} instead of {tuple(piece.sizes)} {target.dtype}")
                self._pieces[index] = stored
            self._pieces[index].read_into(target, first)
        except (OSError, EOFError, ValueError) as error:
            raise InputError(t("{file}: cannot read {name}: {error}", file=self.where / name, name=key, error=error)) from None


def incomplete(folder: Path, name: str, count: int, total: int) -> InputError:
    return InputError(
        t(
            "{folder}: {name} is not complete; {count} of {total} numbers are there",
            folder=folder,
            name=name,
            count=count,
            total=total,
        )
    )


def _overlap(piece: ChunkStorageMetadata, offsets: Sequence[int], sizes: Sequence[int]) -> tuple[list[int], list[int]] | None:
    """Where a piece and a block have numbers in common, within the whole tensor: first ones and lengths; None: nowhere."""
    begins = [max(offset, first) for offset, first in zip(offsets, piece.offsets, strict=True)]
    ends = [
        min(offset + size, first + length)
        for offset, size, first, length in zip(offsets, sizes, piece.offsets, piece.sizes, strict=True)
    ]
    lengths = [end - begin for begin, end in zip(begins, ends, strict=True)]
    return (begins, lengths) if all(length > 0 for length in lengths) else None


def damaged_part(files: ShardedFiles, share: int, shares: int) -> str | None:
    """What is damaged in a share of the stored pieces, by the checksum that torch.save gives each; None: nothing.

    Reads every byte of the share once. All shares together are the whole checkpoint.
    """
    places = sorted({(str(info.relative_path), info.offset, info.length) for info in files.metadata.storage_data.values()})
    for name, offset, length in places[share::shares]:
        try:
            with files.parts.files[name].within(offset, length).open() as stream, zipfile.ZipFile(stream) as opened:
                bad = opened.testzip()
        except (KeyError, OSError, EOFError, ValueError, NotImplementedError, zipfile.BadZipFile, zlib.error):
            bad = name
        if bad is not None:
            return t("{file} is damaged at byte {offset}", file=name, offset=offset)
    return None


def read_metadata(parts: FileParts) -> Metadata:
    """The table of contents.

    Raises:
        InputError: there is none, it is damaged, or it wants to run something.
    """
    if METADATA_FILE not in parts.files:
        raise InputError(
            t("{folder}: holds no {file}, so it is no complete checkpoint", folder=parts.where, file=METADATA_FILE)
        )
    file = parts.where / METADATA_FILE
    found = read_pickle(parts.files[METADATA_FILE])
    try:
        if isinstance(found, Metadata) and _is_sound(found):
            _compare_with_files(found, parts)
            return Metadata(found.state_dict_metadata, storage_data=found.storage_data, storage_meta=StorageMeta())
    except (AttributeError, TypeError):  # parts of it are missing, or are something else
        pass
    raise InputError(t("{file}: cannot be read: {error}", file=file, error=t("not a table of contents")))


def _is_sound(metadata: Metadata) -> bool:
    """Sizes and places are numbers, and the pieces of a tensor lie within it."""
    if not isinstance(metadata.storage_data, dict) or not isinstance(metadata.state_dict_metadata, dict):
        return False
    for place in metadata.storage_data.values():
        numbers_are_there = isinstance(place, _StorageInfo) and _are_sizes((place.offset, place.length))
        if not numbers_are_there or not isinstance(place.relative_path, str | PurePath):
            return False
    names: Iterable[object] = metadata.state_dict_metadata
    if not all(isinstance(name, str) for name in names):
        return False
    for entry in metadata.state_dict_metadata.values():
        if not isinstance(entry, TensorStorageMetadata):
            continue
        if not isinstance(entry.properties.dtype, torch.dtype) or not _are_sizes(entry.size):
            return False
        for piece in entry.chunks:
            if not (_are_sizes(piece.offsets) and _are_sizes(piece.sizes)):
                return False
            if not len(piece.offsets) == len(piece.sizes) == len(entry.size):
                return False
            if any(offset + size > whole for offset, size, whole in zip(piece.offsets, piece.sizes, entry.size, strict=True)):
                return False
    return True


def _compare_with_files(metadata: Metadata, parts: FileParts) -> None:
    """
    Raises:
        InputError: a tensor is declared larger than what holds it. Missing files are found when they are read.
    """
    for key, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            continue
        for piece in entry.chunks:
            place = metadata.storage_data.get(MetadataIndex(key, piece.offsets))
            if place is None or place.transform_descriptors:
                continue
            file = parts.files.get(str(place.relative_path))
            if file is not None and (end := place.offset + place.length) > file.length:
                raise InputError(
                    t(
                        "{file}: cut short: it has {size} bytes, and {name} ends at {end}; copy or download it again",
                        file=parts.where / place.relative_path,
                        size=file.length,
                        name=key,
                        end=end,
                    )
                )
            if math.prod(piece.sizes) * entry.properties.dtype.itemsize > place.length:
                raise InputError(
                    t("{folder}: {name} is declared larger than the file that holds it", folder=parts.where, name=key)
                )


def _are_sizes(values: object) -> bool:
    return isinstance(values, tuple) and all(isinstance(value, int) and value >= 0 for value in values)
