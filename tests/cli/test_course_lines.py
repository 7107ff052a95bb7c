"""What the last screen says of the course of validation."""

from collections.abc import Callable
from pathlib import Path

import pytest

from finetuning.cli.course_lines import course_lines
from finetuning.config.run import Run
from finetuning.config.settings import RunConfig
from finetuning.launch.prepare import prepare

pytestmark = pytest.mark.unit


@pytest.fixture
def run(settings: Callable[..., RunConfig], tmp_path: Path) -> Run:
    return prepare(settings(), None, tmp_path / "experiment", tmp_path / "tokens", with_weights=True).run


def lines(run: Run, *losses: float) -> list[str]:
    return course_lines(({"step": str(10 * n), "val_loss": str(x), "val_error": "0.1"} for n, x in enumerate(losses, 1)), run)


def test_a_run_that_still_improved_is_told_to_go_on(run: Run) -> None:
    assert lines(run, 3.0, 2.0, 1.0) == [
        "lowest validation loss 1.0000 ± 0.1000 at step 30 of 30",
        "it was still improving: train longer",
    ]


def test_a_loss_that_rose_by_more_than_its_error_is_overfitting(run: Run) -> None:
    best, verdict = lines(run, 3.0, 1.0, 1.2)
    assert best == "lowest validation loss 1.0000 ± 0.1000 at step 20 of 30"
    kept = f"{run.experiment_dir}/checkpoints/best"
    assert verdict == f"it has risen since by more than its standard error: overfitting; {kept}"


def test_a_loss_that_stays_within_its_error_says_when_steps_stopped_helping(run: Run) -> None:
    assert lines(run, 3.0, 1.0, 0.99, 1.02)[1] == (
        "no improvement beyond the standard error since step 20: more steps bring little"
    )


def test_two_validations_have_no_course(run: Run) -> None:
    assert lines(run, 3.0, 1.0) == []
