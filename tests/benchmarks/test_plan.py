"""The plan against every run on record."""

import pytest

from benchmarks.plan import Row, compare

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("row", compare(), ids=lambda row: row.run)
def test_memory_and_time_of_a_run_are_the_planned_ones(row: Row) -> None:
    assert 0 <= row.memory_off <= 0.05, f"{row.memory_gib:.2f} GiB used, {row.planned_gib:.2f} planned"
    assert abs(row.time_off) <= 0.10, f"{row.tokens_per_second:.0f} tokens/s, {row.planned_tokens_per_second:.0f} planned"
