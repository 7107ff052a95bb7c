"""Which samples a step consumes: one endless stream, independent of batch size and layout."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetuning.data.batches.order import epoch_order, samples_of_step, steps_per_epoch

pytestmark = pytest.mark.unit


@given(num_samples=st.integers(1, 300), batch=st.integers(1, 70), seed=st.integers(0, 2**31), epochs=st.integers(1, 3))
def test_every_sample_comes_once_per_epoch_whatever_the_batch_size(
    num_samples: int, batch: int, seed: int, epochs: int
) -> None:
    steps = steps_per_epoch(num_samples * epochs, batch)
    stream = np.concatenate([samples_of_step(step, batch, num_samples, seed) for step in range(steps)])
    for epoch in range(epochs):
        part = stream[epoch * num_samples : (epoch + 1) * num_samples]
        assert sorted(part.tolist()) == list(range(num_samples))


@given(num_samples=st.integers(1, 300), batches=st.tuples(st.integers(1, 40), st.integers(1, 40)), seed=st.integers(0, 99))
def test_the_order_does_not_depend_on_the_batch_size(num_samples: int, batches: tuple[int, int], seed: int) -> None:
    streams = [
        np.concatenate([samples_of_step(step, batch, num_samples, seed) for step in range(-(-200 // batch))])[:200]
        for batch in batches
    ]
    assert streams[0].tolist() == streams[1].tolist()


def test_seed_epoch_and_size_each_change_the_order() -> None:
    base = epoch_order(0, 100, 1).tolist()
    assert base != epoch_order(1, 100, 1).tolist()
    assert base != epoch_order(0, 100, 2).tolist()
    assert base != [i for i in epoch_order(0, 101, 1).tolist() if i < 100]


def test_the_order_is_the_same_on_every_machine_and_numpy_version() -> None:
    # Written down from numpy 2.4; a resumed run on another version must go through the same samples.
    assert epoch_order(0, 8, 1234).tolist() == EXPECTED_ORDER


def test_one_epoch_takes_the_steps_that_see_every_sample() -> None:
    assert [steps_per_epoch(5, batch) for batch in (1, 3, 5, 6)] == [5, 2, 1, 1]


EXPECTED_ORDER = [6, 0, 2, 5, 3, 7, 4, 1]
