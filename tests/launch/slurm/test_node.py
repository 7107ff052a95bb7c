"""The part of a job that runs on each node, without Slurm around it; with it, see tests/slurm."""

import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from finetuning.checkpoint.files import INFO_FILE, checkpoint_name, find_checkpoints
from finetuning.config.run import Run, read_run, write_run
from finetuning.config.settings import RunConfig
from finetuning.config.strategy import Strategy
from finetuning.errors import EXIT_FAILED, EXIT_FINISHED, EXIT_INTERRUPTED, EXIT_STOPPED, RunError
from finetuning.launch.experiments import find_experiment, find_experiments
from finetuning.launch.outcome import decide_outcome, saved_step
from finetuning.launch.slurm.follow import Tail
from finetuning.launch.slurm.job_script import script_of
from finetuning.launch.slurm.node import wait_for_file
from finetuning.launch.slurm.submit import submit_job
from finetuning.runtime.failures import write_failure, write_killed
from finetuning.runtime.status import FAILED, FINISHED, RUNNING, STARTING, STOPPED, read_status, write_status

pytestmark = pytest.mark.unit


def test_a_file_that_a_node_cannot_see_is_waited_for_and_then_named(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        wait_for_file(tmp_path / "run.yaml", node=1, wait_s=0.05)
    assert str(caught.value).startswith(f"{tmp_path}/run.yaml cannot be seen on ")
    assert str(caught.value).endswith("the experiment folder must be on a file system that all nodes share (--experiments_dir)")
    (tmp_path / "run.yaml").touch()
    wait_for_file(tmp_path / "run.yaml", node=1, wait_s=0.05)


def test_a_job_that_starts_again_and_again_at_the_same_step_gives_up(tmp_path: Path) -> None:
    run_file = experiment(tmp_path)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "job-7.starts").write_text("0\n5\n5\n")
    checkpoint(tmp_path, step=5)
    environment = {**os.environ, "SLURM_NODEID": "0", "SLURM_JOB_ID": "7", "FINETUNE_NODES": "127.0.0.1", "LC_ALL": "C"}
    command = [sys.executable, "-m", "finetuning.launch.slurm", str(run_file)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == EXIT_FAILED
    message = "the job was started 3 times at step 5 without getting to a checkpoint; it is not started again"
    assert result.stderr.startswith(f"node 0: {message}")
    status = read_status(tmp_path)
    assert (status["state"], status["exit_code"]) == (FAILED, EXIT_FAILED)
    assert status["reason"].startswith(message)
    assert (tmp_path / "logs" / "job-7.outcome").read_text() == "failed\n"


def test_a_killed_rank_explains_the_end_better_than_the_ranks_that_lost_it(tmp_path: Path) -> None:
    write_status(tmp_path, RUNNING)
    logs = tmp_path / "logs"
    write_failure(logs, 0, RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:4711"), None)
    assert outcome(tmp_path).rank == 0
    write_failure(logs, 2, ValueError("its own mistake"), None)
    assert outcome(tmp_path).rank == 2
    write_killed(logs, 3, "SIGKILL")
    found = outcome(tmp_path)
    assert (found.state, found.exit_code, found.rank, found.log) == (FAILED, EXIT_FAILED, 3, logs / "rank_3.log")
    assert found.reason is not None and found.reason.startswith("its process was killed (SIGKILL) by somebody")


def test_the_end_of_a_run_follows_from_what_it_left(tmp_path: Path) -> None:
    write_status(tmp_path, RUNNING)
    assert outcome(tmp_path, unexplained="a node failed").reason == "a node failed"
    assert "a worker process was killed, or could not start" in str(outcome(tmp_path).reason)
    assert outcome(tmp_path, stop_asked=True).exit_code == EXIT_FAILED  # it had begun to train, and has not said that it saved
    assert outcome(tmp_path, killed=True).exit_code == EXIT_INTERRUPTED
    write_status(tmp_path, STARTING)
    assert outcome(tmp_path, stop_asked=True).exit_code == EXIT_STOPPED
    write_status(tmp_path, STOPPED, reason="asked to stop")
    assert outcome(tmp_path).exit_code == EXIT_STOPPED
    write_status(tmp_path, FAILED, reason="no progress")
    assert outcome(tmp_path, unexplained="a node failed").reason == "no progress"
    write_status(tmp_path, FINISHED)
    assert outcome(tmp_path, killed=True).exit_code == EXIT_FINISHED


def test_the_newest_checkpoint_is_the_one_that_a_run_goes_on_from_also_where_the_link_is_behind(tmp_path: Path) -> None:
    assert saved_step(tmp_path) == 0
    checkpoint(tmp_path, step=999_999)
    checkpoint(tmp_path, step=1_000_000)
    folder = tmp_path / "checkpoints"
    (folder / "latest").symlink_to("step=999999")
    (folder / "step=1000001").mkdir()
    assert saved_step(tmp_path) == 1_000_000 == find_checkpoints(folder)[0][-1].step
    assert outcome(tmp_path, killed=True).reason == "killed before it could save; the newest checkpoint is of step 1000000"


@pytest.mark.parametrize("umask", [0, 0o077])
def test_a_job_script_is_for_its_owner_alone(umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = read_run(experiment(tmp_path))
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 7\n")
    (tmp_path / "sbatch").chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    before = os.umask(umask)
    try:
        assert submit_job(run, "#!/bin/bash\n", 0, Console(file=io.StringIO())) == "7"
    finally:
        os.umask(before)
    assert stat.S_IMODE(script_of(tmp_path).stat().st_mode) == 0o600


def test_a_local_run_whose_launcher_is_gone_does_not_count_as_running(tmp_path: Path) -> None:
    folder = tmp_path / "lost"
    folder.mkdir()
    write_status(folder, RUNNING, launcher_pid=1, step=3, max_steps=9)
    found = find_experiment(tmp_path, "lost")
    assert (found.state, found.is_live, found.progress) == (FAILED, False, "3/9")
    assert found.reason == "its launcher died without saying why; run the same command again"
    assert [each.name for each in find_experiments(tmp_path)] == ["lost"]


def test_a_log_is_shown_line_by_line_also_when_it_comes_late(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tail = Tail(tmp_path / "log", sys.stdout)
    assert not tail.show()
    (tmp_path / "log").write_text("one\ntw", encoding="utf-8")
    assert tail.show()
    assert not tail.show()
    with (tmp_path / "log").open("a", encoding="utf-8") as file:
        file.write("o 三\n")
    assert tail.show()
    assert capsys.readouterr().out == "one\ntwo 三\n"


def outcome(folder: Path, **given: Any) -> Any:
    return decide_outcome(folder, log=folder / "logs" / "torchrun.log", **given)


def checkpoint(folder: Path, step: int) -> None:
    path = folder / "checkpoints" / checkpoint_name(step)
    path.mkdir(parents=True)
    (path / INFO_FILE).write_text(json.dumps({"step": step, "files": {}}))


def experiment(folder: Path) -> Path:
    config = RunConfig(hf_model_id="m", dataset_path="d", executor="slurm", num_gpus=1)
    run = Run(
        config=config,
        experiment_dir=str(folder),
        device="cpu",
        model_path="m",
        tokens_dir="t",
        sources={},
        max_steps=10,
        warmup_steps=0,
        val_check_interval=1,
        save_every_n_steps=1,
        end_token_ids=(1,),
        initial_weights=None,
        identity={},
        strategy=Strategy(sharding="full", optimizer_states="fp32"),
    )
    write_run(run, folder / "run.yaml")
    return folder / "run.yaml"
