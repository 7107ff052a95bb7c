"""metrics.csv: one row per step, whatever happened in between."""

from pathlib import Path

import pytest
import torch

from finetuning.training.metrics import COLUMNS, MetricsFile, read_metrics
from finetuning.training.step_record import peak_memory_gib

pytestmark = pytest.mark.unit


def row(step: int, train_loss: float = 1.0, val_loss: float | None = None) -> dict[str, float | int | None]:
    return dict.fromkeys(COLUMNS, 0.5) | {"step": step, "train_loss": train_loss, "val_loss": val_loss}


def steps(path: Path) -> list[int]:
    return [int(found["step"]) for found in read_metrics(path)]


def test_the_columns_come_in_a_fixed_order(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    MetricsFile(path, 0).append(row(1))
    header, line = path.read_text(encoding="utf-8").splitlines()
    assert header == (
        "step,train_loss,val_loss,val_error,learning_rate,grad_norm,samples,tokens,answer_tokens,tokens_per_second,fill,"
        "imbalance,memory_gib,time,other_seconds,seconds"
    )
    assert line == "1,1.0,,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5"


def test_losses_are_written_with_every_digit(tmp_path: Path) -> None:
    loss = 5.884335640149239
    MetricsFile(tmp_path / "metrics.csv", 0).append(row(1, loss, loss / 3))
    found = read_metrics(tmp_path / "metrics.csv")[0]
    assert (float(found["train_loss"]), float(found["val_loss"])) == (loss, loss / 3)


def test_rows_after_the_step_that_is_resumed_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    before = MetricsFile(path, 0)
    for step in (1, 2, 3):
        before.append(row(step, train_loss=9.0))
    resumed = MetricsFile(path, resume_step=2)
    resumed.append(row(3, train_loss=7.0))
    assert [(found["step"], found["train_loss"]) for found in read_metrics(path)] == [("1", "9.0"), ("2", "9.0"), ("3", "7.0")]


def test_a_fresh_start_drops_everything(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    MetricsFile(path, 0).append(row(1))
    MetricsFile(path, 0)
    assert steps(path) == []


@pytest.mark.parametrize("half", ["3,1.0", "3", "3,1.0,,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,"])
def test_a_row_that_a_kill_cut_short_is_passed_over_and_replaced(tmp_path: Path, half: str) -> None:
    path = tmp_path / "metrics.csv"
    before = MetricsFile(path, 0)
    for step in (1, 2):
        before.append(row(step))
    with path.open("a", encoding="utf-8") as file:
        file.write(half)
    assert steps(path) == [1, 2]
    MetricsFile(path, resume_step=2).append(row(3))
    assert steps(path) == [1, 2, 3]


def test_a_validation_loss_can_be_filled_in_later(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    metrics = MetricsFile(path, 0)
    for step in (1, 2):
        metrics.append(row(step))
    metrics.fill_in(2, {"val_loss": 3.25, "val_error": 0.5})
    metrics.append(row(3, val_loss=2.0))
    assert [found["val_loss"] for found in read_metrics(path)] == ["", "3.25", "2.0"]


def test_no_file_means_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.csv") == []


def test_the_peak_memory_of_this_process_holds_what_it_has_allocated() -> None:
    block = torch.ones(64 * 2**20)  # 256 MiB
    assert 0.25 < peak_memory_gib(block.device) < 1024


def test_a_file_of_before_a_column_came_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    MetricsFile(path, 0).append(row(1))
    lines = path.read_text(encoding="utf-8").splitlines()
    column = lines[0].split(",").index("other_seconds")
    old = [",".join(cell for index, cell in enumerate(line.split(",")) if index != column) for line in lines]
    path.write_text("\n".join(old) + "\n", encoding="utf-8")
    MetricsFile(path, 1).append(row(2))
    assert [found["other_seconds"] for found in read_metrics(path)] == ["", "0.5"]
    assert [found["seconds"] for found in read_metrics(path)] == ["0.5", "0.5"]
