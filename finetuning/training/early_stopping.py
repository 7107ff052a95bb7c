"""Whether validation still improves, and where it was best: a pure function of the validations so far.

They are in metrics.csv, so that every layout and a resumed run decide alike. Imports no torch: the last screen asks, too.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Validation:
    step: int
    loss: float
    error: float  # standard error of the loss; 0 where nobody knows it


@dataclass(frozen=True)
class Course:
    """Of at least one validation."""

    best: Validation  # the lowest loss, of several the earliest
    improved: Validation  # the newest that was better than all before it by more than its standard error
    without: int  # validations since then
    last: Validation

    @property
    def has_risen(self) -> bool:
        """The last loss is above the lowest by more than its standard error."""
        return self.last.loss > self.best.loss + self.last.error


def course_of(validations: Sequence[Validation]) -> Course:
    """Example: losses 2.0, 1.5, 1.45, 1.6 with errors of 0.1: the best is the third, the second has improved, two without.

    Small gains add up: each is compared with the last one that counted, not with the one before.
    """
    improved, without = validations[0], 0
    for validation in validations[1:]:
        if validation.loss < improved.loss - validation.error:
            improved, without = validation, 0
        else:
            without += 1
    best = min(validations, key=lambda validation: (validation.loss, validation.step))
    return Course(best, improved, without, validations[-1])


def validations_in(rows: Iterable[Mapping[str, str | None]]) -> list[Validation]:
    """Those of rows of metrics.csv; earlier versions wrote no standard error."""
    return [
        Validation(int(row["step"] or 0), float(row["val_loss"]), float(row.get("val_error") or 0.0))
        for row in rows
        if row["val_loss"]
    ]
