"""What the last screen and an export say of the course of validation."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from finetuning.cli.course_lines import checkpoint_lines, course_lines
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
    risen = "it has risen since by more than its standard error: overfitting;"
    assert verdict == f"{risen} no weights of it were kept; --export best keeps them"
    checkpoint(run, "step=000020", 20)
    (Path(run.experiment_dir) / "checkpoints" / "best").symlink_to("step=000020")
    command = f"finetune export {run.experiment_dir}@best"
    assert lines(run, 3.0, 1.0, 1.2)[1] == f"{risen} the best weights kept are of step 20: {command}"
    by_name = dataclasses.replace(run, config=dataclasses.replace(run.config, experiments_dir="experiments", experiment="mine"))
    assert lines(by_name, 3.0, 1.0, 1.2)[1].endswith("finetune export mine@best")
    takes_best = dataclasses.replace(run, config=dataclasses.replace(run.config, export="best"))
    assert lines(takes_best, 1.0, 1.2)[1] == f"{risen} the result has these weights"


def test_an_export_says_which_weights_it_takes_and_which_were_better(run: Run) -> None:
    last, best = checkpoint(run, "step=000030", 30), checkpoint(run, "best-step=000020", 20)
    (last.parent / "best").symlink_to(best.name)
    metrics = Path(run.experiment_dir) / "metrics.csv"

    def record(*losses: float) -> None:
        rows = "".join(f"{10 * n},{loss},0.1,1\n" for n, loss in enumerate(losses, 1))
        metrics.write_text("step,val_loss,val_error,seconds\n" + rows)

    record(3.0, 1.0, 1.2, 0.1)  # the fourth is not part of the weights of step 30
    taken, note = checkpoint_lines(last)
    assert taken == "weights of step 30"
    assert note.startswith("note: the validation loss was 1.0000 at step 20, and has risen by more than its standard error;")
    assert note.endswith(f" the best weights are {run.experiment_dir}@best")
    assert checkpoint_lines(best) == ["weights of step 20"]
    record(3.0, 1.0, 1.05)
    assert checkpoint_lines(last) == ["weights of step 30"]
    metrics.unlink()
    assert checkpoint_lines(last) == ["weights of step 30"]


def checkpoint(run: Run, name: str, step: int) -> Path:
    folder = Path(run.experiment_dir) / "checkpoints" / name
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").write_text(json.dumps({"step": step, "files": {}}))
    return folder


def test_a_loss_that_stays_within_its_error_says_when_steps_stopped_helping(run: Run) -> None:
    assert lines(run, 3.0, 1.0, 0.99, 1.02)[1] == (
        "no improvement beyond the standard error since step 20: more steps bring little"
    )


def test_two_validations_have_no_course(run: Run) -> None:
    assert lines(run, 3.0, 1.0) == []
