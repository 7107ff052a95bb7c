"""The header of a GGUF file: settings, and names, shapes and types of its tensors; no numbers are read.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuning.errors import InputError
from finetuning.i18n import t

MAGIC = b"GGUF"
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
TYPES = {
    0: "float32", 1: "float16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 30: "bfloat16",
}  # fmt: skip
LARGEST = 2**24  # entries, characters of a string; more than any model has
# Settings of an architecture -> ours.
GGUF_NAMES = {
    "block_count": "layers", "embedding_length": "hidden", "feed_forward_length": "MLP", "attention.head_count": "heads",
    "attention.head_count_kv": "key/value heads", "context_length": "positions",
}  # fmt: skip


@dataclass(frozen=True)
class GgufHeader:
    version: int
    settings: dict[str, Any]  # arrays are left out
    tensors: dict[str, tuple[tuple[int, ...], str]]  # name -> shape, type


def is_gguf(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def read_gguf_header(file: Path) -> GgufHeader:
    """
    Raises:
        InputError: it is damaged, or of another version.
    """
    try:
        with file.open("rb") as stream:
            return _read(stream)
    except (struct.error, ValueError, KeyError, UnicodeDecodeError) as error:
        raise InputError(t("{file}: cannot be read: {error}", file=file, error=error)) from None


def _read(stream: io.BufferedReader) -> GgufHeader:
    stream.seek(len(MAGIC))
    version = _scalar(stream, "<I")
    if version not in (2, 3):
        raise ValueError(f"version {version}")
    num_tensors, num_settings = _count(stream), _count(stream)
    settings = {}
    for _ in range(num_settings):
        name = _string(stream)
        value = _value(stream, _scalar(stream, "<I"))
        if value is not None:
            settings[name] = value
    tensors = {}
    for _ in range(num_tensors):
        name = _string(stream)
        dims = [_scalar(stream, "<Q") for _ in range(_scalar(stream, "<I"))]
        kind = _scalar(stream, "<I")
        _scalar(stream, "<Q")  # where its numbers begin
        tensors[name] = tuple(reversed(dims)), TYPES.get(kind, f"type {kind}")
    return GgufHeader(version, settings, tensors)


def _value(stream: io.BufferedReader, kind: int) -> Any:
    if kind == STRING:
        return _string(stream)
    if kind == ARRAY:
        inner, count = _scalar(stream, "<I"), _count(stream)
        if inner in SCALARS:
            stream.seek(count * struct.calcsize(SCALARS[inner]), io.SEEK_CUR)
        else:
            for _ in range(count):
                _value(stream, inner)
        return None
    return _scalar(stream, SCALARS[kind])


def _string(stream: io.BufferedReader) -> str:
    return stream.read(_count(stream)).decode("utf-8")


def _count(stream: io.BufferedReader) -> int:
    count = _scalar(stream, "<Q")
    if count > LARGEST:
        raise ValueError(f"a count of {count}")
    return int(count)


def _scalar(stream: io.BufferedReader, form: str) -> Any:
    return struct.unpack(form, stream.read(struct.calcsize(form)))[0]
