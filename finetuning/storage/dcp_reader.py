"""Reads files of torch.distributed.checkpoint tensor by tensor: blocks of one weight at a time, without a process group.

`torch.distributed.checkpoint` itself needs every tensor's memory at once, and its `.metadata` is a pickle, which could run
anything. Here that file is opened by `storage.safe_pickle`, and of the tensors only the bytes that are asked for
are read, straight from the file into the result.

In: a folder with `.metadata` and `*.distcp` (ours, and Megatron's `torch_dist`). Out: names, shapes, dtypes, blocks.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePath

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo  # torch 2.11-2.13
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata

from finetuning.errors import InputError
from finetuning.i18n import t
from finetuning.storage.file_parts import FileParts, StoredTensor, folder_parts
from finetuning.storage.safe_pickle import read_pickle, read_stored

METADATA_FILE = ".metadata"


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
        found = torch.empty(tuple(sizes), dtype=self.dtype(key))
        filled = 0
        for piece in self.tensors[key].chunks:
            target, first = found, []
            for dim, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
                begin = max(offset, piece.offsets[dim])
                length = min(offset + size, piece.offsets[dim] + piece.sizes[dim]) - begin
                if length <= 0:
                    break
                target = target.narrow(dim, begin - offset, length)
                first.append(begin - piece.offsets[dim])
            else:
                self._read_piece(key, piece, target, first)
                filled += target.numel()
        if filled != found.numel():
            raise InputError(
                t("{folder}: {name} is not complete; {count} of {total} numbers are there", folder=self.where, name=key,
                  count=filled, total=found.numel())
            )  # fmt: skip
        return found

    def _read_piece(self, key: str, piece: ChunkStorageMetadata, target: Tensor, first: list[int]) -> None:
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
            raise InputError(
                t("{file}: cannot read {name}: {error}", file=self.where / name, name=key, error=error)
            ) from None  # fmt: skip


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
            return found
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


def _are_sizes(values: object) -> bool:
    return isinstance(values, tuple) and all(isinstance(value, int) and value >= 0 for value in values)
