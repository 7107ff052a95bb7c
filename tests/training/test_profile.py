"""How profiled time is added up."""

import pytest

from finetuning.training.profile import account, covered

pytestmark = pytest.mark.unit


def test_overlapping_intervals_count_once() -> None:
    assert covered([(4.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.0, 2.0)]) == 5.0
    assert covered([]) == 0.0


def test_messages_count_as_waiting_only_where_no_work_is_done() -> None:
    found = account(work=[(0.0, 4e6), (6e6, 8e6)], messages=[(3e6, 7e6)])
    assert found == {"work_s": 6.0, "messages_s": 4.0, "only_messages_s": 2.0}
