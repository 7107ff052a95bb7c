"""What a run makes of a split: steps per epoch, and how much packing saves."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from finetuning.config.strategy import PackPlan
from finetuning.data.batches.order import samples_of_step, steps_per_epoch
from finetuning.data.batches.packing import measure, plan_rows
from finetuning.data.batches.source_order import Shares

MEASURED_STEPS = 64


@dataclass(frozen=True)
class PackingFacts:
    """Measured on the first steps of the first epoch."""

    global_batch_size: int
    data_parallel_size: int
    steps_per_epoch: int
    fill: float  # real positions among those computed
    imbalance: float  # work of the slowest rank above the mean
    padded: float  # positions that padding to the longest sample of a step would compute, for each one packing computes

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def packing_facts(
    counts: np.ndarray,
    *,
    global_batch_size: int,
    data_parallel_size: int,
    plan: PackPlan,
    seed: int,
    shares: Shares | None = None,
) -> PackingFacts:
    """`counts`: tokens of each sample, at least one sample."""
    lengths = np.maximum(counts - 1, 0)
    steps = steps_per_epoch(shares.epoch if shares else len(lengths), global_batch_size)
    tokens = computed = padded = 0
    imbalances = []
    for step in range(min(steps, MEASURED_STEPS)):
        chosen = lengths[samples_of_step(step, global_batch_size, len(lengths), seed, shares)]
        packing = measure(chosen, plan_rows(chosen, data_parallel_size, plan), plan)
        tokens += packing.tokens
        computed += packing.computed
        padded += int(chosen.max()) * len(chosen)
        imbalances.append(packing.imbalance)
    return PackingFacts(
        global_batch_size, data_parallel_size, steps, tokens / computed, float(np.mean(imbalances)), padded / computed
    )
