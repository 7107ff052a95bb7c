"""How well rows are packed on lengths like those of instruction data, and that the planner always ends."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetuning.config.strategy import GRANULARITY, PackPlan
from finetuning.data.batches.packing import measure, plan_rows

pytestmark = pytest.mark.unit

CAPACITY = 8192
ATTENTION_COST = 1.75e-5  # of the 8B


def alpaca_like(count: int, seed: int) -> np.ndarray:
    """Log-normal, median about 180 tokens, tail to 2 000."""
    drawn = np.random.default_rng(seed).lognormal(np.log(180), 0.8, count)
    return np.clip(drawn, 12, 2000).astype(np.int64)


@pytest.mark.parametrize("granularity", GRANULARITY.values())
def test_short_samples_leave_little_padding_and_ranks_wait_little(granularity: int) -> None:
    plan = PackPlan(CAPACITY, granularity, ATTENTION_COST)
    packings = []
    for step in range(50):
        lengths = alpaca_like(128, step)
        packings.append(measure(lengths, plan_rows(lengths, 4, plan), plan))
    assert min(packing.fill for packing in packings) >= 0.97, "also in the worst step"
    assert max(packing.imbalance for packing in packings) <= 0.03


def test_many_rows_are_nearly_full() -> None:
    lengths = alpaca_like(2048, 0)
    plan = PackPlan(CAPACITY, CAPACITY // 16, ATTENTION_COST)
    packing = measure(lengths, plan_rows(lengths, 8, plan), plan)
    assert packing.fill >= 0.99
    assert packing.imbalance <= 0.01


def test_the_measure_counts_padding_and_the_slowest_rank_of_each_micro_batch() -> None:
    plan = PackPlan(8, 4, 0.0)
    # Rows of 5 and 4 positions are computed as 8 and 4; the mean is 6.
    packing = measure(np.array([5, 4]), [[[0]], [[1]]], plan)
    assert (packing.tokens, packing.computed) == (9, 12)
    assert packing.fill == 0.75
    assert packing.imbalance == pytest.approx(8 / 6 - 1)


@given(
    lengths=st.lists(st.integers(0, 100), min_size=1, max_size=80).map(np.array),
    ranks=st.integers(1, 9),
    granularity=st.integers(1, 100),
    cost=st.sampled_from([0.0, 1e-4, 1.0]),
)
def test_any_lengths_fit_whatever_the_units(lengths: np.ndarray, ranks: int, granularity: int, cost: float) -> None:
    plan = PackPlan(100, granularity, cost)
    rows = plan_rows(lengths, ranks, plan)
    assert sorted(sample for rank in rows for row in rank for sample in row) == list(range(len(lengths)))
    assert all(int(lengths[row].sum()) <= 100 for rank in rows for row in rank)
    packing = measure(lengths, rows, plan)
    assert packing.tokens == lengths.sum() and packing.imbalance >= -1e-9
