"""The header of a GGUF file: settings, and names, shapes, types and places of its tensors; no numbers are read.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

import io
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuning.errors import InputError
from finetuning.i18n import t

MAGIC = b"GGUF"
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
# Number of a type -> name, numbers in a block, bytes of a block (ggml's GGML_QUANT_SIZES).
TYPES = {
    0: ("float32", 1, 4),
    1: ("float16", 1, 2),
    30: ("bfloat16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
}
MAX_DIMS = 4  # of a tensor, ggml's own
MAX_BYTES = 2**26  # of a header: those of models with the largest vocabularies have a quarter
LARGEST = 2**24  # entries, characters of a string; more than any model has
ALIGNMENT = 32  # of the numbers of a tensor, where the file says nothing else
# Settings of an architecture -> ours.
GGUF_NAMES = {
    "block_count": "layers",
    "embedding_length": "hidden",
    "feed_forward_length": "MLP",
    "attention.head_count": "heads",
    "attention.head_count_kv": "key/value heads",
    "context_length": "positions",
}


@dataclass(frozen=True)
class GgufTensor:
    shape: tuple[int, ...]
    kind: int  # a key of TYPES, or one that is not known
    offset: int  # of its numbers, in bytes from the beginning of the file

    @property
    def type_name(self) -> str:
        return TYPES[self.kind][0] if self.kind in TYPES else f"type {self.kind}"

    @property
    def row_bytes(self) -> int:
        """Of a row, or of the whole where there is one dimension only; the type must be known."""
        _, numbers, size = TYPES[self.kind]
        return self.shape[-1] // numbers * size


@dataclass(frozen=True)
class GgufHeader:
    version: int
    settings: dict[str, Any]  # arrays as lists
    tensors: dict[str, GgufTensor]


def read_gguf_header(file: Path) -> GgufHeader:
    """
    Raises:
        InputError: it is damaged, cut short, or of another version.
    """
    try:
        with file.open("rb") as stream:
            header = _read(stream)
        _check_places(header, file.stat().st_size)
    except (struct.error, ValueError, OverflowError, OSError) as error:
        raise InputError(t("{file}: cannot be read: {error}", file=file, error=error)) from None
    return header


def _read(stream: io.BufferedReader) -> GgufHeader:
    if stream.read(len(MAGIC)) != MAGIC:
        raise ValueError("no GGUF file")
    version = _scalar(stream, "I")
    if version not in (2, 3):
        raise ValueError(f"version {version}")
    num_tensors, num_settings = _count(stream), _count(stream)
    settings = {}
    for _ in range(num_settings):
        name = _string(stream)
        if name in settings:
            raise ValueError(f"{name} is set twice")
        settings[name] = _value(stream, _scalar(stream, "I"))
    places = []
    for _ in range(num_tensors):
        name, num_dims = _string(stream), _scalar(stream, "I")
        if num_dims > MAX_DIMS:
            raise ValueError(f"{name} has {num_dims} dimensions")
        dims = [_scalar(stream, "Q") for _ in range(num_dims)]
        places.append((name, tuple(reversed(dims)), _scalar(stream, "I"), _scalar(stream, "Q")))
    alignment = settings.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"an alignment of {alignment}")
    if len({name for name, *_ in places}) < len(places):
        raise ValueError("two tensors have one name")
    begin = -(-stream.tell() // alignment) * alignment
    return GgufHeader(version, settings, {name: GgufTensor(shape, kind, begin + at) for name, shape, kind, at in places})


def _check_places(header: GgufHeader, size: int) -> None:
    for name, tensor in header.tensors.items():
        if tensor.kind not in TYPES:
            continue
        if not tensor.shape or tensor.shape[-1] % TYPES[tensor.kind][1]:
            raise ValueError(f"{name} has the shape {list(tensor.shape)}")
        if tensor.offset + math.prod(tensor.shape[:-1]) * tensor.row_bytes > size:
            raise ValueError(f"{name} reaches beyond the end of the file")


def _value(stream: io.BufferedReader, kind: int) -> Any:
    if kind == STRING:
        return _string(stream)
    if kind == ARRAY:
        inner, count = _scalar(stream, "I"), _count(stream)
        if inner == STRING:
            return [_string(stream) for _ in range(count)]
        if inner not in SCALARS:
            raise ValueError(f"an array of type {inner}")
        form = f"<{count}{SCALARS[inner]}"
        return list(struct.unpack(form, stream.read(struct.calcsize(form))))
    if kind not in SCALARS:
        raise ValueError(f"a setting of type {kind}")
    return _scalar(stream, SCALARS[kind])


def _string(stream: io.BufferedReader) -> str:
    length = _count(stream)
    found = stream.read(length)
    if len(found) < length:
        raise ValueError("the file ends too early")
    return found.decode("utf-8")


def _count(stream: io.BufferedReader) -> int:
    count = _scalar(stream, "Q")
    if count > LARGEST:
        raise ValueError(f"a count of {count}")
    if stream.tell() > MAX_BYTES:
        raise ValueError(f"a header of more than {MAX_BYTES // 2**20} MiB")
    return int(count)


def _scalar(stream: io.BufferedReader, form: str) -> Any:
    return struct.unpack(f"<{form}", stream.read(struct.calcsize(f"<{form}")))[0]
