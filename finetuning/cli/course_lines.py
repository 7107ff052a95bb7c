"""What the last screen says of the course of validation: where it was best, how sure that is, and what follows."""

from collections.abc import Iterable, Mapping

from finetuning.config.run import Run
from finetuning.i18n import t
from finetuning.training.early_stopping import course_of, validations_in

FEW_VALIDATIONS = 3  # fewer have no course


def course_lines(rows: Iterable[Mapping[str, str | None]], run: Run) -> list[str]:
    """Of the rows of metrics.csv."""
    validations = validations_in(rows)
    if len(validations) < FEW_VALIDATIONS or not all(validation.error > 0 for validation in validations):
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
    if course.last.loss > best.loss + course.last.error:
        kept = t("the result has these weights") if run.config.early_stopping else f"{run.experiment_dir}/checkpoints/best"
        return [lowest, t("it has risen since by more than its standard error: overfitting; {kept}", kept=kept)]
    if course.without == 0:
        return [lowest, t("it was still improving: train longer")]
    step = course.improved.step
    return [lowest, t("no improvement beyond the standard error since step {step}: more steps bring little", step=step)]
