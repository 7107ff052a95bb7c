"""What is said of the course of validation: where it was best, how sure that is, and what follows."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from finetuning.checkpoint.files import Checkpoint, open_checkpoint
from finetuning.config.run import Run
from finetuning.i18n import t
from finetuning.launch.experiments import DEFAULT_FOLDER
from finetuning.training.early_stopping import course_of, validations_in
from finetuning.training.metrics import read_metrics

FEW_VALIDATIONS = 3  # fewer have no course


def course_lines(rows: Iterable[Mapping[str, str | None]], run: Run) -> list[str]:
    """Of the rows of metrics.csv, for the last screen."""
    validations = validations_in(rows)
    if not validations or not all(validation.error > 0 for validation in validations):
        return []
    course = course_of(validations)
    best = course.best
    lowest = t(
        "lowest validation loss {loss:.4f} ± {error:.4f} at step {step} of {last}",
        loss=best.loss,
        error=best.error,
        step=best.step,
        last=course.last.step,
    )
    if course.has_risen:
        return [
            lowest,
            t("it has risen since by more than its standard error: overfitting; {kept}", kept=_kept(run, course.last.step)),
        ]
    if len(validations) < FEW_VALIDATIONS:
        return []
    if course.without == 0:
        return [lowest, t("it was still improving: train longer")]
    step = course.improved.step
    return [lowest, t("no improvement beyond the standard error since step {step}: more steps bring little", step=step)]


def checkpoint_lines(path: Path) -> list[str]:
    """Which weights a checkpoint of an experiment has, and where validation was better by more than its noise."""
    checkpoint, best = open_checkpoint(path), open_checkpoint(path.parent / "best")
    assert isinstance(checkpoint, Checkpoint)
    lines = [t("weights of step {step}", step=checkpoint.step)]
    experiment = path.parent.parent
    before = [found for found in validations_in(read_metrics(experiment / "metrics.csv")) if found.step <= checkpoint.step]
    if isinstance(best, Checkpoint) and best.step != checkpoint.step and before and before[-1].error > 0:
        course = course_of(before)
        if course.has_risen:
            lines.append(
                t(
                    "note: the validation loss was {loss:.4f} at step {step}, and has risen by more than its standard error; "
                    "the best weights are {model}@best",
                    loss=course.best.loss,
                    step=course.best.step,
                    model=experiment,
                )
            )
    return lines


def _kept(run: Run, last: int) -> str:
    """Where the best weights are."""
    if run.config.takes_best:
        return t("the result has these weights")
    best = open_checkpoint(Path(run.experiment_dir) / "checkpoints" / "best")
    if not isinstance(best, Checkpoint) or best.step == last:
        return t("no weights of it were kept; --export best keeps them")
    is_found_by_name = Path(run.config.experiments_dir) == Path(DEFAULT_FOLDER)
    model = run.config.experiment if is_found_by_name else run.experiment_dir
    return t("the best weights kept are of step {step}: finetune export {model}@best", step=best.step, model=model)
