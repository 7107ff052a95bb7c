"""`metrics.csv`: one row per optimizer step, also after crashes and resumes."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from finetuning.files.atomic import write_text

MAX_READ_BYTES = 2**18  # by `MetricsTail` at once

COLUMNS = (
    "step",
    "train_loss",
    "val_loss",
    "val_error",
    "learning_rate",
    "grad_norm",
    "samples",
    "tokens",
    "answer_tokens",
    "tokens_per_second",
    "fill",
    "imbalance",
    "memory_gib",
    "time",
    "other_seconds",  # between the step before, or the command, and this one: start, validation, saves that were waited for
    "seconds",
)


def source_column(column: str, source: str) -> str:
    """That of one source of a mixture."""
    return f"{column}/{source}"


class MetricsFile:
    """Appends rows; rows after `resume_step` that a broken run left behind are dropped first, so no step is twice.

    A mixture has a column more for the losses of each source, behind all others.
    """

    def __init__(self, path: Path, resume_step: int, sources: Sequence[str] = ()):
        self.path = path
        before = read_metrics(path)
        of_sources = [source_column(column, source) for column in ("train_loss", "val_loss") for source in sources]
        self.columns = tuple(dict.fromkeys([*COLUMNS, *of_sources, *(before[0] if before else ())]))
        self._write([row for row in before if int(row["step"]) <= resume_step])

    def append(self, row: dict[str, float | int | None]) -> None:
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            if file.tell() == 0:  # somebody has removed it
                writer.writeheader()
            writer.writerow(row)

    def fill_in(self, step: int, values: Mapping[str, float | None]) -> None:
        """What was found of a step that has its row already."""
        self._write([{**row, **values} if int(row["step"]) == step else row for row in read_metrics(self.path)])

    def _write(self, rows: Sequence[Mapping[str, object]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The complete rows of the file; none if it does not exist."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["step"] and row["seconds"]]


class MetricsTail:
    """Reads the rows of a file that another thread or process appends to, a part at a time."""

    def __init__(self, path: Path):
        self.path = path
        self.file_id = self.position = self.next_position = 0

    def read(self) -> list[dict[str, str]]:
        """The next complete rows, none where there are no more; the same again until `advance` is called."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return []
        with file:
            file_id = os.fstat(file.fileno()).st_ino
            if file_id != self.file_id:  # it was written anew
                self.file_id, self.position = file_id, 0
            columns = file.readline().decode().strip().split(",")
            self.position = max(self.position, file.tell())
            file.seek(self.position)
            content = file.read(MAX_READ_BYTES)
        content = content[: content.rfind(b"\n") + 1]
        self.next_position = self.position + len(content)
        return list(csv.DictReader(content.decode().splitlines(), columns))

    def advance(self) -> None:
        """What was read is done with."""
        self.position = self.next_position

    def rewind(self) -> None:
        self.position = 0
