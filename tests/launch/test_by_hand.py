"""Several machines without Slurm: the printed lines, pasted on each machine, are the run. The machines are this one, twice."""

import re
import shlex
import socket
import subprocess
from pathlib import Path

import pytest

from finetuning.runtime.status import read_status
from tests.commands import finetune

pytestmark = [pytest.mark.dist, pytest.mark.timeout(600)]


def test_the_lines_for_two_machines_train_to_a_finished_model(tiny_model: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    flags = [
        "--hf_model_id",
        str(tiny_model),
        "--dataset_path",
        str(tiny_dataset),
        "--num_nodes",
        "2",
        "--num_gpus",
        "1",
        "--global_batch_size",
        "8",
        "--seq_length",
        "256",
        "--experiments_dir",
        str(tmp_path / "experiments"),
        "--experiment",
        "by_hand",
        "--max_steps",
        "1",
        "--num_sample_answers",
        "0",
    ]
    code, dry = finetune(tmp_path, *flags, "--dryrun").finish()
    assert code == 0, dry
    assert not (tmp_path / "experiments").exists()
    code, output = finetune(tmp_path, *flags).finish()
    assert code == 0, output
    lines = machine_lines(output)
    assert lines == machine_lines(dry)
    assert ["--node_rank 0" in lines[0], "--node_rank 1" in lines[1]] == [True, True]
    experiment = tmp_path / "experiments" / "by_hand"
    assert read_status(experiment)["reason"] == "to be started by hand on each machine"

    port = free_port()
    commands = [shlex.split(re.sub(r"--master_port \d+", f"--master_port {port}", line)) for line in lines]
    with (tmp_path / "torchrun.log").open("w") as log:
        machines = [subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path) for command in commands]
        assert [machine.wait() for machine in machines] == [0, 0], (tmp_path / "torchrun.log").read_text()
    assert read_status(experiment)["state"] == "finished"
    assert (experiment / "export" / "model.safetensors").is_file()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def machine_lines(output: str) -> list[str]:
    lines = [line for line in output.splitlines() if line.startswith("env PYTHONPATH=")]
    assert len(lines) == 2, output
    return lines
