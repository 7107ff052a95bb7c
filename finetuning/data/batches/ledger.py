"""The ledger of a run: for each optimizer step the source lines it consumed, with their tokens and answer tokens.

`ledger.bin` is a sequence of records, each a header and its zlib-compressed arrays (int64 line, int32 tokens, int32 answer
tokens of each sample; of a mixture, also its int16 source): some kilobytes for a step of 2 048 samples. It is appended after
the step has been applied. What a killed run left half-written, and steps after the checkpoint it resumes from, are cut off when
it goes on, so that a step is never missing nor twice.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from finetuning.data.tokens.tokenized import MixedSplit, Split

LEDGER_FILE = "ledger.bin"
MAGIC, MAGIC_OF_MIXTURE = b"FTL1", b"FTL2"
HEADER = struct.Struct("<4sIIII")  # magic, step (from 1), samples, compressed bytes, CRC-32 of them


@dataclass(frozen=True)
class LedgerEntry:
    """What one step consumed, sample by sample in the order of the epoch."""

    step: int
    lines: np.ndarray
    tokens: np.ndarray
    answer_tokens: np.ndarray
    sources: np.ndarray | None = None  # of a mixture, their numbers


class Ledger:
    """Appends steps; those after `resume_step` that a broken run has left are dropped first."""

    def __init__(self, path: Path, resume_step: int):
        self.path = path
        end = 0
        if path.is_file():
            for entry, stop in _read(path):
                if entry.step > resume_step:
                    break
                end = stop
            os.truncate(path, end)
        else:
            path.touch()

    def append(self, entry: LedgerEntry) -> None:
        magic = MAGIC if entry.sources is None else MAGIC_OF_MIXTURE
        payload = zlib.compress(
            entry.lines.astype("<i8").tobytes()
            + entry.tokens.astype("<i4").tobytes()
            + entry.answer_tokens.astype("<i4").tobytes()
            + (b"" if entry.sources is None else entry.sources.astype("<i2").tobytes())
        )
        header = HEADER.pack(magic, entry.step, len(entry.lines), len(payload), zlib.crc32(payload))
        with self.path.open("ab") as file:
            file.write(header + payload)


def ledger_entry(split: Split, step: int, samples: np.ndarray) -> LedgerEntry:
    """The entry of a step, counted from 1, that consumed these samples."""
    sources = split.source_of(samples) if isinstance(split, MixedSplit) else None
    return LedgerEntry(step, split.lines[samples], split.lengths[samples] + 1, split.answer_tokens[samples], sources)


def read_ledger(path: Path) -> Iterator[LedgerEntry]:
    """All complete entries, in order; none if there is no file."""
    if path.is_file():
        for entry, _ in _read(path):
            yield entry


def _read(path: Path) -> Iterator[tuple[LedgerEntry, int]]:
    """Entries, each with the byte it ends at; stops at the first that is not whole."""
    with path.open("rb") as file:
        while (entry := _read_entry(file)) is not None:
            yield entry, file.tell()


def _read_entry(file: BinaryIO) -> LedgerEntry | None:
    head = file.read(HEADER.size)
    if len(head) < HEADER.size:
        return None
    magic, step, count, size, checksum = HEADER.unpack(head)
    payload = file.read(size)
    if magic not in (MAGIC, MAGIC_OF_MIXTURE) or len(payload) < size or zlib.crc32(payload) != checksum:
        return None
    raw = zlib.decompress(payload)
    lines = np.frombuffer(raw, "<i8", count)
    tokens = np.frombuffer(raw, "<i4", count, 8 * count)
    sources = np.frombuffer(raw, "<i2", count, 16 * count) if magic == MAGIC_OF_MIXTURE else None
    return LedgerEntry(step, lines, tokens, np.frombuffer(raw, "<i4", count, 12 * count), sources)
