"""The order of a mixture: shares that are exact at every position, and each source's own epochs."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetuning.data.batches.order import samples_of_step
from finetuning.data.batches.source_order import Shares, SourceOrder

pytestmark = pytest.mark.unit

EXPECTED_SAMPLES = [1, 0, 5, 3, 2, 4, 1, 2, 6, 0, 3, 5]
PARTS = st.lists(st.sampled_from([1, 2, 3, 5, 7, 50, 97]), min_size=1, max_size=6).map(tuple)


@given(PARTS)
def test_after_any_number_of_samples_each_source_has_its_share_rounded_down_or_up(parts: tuple[int, ...]) -> None:
    order, period = SourceOrder(parts), sum(parts)
    sources = order.between(0, 2 * period)
    counts = np.cumsum(sources[:, None] == np.arange(len(parts)), axis=0)
    quota = np.arange(1, 2 * period + 1)[:, None] * np.array(parts)  # in units of 1 / period
    assert (np.abs(counts * period - quota) < period).all()
    assert counts[period - 1].tolist() == list(parts)
    assert order.counts(period + 1)[sources[period]] == parts[sources[period]] + 1


def test_the_order_stays_as_it_is() -> None:
    """Runs go on in it after an update."""
    assert SourceOrder((3, 1, 1)).between(0, 7).tolist() == [0, 0, 1, 0, 2, 0, 0]
    shares = Shares((4, 3), (2, 1), 6)
    assert samples_of_step(0, 12, 7, 1234, shares).tolist() == EXPECTED_SAMPLES


@given(parts=PARTS, seed=st.integers(0, 5), first=st.integers(1, 9), second=st.integers(1, 9), data=st.data())
def test_it_depends_on_no_batch_size_and_each_source_goes_through_its_own_epochs(
    parts: tuple[int, ...], seed: int, first: int, second: int, data: st.DataObject
) -> None:
    sizes = tuple(data.draw(st.integers(1, 12), label="size") for _ in parts)
    shares = Shares(sizes, parts, 1)
    streams = [
        np.concatenate([samples_of_step(step, batch, sum(sizes), seed, shares) for step in range(-(-90 // batch))])[:90]
        for batch in (first, second)
    ]
    assert streams[0].tolist() == streams[1].tolist()
    starts = np.cumsum([0, *sizes])
    for source, size in enumerate(sizes):
        own = [sample for sample in streams[0].tolist() if starts[source] <= sample < starts[source + 1]]
        for epoch in range(len(own) // size):
            assert max(Counter(own[epoch * size : (epoch + 1) * size]).values()) == 1, "a sample twice in an epoch"


def test_sources_of_one_size_have_orders_of_their_own() -> None:
    stream = samples_of_step(0, 40, 40, 1, Shares((20, 20), (1, 1), 40))
    assert [s for s in stream if s < 20] != [s - 20 for s in stream if s >= 20]
