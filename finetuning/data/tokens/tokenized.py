"""Tokenized samples on disk: written once by the launching machine, memory-mapped by every worker.

A file's tokens are two raw arrays, `tokens.bin` (int32, all samples end to end) and `trained.bin` (bool, is this token
part of an answer); where answers have weights other than 1, `weights.bin` (float32) says how much each token counts. A split is
a folder that names such a file in `split.json` and selects samples of it: `starts.npy` (int64, first token), `counts.npy`
(int64, tokens), `answers.npy` (int64, trained tokens), `lines.npy` (int64, line of the source file, from 1) and, with weights,
`weights.npy` (float64, their sum). Several splits of one raw file share its tokens. The split of a mixture only names those of
its sources.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Protocol

import msgspec
import numpy as np

from finetuning.data.batches.source_order import Shares
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
    def answer_weights(
        self,
    ) -> np.ndarray: ...  # how much these count together: 1 each, where nothing else is said

    @property
    def is_weighted(self) -> bool: ...  # something else is said of some

    @property
    def lines(self) -> np.ndarray: ...  # line of the source file, or document, where each sample begins

    @property
    def num_tokens(self) -> int: ...

    @property
    def shares(self) -> Shares | None: ...  # of the sources of a mixture; None: there is one source

    def __len__(self) -> int: ...

    def pieces(self, index: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Tokens and trained mask (or weights, float32) of each document of a sample; documents never see each other."""


@dataclass(frozen=True)
class TokenizedSplit:
    tokens: np.ndarray
    trained: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    answer_tokens: np.ndarray
    lines: np.ndarray
    weights: np.ndarray | None = None  # of each token, instead of `trained`
    weight_sums: np.ndarray | None = None

    @property
    def shares(self) -> None:
        return None

    @property
    def is_weighted(self) -> bool:
        return self.weights is not None

    @cached_property
    def answer_weights(self) -> np.ndarray:
        return self.answer_tokens.astype(np.float64) if self.weight_sums is None else self.weight_sums

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
        tokens, trained = self.sample(index)
        if self.weights is not None:
            return [(tokens, self.weights[self.starts[index] : self.starts[index] + self.counts[index]])]
        return [(tokens, trained)]


@dataclass(frozen=True)
class MixedSplit:
    """The samples of all sources, one source after the other."""

    names: tuple[str, ...]
    sources: tuple["TokenizedSplit | MegatronSplit", ...]
    shares: Shares

    @cached_property
    def starts(self) -> np.ndarray:
        """The first sample of each source."""
        return np.cumsum([0, *(len(source) for source in self.sources)])[:-1]

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.concatenate([source.lengths for source in self.sources])

    @cached_property
    def answer_tokens(self) -> np.ndarray:
        return np.concatenate([source.answer_tokens for source in self.sources])

    @cached_property
    def answer_weights(self) -> np.ndarray:
        return np.concatenate([source.answer_weights for source in self.sources])

    @property
    def is_weighted(self) -> bool:
        return any(source.is_weighted for source in self.sources)

    @cached_property
    def lines(self) -> np.ndarray:
        return np.concatenate([source.lines for source in self.sources])

    @cached_property
    def num_tokens(self) -> int:
        return sum(source.num_tokens for source in self.sources)

    def source_of(self, samples: np.ndarray) -> np.ndarray:
        """The number of the source that each sample is of."""
        return np.searchsorted(self.starts, samples, side="right") - 1

    def pieces(self, index: int) -> list[tuple[np.ndarray, np.ndarray]]:
        source = int(self.source_of(np.array(index)))
        return self.sources[source].pieces(index - int(self.starts[source]))


class TokenWriter:
    """Appends the tokens of one file."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True)
        self.tokens = (folder / "tokens.bin").open("wb")
        self.trained = (folder / "trained.bin").open("wb")
        self.folder = folder
        self.weights: BinaryIO | None = None  # from the first one on that is not 0 or 1

    def append(self, tokens: np.ndarray, trained: np.ndarray, weights: np.ndarray | None = None) -> None:
        """`weights`: of each token (float32); None: 1 for each trained one."""
        if weights is not None and self.weights is None:
            self.trained.flush()
            self.weights = (self.folder / "weights.bin").open("wb")
            with (self.folder / "trained.bin").open("rb") as before:
                while part := before.read(1 << 20):
                    self.weights.write(np.frombuffer(part, np.bool_).astype("<f4").tobytes())
        self.tokens.write(tokens.astype("<i4", copy=False).tobytes())
        self.trained.write(trained.astype(np.bool_, copy=False).tobytes())
        if self.weights is not None:
            self.weights.write((trained if weights is None else weights).astype("<f4", copy=False).tobytes())

    def close(self) -> None:
        for file in (self.tokens, self.trained, self.weights):
            if file is not None:
                file.close()


def select_samples(
    folder: Path,
    tokens_folder: str,
    starts: np.ndarray,
    counts: np.ndarray,
    answers: np.ndarray,
    lines: np.ndarray,
    weights: np.ndarray | None = None,
) -> None:
    """Writes a split that selects samples of a file whose tokens are in `tokens_folder`, relative to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("starts", starts), ("counts", counts), ("answers", answers), ("lines", lines)):
        np.save(folder / f"{name}.npy", array.astype(np.int64))
    if (folder / tokens_folder / "weights.bin").is_file():
        assert weights is not None
        np.save(folder / "weights.npy", weights.astype(np.float64))
    (folder / SPLIT_FILE).write_text(json.dumps({"tokens": tokens_folder}), encoding="utf-8")


def write_split(folder: Path, samples: Iterable[tuple[list[int], Sequence[float], int]]) -> None:
    """Writes (tokens, trained or weights, line) samples into `folder`, tokens and all."""
    writer = TokenWriter(folder)
    counts, answers, lines, sums = [], [], [], []
    for tokens, trained, line in samples:
        weights = np.array(trained, np.float32)
        has_fractions = bool(((weights != 0) & (weights != 1)).any())
        writer.append(np.array(tokens, np.int32), weights > 0, weights if has_fractions else None)
        counts.append(len(tokens))
        answers.append(int((weights > 0).sum()))
        lines.append(line)
        sums.append(float(weights.sum(dtype=np.float64)))
    writer.close()
    starts = np.cumsum([0, *counts])[:-1]
    select_samples(folder, ".", starts, np.array(counts), np.array(answers), np.array(lines), np.array(sums))


class _MixedSource(msgspec.Struct):
    name: str
    split: str  # folder, relative to the mixture's
    part: int


class _Settings(msgspec.Struct):
    """What split.json says."""

    tokens: str | None = None  # folder of the tokens, relative to the split's
    megatron: str | None = None  # or the .bin of Megatron
    seq_length: int = 0
    mixture: list[_MixedSource] | None = None  # or the splits of several
    epoch: int = 0  # samples of an epoch of a mixture


def write_mixed_split(folder: Path, splits: dict[str, tuple[str, int]], epoch: int) -> None:
    """Writes a split of sources: name -> its split's folder, relative to `folder`, and its part of the samples."""
    folder.mkdir(parents=True)
    mixture = [{"name": name, "split": split, "part": part} for name, (split, part) in splits.items()]
    (folder / SPLIT_FILE).write_text(json.dumps({"mixture": mixture, "epoch": epoch}), encoding="utf-8")


def tokens_of_mixture(folder: Path) -> set[str]:
    """The names of the folders of tokens that a mixture in the same folder is made of; none: it is no mixture."""
    try:
        settings = read_json(folder / "training" / SPLIT_FILE, _Settings)
    except FileNotFoundError:
        return set()
    return {Path(source.split).parent.name for source in settings.mixture or ()}


def open_split(folder: Path) -> TokenizedSplit | MegatronSplit | MixedSplit:
    """Opens a split; tokens are memory-mapped.

    Raises:
        InputError: its files are missing or do not fit together.
    """
    try:
        settings = read_json(folder / SPLIT_FILE, _Settings)
    except (InputError, OSError) as error:
        raise InputError(_damaged(folder, str(error))) from None
    if settings.mixture is not None:
        sources = tuple(_open_source(folder / source.split) for source in settings.mixture)
        shares = Shares(tuple(map(len, sources)), tuple(source.part for source in settings.mixture), settings.epoch)
        return MixedSplit(tuple(source.name for source in settings.mixture), sources, shares)
    try:
        if settings.megatron is not None:
            documents = np.load(folder / "documents.npy", allow_pickle=False)
            return open_megatron_split(Path(settings.megatron), settings.seq_length, documents)
        split = _open_tokens(folder, folder / (settings.tokens or "."))
    except (OSError, ValueError, EOFError) as error:  # EOFError: of an empty file
        raise InputError(_damaged(folder, str(error))) from None
    arrays = (split.starts, split.counts, split.answer_tokens, split.lines)
    fits = all(array.dtype == np.int64 and array.shape == (len(split.lines),) for array in arrays)
    if split.weights is not None and split.weight_sums is not None:
        fits = fits and len(split.weights) == len(split.tokens) and split.weight_sums.shape == (len(split.lines),)
    ends = split.starts + split.counts if fits else np.zeros(0)
    if not fits or len(split.trained) != len(split.tokens) or (ends > len(split.tokens)).any() or (split.starts < 0).any():
        raise InputError(_damaged(folder, t("its files do not fit together")))
    return split


def _open_source(folder: Path) -> TokenizedSplit | MegatronSplit:
    split = open_split(folder)
    if isinstance(split, MixedSplit):
        raise InputError(_damaged(folder, t("its files do not fit together")))
    return split


def _open_tokens(folder: Path, tokens_folder: Path) -> TokenizedSplit:
    starts, counts, answers, lines = (
        np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("starts", "counts", "answers", "lines")
    )
    tokens, trained = _map(tokens_folder / "tokens.bin", "<i4"), _map(tokens_folder / "trained.bin", np.bool_)
    if not (folder / "weights.npy").is_file():
        return TokenizedSplit(tokens, trained, starts, counts, answers, lines)
    weights, sums = _map(tokens_folder / "weights.bin", "<f4"), np.load(folder / "weights.npy", allow_pickle=False)
    return TokenizedSplit(tokens, trained, starts, counts, answers, lines, weights, sums)


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
