"""Workers on this machine: how they are started, what they get to know, and that they end with the launcher."""

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from finetuning.cli.main import main
from finetuning.launch.stop_requests import StopRequests
from finetuning.launch.torchrun import STOP_SIGNALS, kernel_cache, run_workers, torchrun_command, worker_environment
from finetuning.launch.workers import signal_workers
from finetuning.runtime.status import read_status
from tests.commands import Command, arguments, descendants, finetune, is_gone, is_training, steps_done

TOKEN = "hf_secret0123456789"
pytestmark = pytest.mark.timeout(600)

PATIENCE_S = 240.0  # importing torch takes seconds on idle cores, and these are not idle


@pytest.mark.unit
def test_torchrun_takes_a_free_port_of_the_loopback_and_restarts_nothing(tmp_path: Path) -> None:
    command = torchrun_command(tmp_path / "run.yaml", 4)
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    given = dict(zip(command[3:-3:2], command[4:-3:2], strict=True))
    assert given == {
        "--nnodes": "1",
        "--nproc_per_node": "4",
        "--rdzv_backend": "c10d",
        "--rdzv_endpoint": "localhost:0",
        "--local-addr": "127.0.0.1",
        "--max_restarts": "0",
    }
    assert command[-3:] == ["-m", "finetuning.train", str(tmp_path / "run.yaml")]


@pytest.mark.unit
def test_compiled_kernels_are_kept_where_nobody_else_can_put_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = kernel_cache()
    assert folder is not None
    assert folder.stat().st_mode & 0o777 == 0o700
    assert worker_environment(1)["FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"] == str(folder)
    folder.chmod(0o777)
    assert kernel_cache() is None
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert kernel_cache() is None
    assert "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED" not in worker_environment(1)


@pytest.mark.unit
def test_a_signal_for_workers_that_are_gone_is_no_error() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    signal_workers(child.pid, signal.SIGTERM)


@pytest.mark.dist
def test_workers_that_cannot_start_end_torchrun_with_an_error(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with (tmp_path / ".lock").open("a") as lock, StopRequests(STOP_SIGNALS, can_kill=True) as stop:
        ended = run_workers(tmp_path / "no-run.yaml", 1, tmp_path, lock.fileno(), stop, None)
    assert ended.code != 0
    assert "no-run.yaml" in (tmp_path / "torchrun.log").read_text(encoding="utf-8")
    assert signal.getsignal(signal.SIGINT) is before


@dataclass
class Running:
    """A command whose workers are training and would go on for days."""

    command: Command
    arguments: list[str]
    experiment: Path


@pytest.fixture(scope="module")
def running(tiny_model: Path, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("running")
    flags = [
        "--hf_model_id",
        str(tiny_model),
        "--dataset_path",
        str(tiny_dataset),
        "--num_gpus",
        "2",
        "--global_batch_size",
        "8",
        "--seq_length",
        "256",
        "--experiments_dir",
        str(folder / "experiments"),
        "--num_sample_answers",
        "0",
        "--save_every_n_steps",
        "1000",
        "--val_check_interval",
        "1000",
    ]
    experiment = folder / "experiments" / "busy"
    command = finetune(folder, *flags, "--experiment", "busy", "--max_steps", "1000000", "--hf_token", TOKEN)
    command.wait_until(lambda: is_training(experiment, after_step=0))
    yield Running(command, flags, experiment)
    command.kill_everything()


@pytest.mark.dist
def test_the_token_reaches_no_worker_no_process_list_and_no_file(running: Running) -> None:
    below = descendants(running.command.process.pid)
    assert len(below) >= 3  # torchrun and two workers
    for pid in below:
        assert TOKEN.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
    for pid in [running.command.process.pid, *below]:
        assert TOKEN not in " ".join(arguments(pid))
    files = [path for path in running.experiment.parent.parent.rglob("*") if path.is_file()]
    assert {"run.yaml", "status.json", "rank_0.log", "output.txt"} <= {path.name for path in files}
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []


@pytest.mark.dist
def test_the_same_experiment_cannot_run_twice_at_the_same_time(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_status(running.experiment)["launcher_pid"]
    assert main([*running.arguments, "--experiment", "busy", "--lang", "en"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "Nothing was started. 1 to fix:",
        f"  - experiment busy is running already (see {running.experiment}); wait for it, or give another --experiment name",
    ]
    assert read_status(running.experiment)["launcher_pid"] == before == running.command.process.pid


@pytest.mark.dist
def test_another_experiment_runs_at_the_same_time(running: Running, tmp_path: Path) -> None:
    code, output = finetune(tmp_path, *running.arguments, "--experiment", "other", "--max_steps", "1").finish()
    assert code == 0, output
    assert read_status(running.experiment.parent / "other")["state"] == "finished"
    assert is_training(running.experiment, after_step=0)


@pytest.mark.dist
def test_a_killed_launcher_leaves_no_worker_and_no_lock(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    below = descendants(running.command.process.pid)
    running.command.process.kill()
    running.command.process.wait()
    wait_until_gone(below)
    # Of the same experiment, as far as the check of its settings: it is not "running already".
    assert main([*running.arguments, "--experiment", "busy", "--warmup_steps", "9", "--max_steps", "9"]) == 2
    assert "--warmup_steps 9: must be less than the 9 steps" in capsys.readouterr().err


@pytest.mark.dist
def test_a_launcher_that_is_killed_before_the_workers_are_up_leaves_no_worker(running: Running, tmp_path: Path) -> None:
    command = finetune(tmp_path, *running.arguments, "--experiment", "early", "--max_steps", "1000000")
    command.wait_until(lambda: len(command.workers()) == 2)  # forked, and seconds away from their first line of ours
    below = descendants(command.process.pid)
    command.process.kill()
    command.process.wait()
    wait_until_gone(below, patience_s=5.0)  # not after their imports
    assert not (running.experiment.parent / "early" / "metrics.csv").exists()


SIGNAL_IN_THE_FIRST_UPDATE = """
import os, signal, sys
from pathlib import Path
from torch.optim import adam

def interrupted(*arguments, update=adam.adam, **settings):
    adam.adam = update
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except Exception as error:  # as DTensor does around much of an update
        raise RuntimeError("could not be updated") from error
    update(*arguments, **settings)

if os.environ["RANK"] == "1":
    adam.adam = interrupted
from finetuning.train import main
sys.exit(main(Path(sys.argv[1])))
"""


@pytest.mark.dist
def test_a_stop_that_reaches_one_rank_in_its_first_update_is_agreed_on_and_saved(running: Running, tmp_path: Path) -> None:
    flags = [*running.arguments, "--experiment", "warned", "--max_steps", "1000"]
    command = finetune(tmp_path, *flags)
    experiment = running.experiment.parent / "warned"
    command.wait_until((experiment / "run.yaml").exists)
    command.kill_everything()
    assert steps_done(experiment) == 0
    script = tmp_path / "signal_in_the_first_update.py"
    script.write_text(SIGNAL_IN_THE_FIRST_UPDATE)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    code, output = Command(tmp_path, *torchrun, str(script), str(experiment / "run.yaml")).finish()
    assert code == 0, output
    status = read_status(experiment)
    assert (status["state"], status["step"], status["saved"]) == ("stopped", 2, True)
    assert (experiment / "checkpoints" / "step=000002" / "checkpoint.json").is_file()


@pytest.mark.dist
def test_a_failing_run_shows_the_first_failing_rank_its_error_and_its_log(running: Running, tmp_path: Path) -> None:
    # Steps of 1e30 make the second loss infinite; both ranks stop together, before the weights are touched again.
    flags = [*running.arguments, "--experiment", "failing", "--max_steps", "4", "--lr", "1e30", "--warmup_steps", "0"]
    code, output = finetune(tmp_path, *flags).finish()
    experiment = running.experiment.parent / "failing"
    status = read_status(experiment)
    assert code == 1, output
    assert "step 2: the loss is " in status["reason"] and "Lower --lr" in status["reason"]
    assert (status["state"], status["exit_code"]) == ("failed", 1)
    assert f"failed: {status['reason']}" in output
    assert any(f"log: {experiment}/logs/rank_{rank}.log" in output for rank in (0, 1))
    assert "Traceback" not in output
    shutil.rmtree(experiment)


def wait_until_gone(pids: list[int], patience_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while alive := [pid for pid in pids if not is_gone(pid)]:
        assert time.monotonic() < deadline, f"still there: {[arguments(pid) for pid in alive]}"
        time.sleep(0.05)
