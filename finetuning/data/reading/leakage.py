"""Samples that one source of a mixture holds out and another trains: what only shows between sources.

Inside a source a check compares everything with everything (`check`). Between sources, samples and questions that are equal, by
the digests that each check leaves beside its tokens.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetuning.data.reading.findings import Finding
from finetuning.data.reading.near_duplicates import equal_to_earlier

DIGESTS_FILE = "digests.npz"


@dataclass(frozen=True)
class Digests:
    """Of every usable sample of a source."""

    files: np.ndarray  # their names
    numbers: np.ndarray  # of each sample, that of its file
    lines: np.ndarray
    is_trained: np.ndarray  # in the training split
    samples: np.ndarray  # uint8 [n, 16]
    questions: np.ndarray  # uint8 [n, 16]

    def place(self, index: int) -> tuple[str, int]:
        return str(self.files[self.numbers[index]]), int(self.lines[index])


def save_digests(folder: Path, digests: Digests) -> None:
    np.savez(folder / DIGESTS_FILE, **vars(digests))


def read_digests(folder: Path) -> Digests | None:
    """None: Megatron data, which have no texts."""
    if not (folder / DIGESTS_FILE).is_file():
        return None
    with np.load(folder / DIGESTS_FILE, allow_pickle=False) as arrays:
        return Digests(**{name: arrays[name] for name in arrays.files})


def leaks_between(sources: Mapping[str, Digests]) -> Iterator[Finding]:
    """What is held out in a source and trained in another; files as `mine/validation.jsonl`."""
    names, found = list(sources), list(sources.values())
    source = np.concatenate([np.full(len(each.lines), place) for place, each in enumerate(found)])
    index = np.concatenate([np.arange(len(each.lines)) for each in found])
    is_trained = np.concatenate([each.is_trained for each in found])
    order = np.argsort(~is_trained, kind="stable")  # what is trained comes first, so that what is equal to it is later
    source, index, num_trained = source[order], index[order], int(is_trained.sum())

    def place(number: int) -> tuple[str, int]:
        file, line = found[source[number]].place(int(index[number]))
        return f"{names[source[number]]}/{file}", line

    told: set[int] = set()
    for kind, digests in (("same", [each.samples for each in found]), ("question", [each.questions for each in found])):
        earlier = equal_to_earlier(np.concatenate(digests)[order])
        leaks = (earlier >= 0) & (earlier < num_trained) & (np.arange(len(order)) >= num_trained) & (source != source[earlier])
        for later in np.flatnonzero(leaks).tolist():
            if later not in told:
                told.add(later)
                (file, line), (other, other_line) = place(later), place(int(earlier[later]))
                yield Finding("leakage", file, line, {"kind": kind, "other": f"{other}:{other_line}", "percent": 100})
