"""Which samples an optimizer step consumes.

The samples of all epochs form one endless stream; epoch e is a permutation that depends only on (seed, e, number of
samples). Step s (from 0) takes stream positions s * G … (s + 1) * G - 1, so the order does not depend on batch size,
maximum steps or layout, and a position in the data is one number: consumed samples.

Example: 5 samples, G = 3: step 0 takes the first three of epoch 0; step 1 its last two and the first of epoch 1.

Of a mixture, each source has such a stream of its own, and `source_order` says which of them a position goes on with.
"""

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np

from finetuning.data.batches.source_order import Shares, SourceOrder


def samples_of_step(step: int, global_batch_size: int, num_samples: int, seed: int, shares: Shares | None = None) -> np.ndarray:
    """Sample indices [global_batch_size] of one step; a sample appears once per epoch.

    With `shares`, the samples of all sources are numbered through, one source after the other, and each appears once per epoch
    of its source.
    """
    first, last = step * global_batch_size, (step + 1) * global_batch_size
    if shares is not None:
        return _mixed_order(shares, seed).samples(first, last)
    return np.concatenate(
        [_of_epoch(num_samples, seed, None)(epoch)[part] for epoch, part in _epochs(first, last, num_samples)]
    )


def steps_per_epoch(num_samples: int, global_batch_size: int) -> int:
    """Steps until every sample has been seen; the last one may reach into the next epoch."""
    return -(-num_samples // global_batch_size)


def epoch_order(epoch: int, num_samples: int, seed: int, source: int | None = None) -> np.ndarray:
    """Permutation of 0 … num_samples - 1; `source`: of a mixture, whose sources may be of one size.

    Sorting raw PCG64 words, not `Generator.permutation`: numpy promises a stable stream only for the raw words.
    """
    entropy = [seed, epoch, num_samples] if source is None else [seed, epoch, num_samples, source + 1]
    words = np.random.PCG64(np.random.SeedSequence(entropy)).random_raw(num_samples)
    return np.argsort(words, kind="stable")


class _MixedOrder:
    """The streams of all sources, drawn from by turns."""

    def __init__(self, shares: Shares, seed: int):
        self.sizes, self.sources = shares.sizes, SourceOrder(shares.parts)
        self.starts = np.cumsum([0, *shares.sizes])
        self.orders = [_of_epoch(size, seed, source) for source, size in enumerate(shares.sizes)]

    def samples(self, first: int, last: int) -> np.ndarray:
        """Those at positions first … last - 1."""
        of_source, before = self.sources.between(first, last), self.sources.counts(first)
        samples = np.empty(last - first, np.int64)
        for source, (size, order) in enumerate(zip(self.sizes, self.orders, strict=True)):
            places = np.flatnonzero(of_source == source)
            begin, end = before[source], before[source] + len(places)
            for epoch, part in _epochs(begin, end, size):
                start = epoch * size + part.start - begin
                samples[places[start : start + part.stop - part.start]] = self.starts[source] + order(epoch)[part]
        return samples


@lru_cache(maxsize=2)
def _mixed_order(shares: Shares, seed: int) -> _MixedOrder:
    return _MixedOrder(shares, seed)


@lru_cache(maxsize=256)
def _of_epoch(num_samples: int, seed: int, source: int | None) -> Callable[[int], np.ndarray]:
    """`epoch_order` by epoch; the two that a step may need are kept."""
    return lru_cache(maxsize=2)(partial(epoch_order, num_samples=num_samples, seed=seed, source=source))


def _epochs(first: int, last: int, num_samples: int) -> list[tuple[int, slice]]:
    """Positions first … last - 1 of an endless stream: of each epoch, which places of its order."""
    found = []
    while first < last:
        epoch, start = divmod(first, num_samples)
        stop = min(num_samples, start + last - first)
        found.append((epoch, slice(start, stop)))
        first += stop - start
    return found
