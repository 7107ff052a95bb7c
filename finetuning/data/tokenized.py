"""Tokenised samples on disk: written once by the launching machine, memory-mapped by every worker.

A split is a folder with four arrays: `tokens.npy` (int32, all samples end to end), `trained.npy` (bool, same length:
is this token part of an answer), `offsets.npy` (int64, sample i is tokens offsets[i] … offsets[i + 1] - 1) and
`lines.npy` (int64, line of the source file, from 1).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class TokenizedSplit:
    tokens: np.ndarray
    trained: np.ndarray
    offsets: np.ndarray
    lines: np.ndarray
    lengths: np.ndarray  # positions the model computes for each sample: its tokens without the last
    answer_tokens: np.ndarray  # trained tokens of each sample

    def __len__(self) -> int:
        return len(self.lines)

    def sample(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and trained mask of one sample."""
        part = slice(self.offsets[index], self.offsets[index + 1])
        return self.tokens[part], self.trained[part]


def write_split(folder: Path, samples: Iterable[tuple[list[int], list[bool], int]]) -> None:
    """Writes (tokens, trained, line) samples into `folder`."""
    tokens, trained, offsets, lines = [], [], [0], []
    for sample_tokens, sample_trained, line in samples:
        tokens.append(np.asarray(sample_tokens, dtype=np.int32))
        trained.append(np.asarray(sample_trained, dtype=np.bool_))
        offsets.append(offsets[-1] + len(sample_tokens))
        lines.append(line)
    folder.mkdir(parents=True)
    np.save(folder / "tokens.npy", np.concatenate(tokens) if tokens else np.zeros(0, np.int32))
    np.save(folder / "trained.npy", np.concatenate(trained) if trained else np.zeros(0, np.bool_))
    np.save(folder / "offsets.npy", np.asarray(offsets, dtype=np.int64))
    np.save(folder / "lines.npy", np.asarray(lines, dtype=np.int64))


def open_split(folder: Path) -> TokenizedSplit:
    """Opens a split written by `write_split`; the large arrays are memory-mapped."""
    tokens = np.load(folder / "tokens.npy", mmap_mode="r")
    trained = np.load(folder / "trained.npy", mmap_mode="r")
    offsets = np.load(folder / "offsets.npy")
    counts = np.concatenate(([0], np.cumsum(trained, dtype=np.int64)))
    return TokenizedSplit(
        tokens=tokens,
        trained=trained,
        offsets=offsets,
        lines=np.load(folder / "lines.npy"),
        lengths=np.maximum(np.diff(offsets) - 1, 0),
        answer_tokens=np.diff(counts[offsets]),
    )
