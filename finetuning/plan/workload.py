"""What a step has to train: how many tokens, in documents of which lengths. Imports no torch."""

import math
from dataclasses import dataclass

import numpy as np

from finetuning.config.strategy import Strategy


@dataclass(frozen=True)
class Workload:
    """Of a step, on average."""

    samples: int  # of the global batch
    tokens: float  # of a sample
    squared: float  # tokens that the token of a sample stands among, on average: of samples of one length, that length
    target_share: float  # of the tokens, those that are trained

    @property
    def step_tokens(self) -> float:
        return self.samples * self.tokens


@dataclass(frozen=True)
class Packs:
    """Of each data-parallel rank, a step."""

    count: int
    tokens: int  # of each, padding included
    fill: float  # real tokens among them


def workload_of(lengths: np.ndarray, answer_tokens: int, global_batch_size: int) -> Workload:
    """
    Args:
        lengths: tokens of each training sample.
        answer_tokens: of all samples together.
    """
    total = float(lengths.sum())
    squared = float((lengths.astype(np.float64) ** 2).sum()) / max(total, 1.0)
    return Workload(global_batch_size, total / max(len(lengths), 1), squared, min(1.0, answer_tokens / max(total, 1.0)))


def packs_of(strategy: Strategy, work: Workload) -> Packs:
    """How a step is packed: as many packs as hold all tokens, of equal length (`finetuning.data.batches.packing`)."""
    plan, ranks = strategy.packs, strategy.degrees.data_parallel
    tokens = work.step_tokens / ranks
    count = max(1, math.ceil(tokens / plan.capacity - 1e-9))
    longest_first = math.floor(plan.capacity / max(work.squared, 1.0))  # of samples longer than half a pack, one fills it
    if longest_first <= 1:
        count = max(
            count, math.ceil(work.samples / ranks * work.tokens / min(plan.capacity, max(work.squared, work.tokens)) - 1e-9)
        )
    count = -(-count // plan.packs_multiple) * plan.packs_multiple
    length = plan.padded(math.ceil(tokens / count))
    return Packs(count, length, tokens / (count * length))
