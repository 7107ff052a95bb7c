"""Whole runs on a disk that fills up, with data that change, tokens that shrink and a folder that goes: what is said, and then.

(Killed at any moment: tests/test_finetune_end_to_end.py.)
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finetuning.checkpoint.files import find_checkpoints
from finetuning.errors import EXIT_FAILED, EXIT_FINISHED
from finetuning.runtime.status import FAILED, FINISHED, read_status
from finetuning.training.metrics import read_metrics
from tests.commands import Command, finetune, is_training
from tests.disks import fill, mount, unmount

pytestmark = pytest.mark.dist

Start = Callable[..., Command]


@pytest.fixture
def data(tiny_dataset: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_dataset, tmp_path / "data")


@pytest.fixture
def start(tiny_model: Path, data: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts a run of two processes and twelve steps, with changed flags, and ends what is left of it."""
    started = []

    def begin(**flags: str) -> Command:
        given = {
            "hf_model_id": str(tiny_model),
            "dataset_path": str(data),
            "num_gpus": "2",
            "global_batch_size": "8",
            "seq_length": "512",
            "experiments_dir": str(tmp_path / "experiments"),
            "experiment": "tiny",
            "max_steps": "12",
            "num_sample_answers": "2",
            "max_new_tokens": "4",
            "val_check_interval": "100",
        } | flags
        started.append(finetune(tmp_path, *(part for name, value in given.items() for part in (f"--{name}", value))))
        return started[-1]

    yield begin
    for command in started:
        if command.process.poll() is None:
            command.kill_everything()


def test_a_disk_that_fills_up_ends_in_one_sentence_and_goes_on_when_there_is_room(start: Start, tmp_path: Path) -> None:
    disk = tmp_path / "experiments"
    mount(disk, "60m")
    try:
        experiment = disk / "tiny"
        command = start(save_every_n_steps="2")
        command.wait_until((experiment / "checkpoints" / "latest").is_symlink)
        filler = fill(disk)
        code, output = command.finish()
        assert code == EXIT_FAILED, output
        sentence = "no room left (No space left on device; 0.0 GiB are free). Make room there, then run the same command again"
        assert output.count(f"failed: {experiment}") == output.count(sentence) == 1, output
        assert "Traceback" not in output, output
        status = read_status(experiment)
        assert status["state"] == FAILED and sentence in status["reason"]
        assert not list(experiment.rglob(".incomplete-*"))
        saved = find_checkpoints(experiment / "checkpoints")[0][-1].step
        filler.unlink()
        code, output = start(save_every_n_steps="2").finish()
        assert code == EXIT_FINISHED, output
        assert f"resuming tiny at step {saved} of 12" in output
        assert read_status(experiment)["state"] == FINISHED
        assert [int(row["step"]) for row in read_metrics(experiment / "metrics.csv")] == list(range(1, 13))
    finally:
        unmount(disk)


def test_data_that_change_and_tokens_that_shrink_under_a_run(start: Start, data: Path, tmp_path: Path) -> None:
    experiment = tmp_path / "experiments" / "tiny"
    before = [json.loads(line) for line in (data / "test.jsonl").read_text(encoding="utf-8").splitlines()][:2]
    command = start(max_steps="30", save_every_n_steps="100")
    command.wait_until(lambda: is_training(experiment, 0))
    kept = {file: file.read_bytes() for file in data.iterdir()}
    for file in kept:
        file.write_text("".join(reversed(file.read_text(encoding="utf-8").splitlines(keepends=True))), encoding="utf-8")
    code, output = command.finish()
    assert code == EXIT_FINISHED, output
    for name in ("answers_before.jsonl", "predictions.jsonl"):
        answers = [json.loads(line) for line in (experiment / "results" / name).read_text(encoding="utf-8").splitlines()]
        assert [(answer["input"], answer["label"]) for answer in answers] == [(r["input"], r["output"]) for r in before]
    for file, content in kept.items():
        file.write_bytes(content)
    command = start(max_steps="3000", experiment="other", save_every_n_steps="0")
    command.wait_until(lambda: is_training(experiment.with_name("other"), 0))
    for file in (tmp_path / "experiments" / ".tokens").rglob("t*.bin"):
        os.truncate(file, 0)
    code, output = command.finish()
    assert code == EXIT_FAILED, output
    assert "became shorter while it was read" in output and "from outside" not in output, output
    code, output = start(max_steps="2", experiment="other", save_every_n_steps="0").finish()
    assert code == EXIT_FINISHED, output
    assert "the tokens of before were damaged" in output


def test_an_experiment_that_is_removed_under_its_run_is_said_and_stays_removed(start: Start, tmp_path: Path) -> None:
    experiment = tmp_path / "experiments" / "tiny"
    command = start(max_steps="3000", save_every_n_steps="0")
    command.wait_until(lambda: is_training(experiment, 0))
    while experiment.exists():  # a file that the run writes meanwhile keeps its folder
        shutil.rmtree(experiment, ignore_errors=True)
    code, output = command.finish()
    assert code == EXIT_FAILED, output
    assert f"{experiment}: the experiment's folder was removed" in output and "Traceback" not in output, output
    assert not experiment.exists()
