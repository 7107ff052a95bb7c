"""The command of the specification in a real layout of eight processes, killed, and gone on with in another one."""

import json
import os
import signal
from pathlib import Path

import pytest

from examples.make_tiny_model import make_tiny_model
from tests.commands import ROOT, Command, read_metrics

pytestmark = pytest.mark.dist

STEPS, KILLED_AFTER = 4, 2


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Four layers for four stages, four key/value heads."""
    make_tiny_model(
        tmp_path / "model",
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=48,
        vocab_size=512,
    )
    return tmp_path / "model"


def command(folder: Path, model: Path, dataset: Path, experiment: str, num_gpus: int, *flags: str) -> Command:
    folder.mkdir(exist_ok=True)
    return Command(
        folder,
        str(ROOT / "finetune.py"),
        "--executor",
        "local",
        "--experiment",
        experiment,
        "--num_nodes",
        "1",
        "--num_gpus",
        str(num_gpus),
        "--hf_model_id",
        str(model),
        "--max_steps",
        str(STEPS),
        "--global_batch_size",
        "8",
        "--dataset_path",
        str(dataset),
        "--seq_length",
        "512",
        "--lr",
        "1e-3",
        "--val_check_interval",
        "2",
        "--save_every_n_steps",
        "2",
        "--num_sample_answers",
        "1",
        "--max_new_tokens",
        "2",
        *flags,
    )


@pytest.mark.timeout(600)  # three launches, one of eight processes
@pytest.mark.parametrize("way", ["none", pytest.param("lora", marks=pytest.mark.slow)])
def test_a_run_of_eight_processes_is_killed_and_goes_on_in_another_layout(
    model: Path, tiny_dataset: Path, tmp_path: Path, way: str
) -> None:
    folder = tmp_path / "work"
    first = command(
        folder,
        model,
        tiny_dataset,
        "moved",
        8,
        "--peft",
        way,
        "--tensor_model_parallel_size",
        "2",
        "--pipeline_model_parallel_size",
        "2",
        "--context_parallel_size",
        "2",
        "--pipeline_schedule",
        "interleaved",
    )
    moved = folder / "experiments" / "moved"
    first.wait_until((moved / "checkpoints" / f"step={KILLED_AFTER:06d}").is_dir)
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()

    code, output = command(folder, model, tiny_dataset, "moved", 2, "--peft", way, "-C", "2").finish()
    assert code == 0, output
    assert "saved as TP 2 × CP 2 × PP 2, goes on as CP 2" in output
    code, output = command(folder, model, tiny_dataset, "plain", 1, "--peft", way).finish()
    assert code == 0, output

    rows, expected = (read_metrics(folder / "experiments" / name / "metrics.csv") for name in ("moved", "plain"))
    assert [int(row["step"]) for row in rows] == list(range(1, STEPS + 1))
    for column in ("train_loss", "val_loss"):
        losses, others = ([float(row[column]) for row in table if row[column]] for table in (rows, expected))
        assert losses == pytest.approx(others, rel=1e-5)  # float32, and AdamW's first steps
    tests = [json.loads((folder / "experiments" / name / "results" / "test.json").read_text()) for name in ("moved", "plain")]
    assert tests[0]["loss"] == pytest.approx(tests[1]["loss"], rel=1e-5)
    exported = {file.name for file in (moved / "export").iterdir()}
    assert ("adapter_model.safetensors" if way == "lora" else "model.safetensors") in exported
