"""Megatron's indexed data: `X.bin` holds tokens, `X.idx` where sequences and documents begin. No Megatron is needed.

Format of `.idx` (Megatron-LM, megatron/core/datasets/indexed_dataset.py), little-endian: `MMIDIDX\\0\\0`, u64 version 1,
u8 dtype code, u64 sequences, u64 document entries (documents + 1), i32 length of each sequence, i64 byte offset of each
sequence, i64 index of the first sequence of each document. `.bin`: raw tokens.

For training, the documents of a split are one stream of positions: a document of n tokens has n - 1, each predicting the
next token of the same document. A sample is `seq_length` positions of that stream, cut wherever it may fall, and every
position is trained; a document that goes on in the next sample shares one token with it.

Example: documents [1 2 3 4] and [5 6 7], 4 positions a sample: (1→2, 2→3, 3→4, 5→6) and (6→7).
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from finetuning.errors import InputError
from finetuning.i18n import t

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
CODES = {dtype: code for code, dtype in DTYPES.items()}
SMALL_VOCABULARY = 65_500  # Megatron's own limit for unsigned 16-bit tokens


@dataclass(frozen=True)
class MegatronData:
    """Memory-mapped tokens and where each document begins and ends, in tokens."""

    tokens: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)


def read_megatron(prefix: Path) -> MegatronData:
    """Opens `prefix.bin` and `prefix.idx`; `prefix` may also be either of the two.

    Raises:
        InputError: a file is missing, not in this format, cut off, or the two do not belong together.
    """
    bin_file, idx_file = (with_ending(prefix, ending) for ending in (".bin", ".idx"))
    for file in (bin_file, idx_file):
        if not file.is_file():
            raise InputError(
                t("{file}: there is no such file; Megatron data is a .bin and an .idx of the same name", file=file)
            )
    raw = idx_file.read_bytes()
    if len(raw) < HEADER.size or raw[:9] != MAGIC:
        raise InputError(t("{file}: not a Megatron index (its first bytes are not MMIDIDX)", file=idx_file))
    _, version, code, num_sequences, num_entries = HEADER.unpack_from(raw)
    if version != 1 or code not in DTYPES:
        raise InputError(
            t(
                "{file}: version {version} with data type {code} cannot be read; version 1 with whole numbers can",
                file=idx_file,
                version=version,
                code=code,
            )
        )
    needed = HEADER.size + 12 * num_sequences + 8 * num_entries
    if len(raw) not in (needed, needed + num_sequences):  # multi-modal data adds a byte for each sequence
        raise InputError(
            t(
                "{file}: {found} bytes, but its header promises {needed}; is it complete?",
                file=idx_file,
                found=len(raw),
                needed=needed,
            )
        )
    lengths = np.frombuffer(raw, "<i4", num_sequences, HEADER.size).astype(np.int64)
    offsets = np.frombuffer(raw, "<i8", num_sequences, HEADER.size + 4 * num_sequences)
    documents = np.frombuffer(raw, "<i8", num_entries, HEADER.size + 12 * num_sequences)
    dtype = np.dtype(DTYPES[code])
    ends = offsets // dtype.itemsize + lengths
    if num_sequences and int(ends.max()) * dtype.itemsize > bin_file.stat().st_size:
        raise InputError(
            t(
                "{file}: {found} bytes, but its index needs {needed}; is it complete?",
                file=bin_file,
                found=bin_file.stat().st_size,
                needed=int(ends.max()) * dtype.itemsize,
            )
        )
    tokens = np.memmap(bin_file, dtype=dtype, mode="r") if bin_file.stat().st_size else np.zeros(0, dtype)
    # The sequences of a document follow each other in the file.
    first, after = documents[:-1], documents[1:]
    is_filled = after > first
    first, last = first[is_filled], after[is_filled] - 1
    return MegatronData(tokens, offsets[first] // dtype.itemsize, ends[last])


def write_megatron(prefix: Path, documents: Iterable[np.ndarray], vocab_size: int) -> int:
    """Writes one sequence a document, as Megatron's preprocessing does; returns the number of documents."""
    dtype = np.dtype("<u2" if vocab_size < SMALL_VOCABULARY else "<i4")
    lengths = []
    with with_ending(prefix, ".bin").open("wb") as file:
        for tokens in documents:
            file.write(tokens.astype(dtype).tobytes())
            lengths.append(len(tokens))
    sizes = np.array(lengths, dtype="<i4")
    offsets = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))[: len(sizes)] * dtype.itemsize
    with with_ending(prefix, ".idx").open("wb") as file:
        file.write(HEADER.pack(MAGIC, 1, CODES[dtype.newbyteorder("<").str.replace("|", "<")], len(sizes), len(sizes) + 1))
        for array in (sizes, offsets.astype("<i8"), np.arange(len(sizes) + 1, dtype="<i8")):
            file.write(array.tobytes())
    return len(sizes)


def with_ending(prefix: Path, ending: str) -> Path:
    """`data/x`, `data/x.bin` or `data/x.idx` -> the file with this ending."""
    base = prefix.with_suffix("") if prefix.suffix in (".bin", ".idx") else prefix
    return base.with_name(base.name + ending)


@dataclass(frozen=True)
class MegatronSplit:
    """Some documents of indexed data as samples of at most `seq_length` positions, all trained."""

    data: MegatronData
    documents: np.ndarray
    before: np.ndarray  # int64 [documents + 1]: positions of the stream before each document
    seq_length: int

    @property
    def shares(self) -> None:
        return None

    @property
    def is_weighted(self) -> bool:
        return False

    @cached_property
    def answer_weights(self) -> np.ndarray:
        return self.lengths.astype(np.float64)

    def __len__(self) -> int:
        return (int(self.before[-1]) + self.seq_length - 1) // self.seq_length

    @cached_property
    def lengths(self) -> np.ndarray:
        lengths = np.full(len(self), self.seq_length, dtype=np.int64)
        if len(self):
            lengths[-1] = int(self.before[-1]) - (len(self) - 1) * self.seq_length
        return lengths

    @cached_property
    def answer_tokens(self) -> np.ndarray:
        return self.lengths

    @cached_property
    def lines(self) -> np.ndarray:
        """The document, from 1, in which each sample begins."""
        starts = np.arange(len(self)) * self.seq_length
        return self.documents[np.searchsorted(self.before, starts, side="right") - 1] + 1

    @cached_property
    def num_tokens(self) -> int:
        return int((self.data.ends - self.data.starts)[self.documents].sum())

    def pieces(self, index: int) -> list[tuple[np.ndarray, np.ndarray]]:
        start = index * self.seq_length
        stop = min(start + self.seq_length, int(self.before[-1]))
        first = int(np.searchsorted(self.before, start, side="right")) - 1
        pieces = []
        for place in range(first, len(self.documents)):
            if self.before[place] >= stop:
                break
            begin = max(start - int(self.before[place]), 0)
            count = min(stop, int(self.before[place + 1])) - int(self.before[place]) - begin
            if count > 0:
                offset = int(self.data.starts[self.documents[place]]) + begin
                tokens = self.data.tokens[offset : offset + count + 1]
                pieces.append((tokens, np.ones(len(tokens), dtype=np.bool_)))
        return pieces


def open_megatron_split(prefix: Path, seq_length: int, documents: np.ndarray) -> MegatronSplit:
    data = read_megatron(prefix)
    sizes = (data.ends - data.starts)[documents]
    before = np.concatenate(([0], np.cumsum(np.maximum(sizes - 1, 0))))
    return MegatronSplit(data, documents, before, seq_length)
