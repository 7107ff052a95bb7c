"""`finetune list`, `status`, `logs` and `cancel` for a run on this machine; for Slurm jobs, see tests/slurm."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from finetuning.runtime.status import STOPPED, read_status, write_status
from tests.commands import ROOT, finetune, is_training, run_verb, verb

pytestmark = pytest.mark.timeout(600)


@pytest.mark.dist
def test_a_local_run_is_listed_shown_and_cancelled(tiny_model: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    command = finetune(
        tmp_path,
        "--hf_model_id",
        str(tiny_model),
        "--dataset_path",
        str(tiny_dataset),
        "--num_gpus",
        "1",
        "--experiment",
        "mine",
        "--global_batch_size",
        "8",
        "--seq_length",
        "256",
        "--max_steps",
        "1000000",
        "--num_sample_answers",
        "0",
        "--save_every_n_steps",
        "1000000",
        "--val_check_interval",
        "1000000",
    )
    experiment = tmp_path / "experiments" / "mine"
    command.wait_until(lambda: is_training(experiment, after_step=0))
    assert re.search(r"^mine +running +\d+/1000000 +local ", run_verb(tmp_path, "list"), re.MULTILINE)
    shown = run_verb(tmp_path, "status")
    assert re.search(r"^experiment +mine$", shown, re.MULTILINE)
    assert re.search(r"^state +running$", shown, re.MULTILINE)
    assert re.search(r"^now +in (step \d+|its first step, 1)$", shown, re.MULTILINE)
    assert re.search(r"^time +start \d+ s \(\d+%\)", shown, re.MULTILINE)
    assert json.loads(run_verb(tmp_path, "status", "mine", "--json"))["state"] == "running"
    assert "step 1/1000000" in run_verb(tmp_path, "logs", "mine")
    cancelled = run_verb(tmp_path, "cancel", "mine")
    assert re.search(
        r"^mine: stopped, newest checkpoint at step [1-9]\d*; the same command goes on from there$", cancelled, re.MULTILINE
    )
    code, output = command.finish()
    assert code == 75, output


@pytest.mark.unit
def test_an_experiment_that_does_not_exist_is_named_with_those_that_do(tmp_path: Path) -> None:
    (tmp_path / "experiments" / "a").mkdir(parents=True)
    write_status(tmp_path / "experiments" / "a", STOPPED, reason="asked to stop")
    code, output = verb(tmp_path, "status", "b")
    assert code == 2
    assert "no experiment b in experiments; there are: a (--experiments_dir)" in output
    code, output = verb(tmp_path, "cancel", "a")
    assert (code, "experiment a does not run: stopped asked to stop" in output) == (2, True)
    code, output = verb(tmp_path, "logs", "a")
    assert (code, "experiment a has no " in output) == (2, True)
    assert read_status(tmp_path / "experiments" / "a")["state"] == "stopped"


@pytest.mark.unit
def test_without_any_experiment_that_is_said(tmp_path: Path) -> None:
    assert run_verb(tmp_path, "list") == "no experiments in experiments\n"


@pytest.mark.unit
def test_the_verbs_that_only_look_load_no_torch(tmp_path: Path) -> None:
    code = "import sys; from finetuning.cli.list import main; main([]); sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=False).returncode == 0
