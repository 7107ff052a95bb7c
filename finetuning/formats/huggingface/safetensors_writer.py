"""Writes safetensors files piece by piece, so that no more than a piece of a weight is in memory.

The bytes are those that the safetensors library writes: a length, a JSON header, then the numbers, weights with wider
numbers first, else by name (https://github.com/huggingface/safetensors, format description of version 0.8).
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from finetuning.errors import InputError
from finetuning.files.documents import read_text
from finetuning.formats.huggingface.files import INDEX_FILE, SINGLE_FILE, indexed_bytes, read_index
from finetuning.i18n import t

SHARD_BYTES = 4 * 2**30
CODES = {  # narrow first
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}


@dataclass(frozen=True)
class Stored:
    """How a weight is written."""

    shape: torch.Size
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class FilePlan:
    """Which weights go into which file."""

    files: dict[str, list[str]]  # file name -> its weights, in the order in which they are written
    index: str | None  # text of the index; None: one file needs none


class SafetensorsFile:
    """A file that is being written; its weights come in the order of `in_file_order`, each whole or as rows in order."""

    def __init__(self, path: Path, tensors: dict[str, Stored]):
        self.path, self.tensors = path, tensors
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self.end = 0
        for name in in_file_order(tensors):
            stored = tensors[name]
            begin, self.end = self.end, self.end + stored.size
            code = CODES[stored.dtype]
            header[name] = {"dtype": code, "shape": list(stored.shape), "data_offsets": [begin, self.end]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        self.header = text + b" " * (-len(text) % 8)

    def __enter__(self) -> Self:
        self.file = self.path.open("wb")
        self.file.write(len(self.header).to_bytes(8, "little") + self.header)
        self.left = self.end
        return self

    def write(self, rows: Tensor) -> None:
        """Appends numbers that have the dtype of their weight already."""
        numbers: Any = rows.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        self.left -= len(numbers)
        self.file.write(numbers)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.file.close()
        assert kind is not None or self.left == 0, f"{self.path}: {self.left} bytes were not written"


def in_file_order(tensors: dict[str, Stored]) -> list[str]:
    """Names as the safetensors library orders them."""
    ranks = list(CODES)
    return sorted(tensors, key=lambda name: (-ranks.index(tensors[name].dtype), name))


def plan_files(tensors: dict[str, Stored], like: Path | None) -> FilePlan:
    """Spreads weights over files: as in the folder `like` where it holds just these, else at most SHARD_BYTES each."""
    index = like / INDEX_FILE if like is not None else None
    if index is not None and index.is_file():
        text, weight_map = read_text(index), read_index(index)
        same_size = indexed_bytes(index) == sum(stored.size for stored in tensors.values())
        if same_size and weight_map.keys() == tensors.keys():
            parts: dict[str, list[str]] = {}
            for name, file in weight_map.items():
                parts.setdefault(file, []).append(name)
            return FilePlan({file: _ordered(names, tensors) for file, names in parts.items()}, text)
    groups: list[list[str]] = [[]]
    filled = 0
    for name, stored in tensors.items():
        if filled + stored.size > SHARD_BYTES and groups[-1]:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += stored.size
    if len(groups) == 1:
        return FilePlan({SINGLE_FILE: _ordered(groups[0], tensors)}, None)
    names_of = {f"model-{n:05d}-of-{len(groups):05d}.safetensors": names for n, names in enumerate(groups, start=1)}
    found = {
        "metadata": {
            "total_parameters": sum(math.prod(stored.shape) for stored in tensors.values()),
            "total_size": sum(stored.size for stored in tensors.values()),
        },
        "weight_map": {name: file for file, names in names_of.items() for name in names},
    }
    text = json.dumps(found, indent=2, sort_keys=True) + "\n"  # as transformers writes it
    return FilePlan({file: _ordered(names, tensors) for file, names in names_of.items()}, text)


def converted(name: str, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows in another dtype.

    Raises:
        InputError: a number is too large for it.
    """
    found = rows.to(dtype)
    if dtype == torch.float16 and rows.dtype != dtype and bool((found.isinf() & rows.isfinite()).any()):
        raise InputError(
            t(
                "{name}: holds {largest:.3g}, and float16 ends at 65504; choose bfloat16 or float32",
                name=name,
                largest=rows.abs().max().item(),
            )
        )
    return found


def _ordered(names: list[str], tensors: dict[str, Stored]) -> list[str]:
    return in_file_order({name: tensors[name] for name in names})
