"""A real MLflow server that is killed, hangs and comes back, and W&B offline; without their packages skipped, in CI failed."""

import importlib.util
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from finetuning.config.run import Run, read_run
from finetuning.errors import InputError, RunError
from finetuning.launch import tracker_check
from finetuning.launch.prepare import prepare
from finetuning.launch.tracker_check import check_trackers
from finetuning.runtime.status import read_status
from finetuning.training import delivery
from finetuning.training.delivery import Trackers
from finetuning.training.metrics import read_metrics
from finetuning.training.parameters import git_revision, parameters_of
from finetuning.training.trackers import FINISHED, REQUEST_TIMEOUT_S, WandbTracker
from tests.commands import ROOT, Command, finetune, is_training, steps_done

pytestmark = pytest.mark.dist

MAX_STEPS, MORE_STEPS = 80, 84  # enough for a client to be imported meanwhile
DELETED = "the MLflow experiment gone was deleted there; restore it, or give another --experiment"
SILENT = "http://127.0.0.1:9 does not answer (Connection refused); WANDB_MODE=offline keeps the records here for `wandb sync`"


class Server:
    """`mlflow server` on loopback, with a database and files that outlive it."""

    def __init__(self, folder: Path):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--backend-store-uri",
            f"sqlite:///{self.folder}/runs.db",
            "--artifacts-destination",
            str(self.folder / "artifacts"),
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--workers",
            "1",
        ]
        with (self.folder / "server.log").open("ab") as log:
            environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        deadline = time.monotonic() + 120
        while True:
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "server.log").read_text()
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=5).close()
            except OSError:
                time.sleep(0.1)
            else:
                return

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait()

    def run(self, run_id: str) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.address).get_run(run_id)

    def steps(self, run_id: str) -> dict[int, float]:
        from mlflow import MlflowClient

        history = MlflowClient(self.address).get_metric_history(run_id, "train_loss")
        assert len({metric.step for metric in history}) == len(history)  # none twice
        return {metric.step: metric.value for metric in history}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    for package in ("mlflow", "wandb"):
        if importlib.util.find_spec(package) is None:
            message = f"needs {package}: make trackers"
            if os.environ.get("CI"):
                pytest.fail(message)
            pytest.skip(message)
    server = Server(tmp_path_factory.mktemp("mlflow"))
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


def start(folder: Path, model: Path, dataset: Path, server: Server, max_steps: int) -> Command:
    return finetune(
        folder,
        "--hf_model_id",
        str(model),
        "--dataset_path",
        str(dataset),
        "--num_gpus",
        "1",
        "--global_batch_size",
        "16",
        "--seq_length",
        "256",
        "--num_sample_answers",
        "0",
        "--save_every_n_steps",
        "20",
        "--val_check_interval",
        "30",
        "--experiment",
        "tracked",
        "--max_steps",
        str(max_steps),
        "--mlflow_tracking_uri",
        server.address,
        "--wandb_project",
        "tests",
        "--log_artifacts",
    )


def test_a_server_that_dies_changes_nothing_and_gets_everything_when_it_is_back(
    server: Server, folder: Path, tiny_model: Path, tiny_dataset: Path
) -> None:
    experiment = folder / "experiments" / "tracked"
    progress_file = experiment / "trackers" / "mlflow.json"

    # 1. Killed in the middle of the steps.
    command = start(folder, tiny_model, tiny_dataset, server, MAX_STEPS)
    command.wait_until(lambda: progress_file.exists() and is_training(experiment, 2))
    server.kill()
    killed_at = steps_done(experiment)
    assert killed_at < MAX_STEPS
    command.wait_until(lambda: is_training(experiment, killed_at + 3))
    code, output = command.finish()
    assert code == 0, output
    assert read_status(experiment)["state"] == "finished"
    times = [float(row["time"]) for row in read_metrics(experiment / "metrics.csv")]
    assert len(times) == MAX_STEPS
    assert max(after - before for before, after in pairwise(times)) < REQUEST_TIMEOUT_S
    name = f"MLflow ({server.address})"
    assert f"{name} takes no records (Connection refused); the training goes on" in output
    assert f"waiting up to 5 s for {name}" in output
    assert f"{name} has not got steps" in output and "the same command sends what is missing" in output
    run_id = json.loads(progress_file.read_text())["run_id"]

    # 2. The same command sends the rest, when there is somebody to send it to.
    server.start()
    code, output = start(folder, tiny_model, tiny_dataset, server, MAX_STEPS).finish()
    assert code == 0
    assert f"{name} has got what it missed" in output
    rows = read_metrics(experiment / "metrics.csv")
    assert server.steps(run_id) == {int(row["step"]): float(row["train_loss"]) for row in rows}
    run = server.run(run_id)
    assert (run.info.run_name, run.info.status) == ("tracked", "FINISHED")
    assert run.data.params["max_steps"] == str(MAX_STEPS)

    # 3. It trains on in the same runs.
    code, output = start(folder, tiny_model, tiny_dataset, server, MORE_STEPS).finish()
    assert code == 0, output
    assert json.loads(progress_file.read_text()) == {
        "address": server.address,
        "run_id": run_id,
        "delivered": MORE_STEPS,
        "ended": True,
    }
    assert sorted(server.steps(run_id)) == list(range(1, MORE_STEPS + 1))
    run = server.run(run_id)
    assert (run.info.status, run.data.tags["resumed.max_steps"]) == ("FINISHED", str(MORE_STEPS))


def test_runs_carry_settings_and_files(server: Server, folder: Path) -> None:
    """Of the experiment above."""
    from mlflow import MlflowClient

    experiment = folder / "experiments" / "tracked"
    run, run_id = read_run(experiment / "run.yaml"), json.loads((experiment / "trackers" / "mlflow.json").read_text())["run_id"]
    params = server.run(run_id).data.params
    assert params["data"] == run.identity["data"]
    assert params["global_batch_size"] == "16" and params["sharding"] == run.strategy.sharding
    assert params.keys() == parameters_of(run).keys()
    files = {file.path for file in MlflowClient(server.address).list_artifacts(run_id)}
    assert files == {"export", "metrics.csv", "report.html", "results"}


def test_wandb_has_every_step_of_the_one_run(server: Server, folder: Path) -> None:
    """Of the experiment above, in what its client wrote offline."""
    from wandb.proto import wandb_internal_pb2

    experiment = folder / "experiments" / "tracked"
    steps: list[int] = []
    names, ids, settings = set(), set(), set()
    for file in sorted(experiment.glob("wandb/offline-run-*/*.wandb")):
        for content in records_of(file):
            record = wandb_internal_pb2.Record.FromString(content)
            if record.HasField("run"):
                names.add(record.run.display_name)
                ids.add(record.run.run_id)
                settings |= {update.key for update in record.run.config.update}
            if record.HasField("history"):
                items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                steps.append(items["step"])
    assert (names, ids) == ({"tracked"}, {json.loads((experiment / "trackers" / "wandb.json").read_text())["run_id"]})
    assert steps == list(range(1, MORE_STEPS + 1))
    assert {"data", "global_batch_size", "sharding"} <= settings


def records_of(file: Path) -> list[bytes]:
    """The records of W&B's file, which is a log of LevelDB behind a header of 7 bytes: blocks of 32 KiB."""
    content, records, part, position = file.read_bytes(), [], b"", 7
    while position + 7 <= len(content):
        left = 2**15 - position % 2**15
        _, size, kind = struct.unpack_from("<IHB", content, position)
        if left < 7 or kind == 0:
            position += left
            continue
        part += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or the last part
            records.append(part)
            part = b""
    return records


@pytest.fixture
def other_run(server: Server, folder: Path, tmp_path: Path) -> Run:
    """Of an experiment of its own that has done what the one above has."""
    run = read_run(folder / "experiments" / "tracked" / "run.yaml")
    (tmp_path / "metrics.csv").write_bytes((folder / "experiments" / "tracked" / "metrics.csv").read_bytes())
    config = replace(run.config, experiment="other", wandb_project=None, log_artifacts=False)
    return replace(run, config=config, experiment_dir=str(tmp_path))


def test_a_server_that_hangs_is_told_the_rest_when_it_moves(
    server: Server, other_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(delivery, "FIRST_PAUSE_S", 0.1)
    said: list[str] = []
    trackers = Trackers(other_run, MORE_STEPS, said.append)
    server.signal(signal.SIGSTOP)
    trackers.start()
    try:
        deadline = time.monotonic() + 60
        while not said:
            trackers.wake()
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        server.signal(signal.SIGCONT)
    trackers.finish(FINISHED)
    assert "takes no records" in said[0]
    assert said[-1] == f"MLflow ({server.address}) takes records again; it has got steps 1 to {MORE_STEPS}"


def test_a_run_that_was_deleted_there_is_begun_anew(server: Server, other_run: Run) -> None:
    from mlflow import MlflowClient

    progress_file = Path(other_run.experiment_dir) / "trackers" / "mlflow.json"
    ids = []
    for _ in range(2):
        trackers = Trackers(other_run, MORE_STEPS, print)
        trackers.start()
        trackers.finish(FINISHED)
        ids.append(json.loads(progress_file.read_text())["run_id"])
        assert sorted(server.steps(ids[-1])) == list(range(1, MORE_STEPS + 1))
        MlflowClient(server.address).delete_run(ids[-1])
    assert len(set(ids)) == 2


def test_a_deleted_experiment_is_found_before_the_start(server: Server, other_run: Run) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(server.address)
    config = replace(other_run.config, experiment="gone")
    assert check_trackers(config) == []
    client.delete_experiment(client.create_experiment("gone"))
    assert check_trackers(config) == [f"--mlflow_tracking_uri {server.address}: {DELETED}"]


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"WANDB_MODE": "offline"}, None),
        ({"WANDB_MODE": "disabled"}, "--wandb_project tests: has no effect, as W&B is disabled (WANDB_MODE)"),
        ({"WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:9"}, f"--wandb_project tests: {SILENT}"),
        ({"WANDB_MODE": "online", "WANDB_BASE_URL": "the server"}, "does not let you in (No API key configured."),
    ],
)
def test_wandb_is_asked_before_the_start(
    server: Server,
    other_run: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    environment: dict[str, str],
    problem: str | None,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.replace("the server", server.address))
    problems = check_trackers(replace(other_run.config, mlflow_tracking_uri=None, wandb_project="tests"))
    assert len(problems) == (problem is not None)
    assert problem is None or problem in problems[0]


def test_parameters_are_flat_and_hold_no_shell_text(server: Server, other_run: Run) -> None:
    config = replace(other_run.config, setup="export X=hidden", environment="A=hidden", sbatch_options="--comment=hidden")
    found = parameters_of(replace(other_run, config=config))
    assert "hidden" not in str(found) and None not in found.values()
    assert all(isinstance(value, str | int | float | bool) for value in found.values())


def test_the_revision_is_that_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-qm", "First"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    monkeypatch.chdir(tmp_path)
    assert git_revision() == commit
    (tmp_path / "file").write_text("2")
    assert git_revision() == f"{commit}-dirty"
    monkeypatch.chdir("/")
    assert (git_revision() is None) == (not (ROOT / ".git").exists())


def test_an_address_that_does_not_answer_is_a_problem_beside_others(
    server: Server, other_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(other_run.config, mlflow_tracking_uri="http://127.0.0.1:9", dataset_path="nowhere")
    with pytest.raises(InputError) as caught:
        prepare(config, None, tmp_path / "experiment", tmp_path / "tokens", with_weights=False)
    silent, data = caught.value.problems
    assert silent == (
        "--mlflow_tracking_uri http://127.0.0.1:9: nothing answers there (Connection refused); start the server, correct the "
        "address, or leave the flag out"
    )
    assert "nowhere" in data
    monkeypatch.setattr(tracker_check, "CHECK_TIMEOUT_S", 0.01)
    assert check_trackers(other_run.config) == [f"--mlflow_tracking_uri {server.address}: no answer in 0 s"]


def test_a_database_file_needs_a_folder_and_is_not_made_by_the_check(server: Server, other_run: Run, tmp_path: Path) -> None:
    for folder, problems in ((tmp_path, 0), (tmp_path / "nowhere", 1)):
        address = f"sqlite:///{folder}/runs.db"
        found = check_trackers(replace(other_run.config, mlflow_tracking_uri=address))
        assert found == [f"--mlflow_tracking_uri {address}: cannot write to {folder}"] * problems
    assert not (tmp_path / "runs.db").exists()


def test_what_wandb_has_not_uploaded_is_named(server: Server, other_run: Run, tmp_path: Path) -> None:
    tracker = WandbTracker(other_run, "tests")
    tracker.open(None, 0)

    def too_slow(exit_code: int) -> None:
        raise TimeoutError

    finish, tracker.run.finish = tracker.run.finish, too_slow
    folder = Path(tracker.run.dir).parent
    for _ in range(2):  # trying again does not make it better
        with pytest.raises(RunError, match=f"its client has not uploaded everything; `wandb sync {folder}` does"):
            tracker.finish(FINISHED, [])
    finish()
