"""Tensors whose numbers lie in files: read by blocks, straight into the result."""

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from finetuning.errors import InputError
from finetuning.i18n import t
from finetuning.storage.file_parts import FilePart

MAX_BYTES_AT_ONCE = 2**30  # of one read, which the kernel cuts at 2 GiB


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


def _fill(file: io.RawIOBase, buffer: memoryview) -> None:
    filled = 0
    while filled < len(buffer):
        count = file.readinto(buffer[filled : filled + MAX_BYTES_AT_ONCE])
        if not count:
            raise EOFError("the file ends too early")
        filled += count
