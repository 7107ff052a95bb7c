"""What is said when Slurm's commands are missing, refuse or do not answer. The commands are scripts; real ones: tests/slurm."""

import os
from pathlib import Path

import pytest

from finetuning.cli import cancel
from finetuning.cli.train import launch
from finetuning.config.settings import RunConfig
from finetuning.errors import EXIT_FAILED, EXIT_STOPPED, InputError
from finetuning.launch.slurm import cluster
from finetuning.launch.slurm.job import (
    FORGOTTEN,
    UNREACHABLE,
    JobState,
    is_live,
    job_environment,
    job_state,
    secret_variables,
    submit,
)
from finetuning.launch.slurm.submit import outcome_of_job, plan_for, refuse_live_job
from finetuning.runtime.status import QUEUED, RUNNING, STOPPED, read_status, write_status

pytestmark = pytest.mark.unit


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that comes first on the PATH, without any command of Slurm behind it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    real = cluster.shutil.which
    monkeypatch.setattr(cluster.shutil, "which", lambda name: real(name, path=str(folder)))
    return folder


def command(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)


def test_a_machine_without_slurm_is_told_where_the_command_belongs(commands: Path) -> None:
    (problem,) = plan_for(RunConfig(hf_model_id="m", dataset_path="d", executor="slurm")).problems
    assert problem == (
        "--executor slurm: there is no sbatch on this machine; run the command on a login node of the cluster, or with "
        "--executor local"
    )


def test_a_controller_that_cannot_be_reached_is_reported_in_slurm_s_words(commands: Path) -> None:
    command(commands, "sbatch", "true")
    command(commands, "scontrol", "echo 'slurm_load_ctl_conf error: Unable to contact slurm controller' >&2; exit 1")
    assert plan_for(RunConfig(hf_model_id="m", dataset_path="d", executor="slurm")).problems == [
        "Slurm: scontrol: slurm_load_ctl_conf error: Unable to contact slurm controller"
    ]


def test_a_command_that_does_not_answer_is_not_waited_for_without_end(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "COMMAND_TIMEOUT_S", 0.1)
    command(commands, "sinfo", "exec sleep 60")
    with pytest.raises(InputError) as caught:
        cluster.ask("sinfo", "-h")
    assert str(caught.value) == "Slurm does not answer: sinfo -h took more than 0.1 s"


def test_a_missing_command_is_named(commands: Path) -> None:
    with pytest.raises(InputError) as caught:
        cluster.ask("no-such-command")
    assert str(caught.value) == "Slurm's command no-such-command is not on this machine"


def test_a_job_that_slurm_refuses_is_reported_with_its_reason_and_the_script(commands: Path) -> None:
    command(commands, "sbatch", "echo 'sbatch: error: Batch job submission failed: Invalid qos specification' >&2; exit 1")
    with pytest.raises(InputError) as caught:
        submit(Path("job.sbatch"))
    assert (
        str(caught.value)
        == "Slurm refused the job: Batch job submission failed: Invalid qos specification (script: job.sbatch)"
    )


def test_sbatch_gets_no_secret_and_no_trace_of_another_allocation(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    monkeypatch.setenv("WANDB_API_KEY", "canary")
    monkeypatch.setenv("SLURM_NTASKS", "7")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    command(commands, "sbatch", f"env >{commands}/environment; echo '42;cluster'")
    assert submit(Path("job.sbatch")) == "42"
    seen = (commands / "environment").read_text()
    assert "canary" not in seen and "SLURM_NTASKS" not in seen
    assert "SLURM_CONF=/etc/slurm.conf" in seen
    assert job_environment()["PATH"] == os.environ["PATH"]
    assert secret_variables() == ["WANDB_API_KEY"]  # nothing needs the hub's token


def test_a_job_is_not_taken_for_ended_while_the_controller_is_silent(commands: Path) -> None:
    command(commands, "scontrol", "echo 'Unable to contact slurm controller' >&2; exit 1")
    assert job_state("7") == UNREACHABLE
    assert is_live("7")


def test_a_job_that_the_controller_has_forgotten_is_looked_up_in_the_accounting(commands: Path) -> None:
    command(commands, "scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert job_state("7") == FORGOTTEN
    command(commands, "sacct", "echo 'CANCELLED by 0|node[1-2]'")
    assert job_state("7") == JobState("CANCELLED", nodes="node[1-2]")
    command(commands, "sacct", "true")
    assert job_state("7") == FORGOTTEN
    assert not is_live("7")


def test_an_experiment_whose_job_lives_cannot_be_started_again(commands: Path, tmp_path: Path) -> None:
    command(commands, "scontrol", "echo 'JobId=7 JobState=PENDING Reason=Priority NodeList= Restarts=0'")
    write_status(tmp_path, QUEUED, job_id="7")
    with pytest.raises(InputError) as caught:
        refuse_live_job(tmp_path, "mine")
    assert str(caught.value).startswith("experiment mine is job 7 already; see it with `finetune logs mine`")
    write_status(tmp_path, STOPPED)
    refuse_live_job(tmp_path, "mine")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("TIMEOUT", "job 7 reached its time limit before it had saved; give a larger --save_time_s"),
        ("OUT_OF_MEMORY", "job 7 used more memory of the node than it had asked for; give more --mem"),
        ("CANCELLED", "job 7 was cancelled before it could save; no checkpoint yet"),
        ("NODE_FAIL", "a node of job 7 failed"),
        ("PREEMPTED", "job 7 had to give way to another before it had saved"),
        ("BOOT_FAIL", "job 7 ended as BOOT_FAIL without saying why"),
    ],
)
def test_an_end_that_no_process_could_explain_is_explained_by_slurm_s_word(tmp_path: Path, state: str, message: str) -> None:
    write_status(tmp_path, RUNNING)
    outcome = outcome_of_job(tmp_path, "7", JobState(state))
    assert (outcome.exit_code, outcome.reason) == (EXIT_FAILED, message)


def test_a_job_that_was_cancelled_while_it_waited_has_lost_nothing(tmp_path: Path) -> None:
    write_status(tmp_path, QUEUED)
    assert outcome_of_job(tmp_path, "7", JobState("CANCELLED")).exit_code == EXIT_STOPPED


def test_the_token_in_a_setting_is_refused_before_it_comes_into_a_file(tmp_path: Path) -> None:
    config = RunConfig(
        hf_model_id="m", dataset_path="d", executor="slurm", setup="export X=hf_canary1", experiments_dir=str(tmp_path)
    )
    with pytest.raises(InputError) as caught:
        launch(config, "hf_canary1", dryrun=False)
    assert str(caught.value) == "--setup holds the Hugging Face token; it must not come into a file. Jobs need no token"
    assert list(tmp_path.iterdir()) == []


def test_detach_without_slurm_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        launch(RunConfig(hf_model_id="m", dataset_path="d"), None, dryrun=False, detach=True)
    assert str(caught.value) == "--detach has no effect without --executor slurm"


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"launcher_pid": None}, "experiment mine was started by hand; end it where its torchrun runs"),
        ({"launcher_pid": 1, "host": "far"}, "experiment mine runs on far; cancel it there"),
    ],
)
def test_a_run_that_cannot_be_reached_from_here_is_not_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, facts: dict[str, object], message: str
) -> None:
    (tmp_path / "mine").mkdir()
    write_status(tmp_path / "mine", RUNNING, **facts)
    monkeypatch.setattr("finetuning.launch.experiments.is_locked", lambda folder: True)
    with pytest.raises(InputError) as caught:
        cancel.main(["mine", "--experiments_dir", str(tmp_path)])
    assert str(caught.value) == message
    assert read_status(tmp_path / "mine")["state"] == RUNNING
