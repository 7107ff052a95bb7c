"""Whether validation still improves."""

import pytest

from finetuning.training.early_stopping import Validation, course_of, validations_in

pytestmark = pytest.mark.unit


def course(*losses: float, error: float = 0.1) -> tuple[int, int, int]:
    found = course_of([Validation(step, loss, error) for step, loss in enumerate(losses, 1)])
    return found.best.step, found.improved.step, found.without


def test_less_than_the_standard_error_is_no_improvement() -> None:
    assert course(2.0, 1.5, 1.45, 1.6) == (3, 2, 2)


def test_small_gains_add_up_to_an_improvement() -> None:
    assert course(2.0, 1.94, 1.88, 1.82) == (4, 3, 1)


def test_without_a_standard_error_any_lower_loss_counts() -> None:
    assert course(2.0, 1.999, 1.999, error=0.0) == (2, 2, 1)


def test_validations_are_those_rows_that_have_a_loss_also_of_earlier_versions() -> None:
    rows = [
        {"step": "1", "val_loss": ""},
        {"step": "2", "val_loss": "1.5", "val_error": "0.25"},
        {"step": "4", "val_loss": "1"},
    ]
    assert validations_in(rows) == [Validation(2, 1.5, 0.25), Validation(4, 1.0, 0.0)]
