"""Which samples an optimizer step consumes.

The samples of all epochs form one endless stream; epoch e is a permutation that depends only on (seed, e, number of
samples). Step s (from 0) takes stream positions s * G … (s + 1) * G - 1, so the order does not depend on batch size,
maximum steps or layout, and a position in the data is one number: consumed samples.

Example: 5 samples, G = 3: step 0 takes the first three of epoch 0; step 1 its last two and the first of epoch 1.
"""

from functools import lru_cache

import numpy as np


def samples_of_step(step: int, global_batch_size: int, num_samples: int, seed: int) -> np.ndarray:
    """Sample indices [global_batch_size] of one step; a sample appears once per epoch."""
    parts = []
    position, end = step * global_batch_size, (step + 1) * global_batch_size
    while position < end:
        epoch, start = divmod(position, num_samples)
        part = epoch_order(epoch, num_samples, seed)[start : start + end - position]
        parts.append(part)
        position += len(part)
    return np.concatenate(parts)


def steps_per_epoch(num_samples: int, global_batch_size: int) -> int:
    """Steps until every sample has been seen; the last one may reach into the next epoch."""
    return -(-num_samples // global_batch_size)


@lru_cache(maxsize=4)
def epoch_order(epoch: int, num_samples: int, seed: int) -> np.ndarray:
    """Permutation of 0 … num_samples - 1.

    Sorting raw PCG64 words, not `Generator.permutation`: numpy promises a stable stream only for the raw words.
    """
    words = np.random.PCG64(np.random.SeedSequence([seed, epoch, num_samples])).random_raw(num_samples)
    return np.argsort(words, kind="stable")
