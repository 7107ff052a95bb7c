"""Tokenized samples on disk: written once by the launching machine, memory-mapped by every worker.

A file's tokens are two raw arrays, `tokens.bin` (int32, all samples end to end) and `trained.bin` (bool, is this token
part of an answer). A split is a folder that names such a file in `split.json` and selects samples of it: `starts.npy`
(int64, first token), `counts.npy` (int64, tokens), `answers.npy` (int64, trained tokens) and `lines.npy` (int64, line of
the source file, from 1). Several splits of one raw file share its tokens.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np

from finetuning.data.tokens.megatron import MegatronSplit, open_megatron_split
from finetuning.errors import InputError
from finetuning.files.documents import read_json
from finetuning.i18n import t

SPLIT_FILE = "split.json"


class Split(Protocol):
    """What the batches need to know of a split."""

    @property
    def lengths(self) -> np.ndarray: ...  # positions the model computes for each sample

    @property
    def answer_tokens(self) -> np.ndarray: ...  # trained tokens of each sample

    @property
    def lines(self) -> np.ndarray: ...  # line of the source file, or document, where each sample begins

    @property
    def num_tokens(self) -> int: ...

    def __len__(self) -> int: ...

    def pieces(self, index: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Tokens and trained mask of each document of a sample; documents never see each other."""


@dataclass(frozen=True)
class TokenizedSplit:
    tokens: np.ndarray
    trained: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    answer_tokens: np.ndarray
    lines: np.ndarray

    def __len__(self) -> int:
        return len(self.lines)

    @cached_property
    def lengths(self) -> np.ndarray:
        """A sample's last token is only a label, so it takes no position."""
        return np.maximum(self.counts - 1, 0)

    @cached_property
    def num_tokens(self) -> int:
        return int(self.counts.sum())

    def sample(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and trained mask of one sample."""
        part = slice(self.starts[index], self.starts[index] + self.counts[index])
        return self.tokens[part], self.trained[part]

    def pieces(self, index: int) -> list[tuple[np.ndarray, np.ndarray]]:
        return [self.sample(index)]


class TokenWriter:
    """Appends the tokens of one file."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True)
        self.tokens = (folder / "tokens.bin").open("wb")
        self.trained = (folder / "trained.bin").open("wb")

    def append(self, tokens: np.ndarray, trained: np.ndarray) -> None:
        self.tokens.write(tokens.astype("<i4", copy=False).tobytes())
        self.trained.write(trained.astype(np.bool_, copy=False).tobytes())

    def close(self) -> None:
        self.tokens.close()
        self.trained.close()


def select_samples(
    folder: Path, tokens_folder: str, starts: np.ndarray, counts: np.ndarray, answers: np.ndarray, lines: np.ndarray
) -> None:
    """Writes a split that selects samples of a file whose tokens are in `tokens_folder`, relative to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("starts", starts), ("counts", counts), ("answers", answers), ("lines", lines)):
        np.save(folder / f"{name}.npy", array.astype(np.int64))
    (folder / SPLIT_FILE).write_text(json.dumps({"tokens": tokens_folder}), encoding="utf-8")


def write_split(folder: Path, samples: Iterable[tuple[list[int], list[bool], int]]) -> None:
    """Writes (tokens, trained, line) samples into `folder`, tokens and all."""
    writer = TokenWriter(folder)
    counts, answers, lines = [], [], []
    for tokens, trained, line in samples:
        writer.append(np.array(tokens, np.int32), np.array(trained, np.bool_))
        counts.append(len(tokens))
        answers.append(sum(trained))
        lines.append(line)
    writer.close()
    starts = np.cumsum([0, *counts])[:-1]
    select_samples(folder, ".", starts, np.array(counts), np.array(answers), np.array(lines))


class _Settings(msgspec.Struct):
    """What split.json says."""

    tokens: str | None = None  # folder of the tokens, relative to the split's
    megatron: str | None = None  # or the .bin of Megatron
    seq_length: int = 0


def open_split(folder: Path) -> TokenizedSplit | MegatronSplit:
    """Opens a split; tokens are memory-mapped.

    Raises:
        InputError: its files are missing or do not fit together.
    """
    try:
        settings = read_json(folder / SPLIT_FILE, _Settings)
    except (InputError, OSError) as error:
        raise InputError(_damaged(folder, str(error))) from None
    try:
        if settings.megatron is not None:
            documents = np.load(folder / "documents.npy", allow_pickle=False)
            return open_megatron_split(Path(settings.megatron), settings.seq_length, documents)
        split = _open_tokens(folder, folder / (settings.tokens or "."))
    except (OSError, ValueError, EOFError) as error:  # EOFError: of an empty file
        raise InputError(_damaged(folder, str(error))) from None
    arrays = (split.starts, split.counts, split.answer_tokens, split.lines)
    fits = all(array.dtype == np.int64 and array.shape == (len(split.lines),) for array in arrays)
    ends = split.starts + split.counts if fits else np.zeros(0)
    if not fits or len(split.trained) != len(split.tokens) or (ends > len(split.tokens)).any() or (split.starts < 0).any():
        raise InputError(_damaged(folder, t("its files do not fit together")))
    return split


def _open_tokens(folder: Path, tokens_folder: Path) -> TokenizedSplit:
    starts, counts, answers, lines = (
        np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("starts", "counts", "answers", "lines")
    )
    return TokenizedSplit(
        _map(tokens_folder / "tokens.bin", "<i4"), _map(tokens_folder / "trained.bin", np.bool_), starts, counts, answers, lines
    )


def _damaged(folder: Path, reason: str) -> str:
    return t(
        "{folder}: the tokens are damaged ({reason}). Run the same command again: they are built anew",
        folder=folder,
        reason=reason,
    )


def _map(path: Path, dtype: str | type) -> np.ndarray:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r")
