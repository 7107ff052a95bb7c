"""`finetune list`, `status`, `logs` and `cancel` for a run on this machine; for Slurm jobs, see tests/slurm."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from finetuning.cli import cancel, logs, status
from finetuning.errors import InputError
from finetuning.runtime.status import STOPPED, read_status, write_status
from tests.commands import ROOT, finetune, is_training, run_verb

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
def test_an_experiment_that_does_not_exist_is_named_with_those_that_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "experiments" / "a").mkdir(parents=True)
    write_status(tmp_path / "experiments" / "a", STOPPED, reason="asked to stop")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no experiment b in experiments; there are: a \(--experiments_dir\)"):
        status.main(["b"])
    with pytest.raises(InputError, match="experiment a does not run: stopped asked to stop"):
        cancel.main(["a"])
    with pytest.raises(InputError, match="experiment a has no "):
        logs.main(["a"])
    assert read_status(tmp_path / "experiments" / "a")["state"] == "stopped"


@pytest.mark.unit
def test_without_any_experiment_that_is_said_and_no_torch_is_loaded(tmp_path: Path) -> None:
    code = "import sys; from finetuning.cli.list import main; main([]); sys.exit('torch' in sys.modules)"
    command, environment = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "no experiments in experiments\n")
