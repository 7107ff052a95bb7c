"""How often a checkpoint is saved where nobody has said."""

from itertools import pairwise

import pytest

from finetuning.training.save_rule import LARGEST_SHARE, LONGEST_S, SHORTEST_S, SaveRule

pytestmark = pytest.mark.unit


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def run(hours: float, step_s: float, save_s: float) -> list[float]:
    """The times at which a run of such steps begins its saves, each of which costs so much."""
    clock, saves = Clock(), []
    rule, end_s = SaveRule(clock), clock.now_s + hours * 3600
    while clock.now_s < end_s:
        clock.now_s += step_s
        if rule.is_due:
            saves.append(clock.now_s - 100.0)
            rule.begins()
            clock.now_s += save_s
            rule.has_cost(save_s)
    return saves


@pytest.mark.parametrize("save_s", [2.5, 10.0, 40.0])
def test_saves_cost_at_most_their_share_of_the_time(save_s: float) -> None:
    saves = run(24, 1.7, save_s)
    assert 0.8 * LARGEST_SHARE < len(saves) * save_s / (24 * 3600) <= LARGEST_SHARE * 1.02  # the first comes unmeasured


def test_what_costs_nothing_is_saved_once_a_minute_and_what_costs_much_every_half_hour() -> None:
    cheap, dear = run(6, 1.0, 0.0), run(6, 1.0, 600.0)
    assert {later - earlier for earlier, later in pairwise(cheap)} == {SHORTEST_S}
    assert max(later - earlier for earlier, later in pairwise(dear)) <= LONGEST_S + 1


def test_before_the_first_save_its_size_says_what_it_will_cost() -> None:
    clock = Clock()
    rule = SaveRule(clock)
    rule.expect(32 * 10**9)
    assert rule.interval_s == pytest.approx(16 / LARGEST_SHARE)
    clock.now_s += 16 / LARGEST_SHARE - 1
    assert not rule.is_due
    clock.now_s += 2
    assert rule.is_due
