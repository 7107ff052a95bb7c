"""What benchmarks/whole_job.py makes of what it has seen."""

import pytest

from benchmarks.whole_job import as_table, first_step, speeds

pytestmark = pytest.mark.unit


def test_the_start_is_told_by_phases_until_the_first_step_is_done() -> None:
    seen = [
        (0.0, "before the workers"),
        (3.0, "starting"),
        (10.0, "running"),
        (11.0, "loading the model"),
        (14.0, "validating after step 0"),
        (16.0, "generating answers"),
        (18.0, "in its first step, 1"),
        (25.0, "in a step"),
        (90.0, "validating after step 10"),
    ]
    assert first_step(seen) == {
        "before the workers": 3.0,
        "starting": 7.0,
        "running": 1.0,
        "loading the model": 3.0,
        "validating after step 0": 2.0,
        "generating answers": 2.0,
        "in its first step, 1": 7.0,
    }


def test_steps_beside_a_save_are_told_apart_from_the_others() -> None:
    rows = [
        {"step": str(step), "time": f"{2.0 * step}", "seconds": "2", "tokens_per_second": f"{step}"} for step in range(1, 13)
    ]
    text = "step 6: checkpoint saved in 3.0 s, of which the training waited 0.1 s\n"
    assert speeds(rows, text) == {"while saving": 8, "otherwise": 9}  # 7 and 8; 4, 5, 6, 9, 10, 11, 12
    assert speeds(rows, "") == {"while saving": None, "otherwise": 8}


def test_the_table_has_all_of_the_time() -> None:
    found = {
        "wall_s": 100.0,
        "spent": {"start": 20.0, "steps": 70.0},
        "until_first_step": {"starting": 7.0},
        "saves": [{"step": 6, "s": 3.0, "waited_s": 0.1}],
        "median_step_s": 2.0,
        "tokens_per_second": {"while saving": 8, "otherwise": 9},
    }
    table = as_table(found)
    assert "| steps | 70.0 | 70.0% |" in table and "| after the workers, or not counted | 10.0 | 10.0% |" in table
    assert "saves: step 6: 3.0 s, waited 0.1 s" in table
