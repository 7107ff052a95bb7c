"""Which source of a mixture each position of the stream of samples is of.

After any number of samples n, each source has had its share of n, rounded down or up: not only in the mean, and whatever the
batch size. So sample k of a source (from 0), whose share is w, has a first and a last position, floor(k / w) and
ceil((k + 1) / w) - 1, and at each position that sample comes whose last position is the nearest (earliest deadline first, which
on one machine finds an order wherever there is one, Liu & Layland 1973; there is, Tijdeman 1980). It repeats after sum(parts).

Example: parts 3, 1, 1 -> sources 0, 0, 1, 0, 2, and again.
"""

from typing import NamedTuple

import numpy as np

BLOCK = 4096  # positions that are found at once


class Shares(NamedTuple):
    """A mixture, as far as its order goes."""

    sizes: tuple[int, ...]  # samples of each source
    parts: tuple[int, ...]  # of each sum(parts) samples, how many are of each source
    epoch: int  # samples of an epoch


class SourceOrder:
    """The sources of positions, found as far as they are asked for."""

    def __init__(self, parts: tuple[int, ...]):
        self.parts, self.period = parts, sum(parts)
        self._found = np.zeros(0, np.int16)  # replaced as a whole: another thread may be reading

    def between(self, first: int, last: int) -> np.ndarray:
        """The source of each position first … last - 1."""
        pieces = []
        while first < last:
            start = first % self.period
            stop = min(self.period, start + last - first)
            pieces.append(self._up_to(stop)[start:stop])
            first += stop - start
        return np.concatenate(pieces)

    def counts(self, position: int) -> list[int]:
        """How many of the positions before this one are of each source."""
        whole, rest = divmod(position, self.period)
        counted = np.bincount(self._up_to(rest)[:rest], minlength=len(self.parts)).tolist()
        return [whole * part + count for part, count in zip(self.parts, counted, strict=True)]

    def _up_to(self, stop: int) -> np.ndarray:
        found = self._found
        if len(found) < stop:
            found = np.concatenate([found, self._next(found, min(self.period, max(stop, len(found) + BLOCK)))])
            self._found = found
        return found

    def _next(self, found: np.ndarray, stop: int) -> np.ndarray:
        period, parts = self.period, self.parts
        counts = np.bincount(found, minlength=len(parts)).tolist()
        release = [count * period // part for count, part in zip(counts, parts, strict=True)]
        deadline = [-(-(count + 1) * period // part) for count, part in zip(counts, parts, strict=True)]
        sources = range(len(parts))
        chosen = np.empty(stop - len(found), np.int16)
        for position in range(len(found), stop):
            source = min((each for each in sources if release[each] <= position), key=deadline.__getitem__)
            chosen[position - len(found)] = source
            counts[source] += 1
            release[source] = counts[source] * period // parts[source]
            deadline[source] = -(-(counts[source] + 1) * period // parts[source])
        return chosen
