"""--early_stopping of whole runs: the same step in every layout and after a resume, and the best weights as the result."""

import json
from pathlib import Path

import pytest

from finetuning.runtime.status import read_status
from finetuning.training.metrics import read_metrics
from tests.commands import finetune

pytestmark = pytest.mark.dist


@pytest.fixture
def flags(tiny_model: Path, tiny_dataset: Path) -> list[str]:
    """A run whose weights get worse from the first step on: the learning rate is far too high."""
    pairs = {
        "--hf_model_id": tiny_model,
        "--dataset_path": tiny_dataset,
        "--global_batch_size": 4,
        "--seq_length": 256,
        "--lr": 0.3,
        "--warmup_steps": 0,
        "--val_check_interval": 1,
        "--num_sample_answers": 0,
        "--early_stopping": 2,
    }
    return [str(part) for pair in pairs.items() for part in pair]


def test_a_run_that_was_resumed_in_another_layout_stops_as_its_validations_say(flags: list[str], tmp_path: Path) -> None:
    def run(*more: str) -> str:
        code, output = finetune(tmp_path, *flags, "--experiment", "early", *more).finish()
        assert code == 0, output
        return output

    output = run("--num_gpus", "1", "--max_steps", "2", "--export", "last")
    folder = tmp_path / "experiments" / "early"
    assert json.loads((folder / "results" / "test.json").read_text("utf-8"))["step"] == 2
    assert "export · the weights of the last step, 2" in output
    assert "the best weights kept are of step 1: finetune export early@best" in output
    output = run("--num_gpus", "2", "--max_steps", "10")
    assert "export · the weights of step 1 of 3, whose validation loss was the lowest" in output
    rows = read_metrics(folder / "metrics.csv")
    losses = [float(row["val_loss"]) for row in rows]
    assert [int(row["step"]) for row in rows] == [1, 2, 3] and min(losses) == losses[0]
    assert all(float(row["val_error"]) > 0 for row in rows)
    assert "step 3: validation has not improved beyond its standard error since step 1" in output
    assert json.loads((folder / "results" / "test.json").read_text("utf-8"))["step"] == 1
    assert (read_status(folder)["step"], read_status(folder)["state"]) == (3, "finished")
    again = run("--num_gpus", "1", "--max_steps", "10")
    assert "has finished: 3 of 10 steps" in again and "larger --early_stopping" in again
