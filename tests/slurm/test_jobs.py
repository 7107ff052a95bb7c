"""Jobs on a real Slurm: finished, interrupted, cancelled, killed, two at once, and what they leave behind."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finetuning.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_FINISHED, EXIT_STOPPED
from finetuning.launch.slurm.cluster import read_cluster
from finetuning.launch.slurm.job import job_state

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

ROOT = Path(__file__).parent.parent.parent
WAIT_S = 240
TOKEN = "hf_canary0123456789canary"


@pytest.fixture(scope="module")
def place(slurm: Path, tiny_model: Path, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> "Place":
    return Place(slurm, tiny_model, tiny_dataset, tmp_path_factory.mktemp("experiments"))


class Place:
    """The cluster, a tiny model, its data and a folder for experiments."""

    def __init__(self, slurm: Path, model: Path, dataset: Path, experiments: Path):
        self.slurm, self.model, self.dataset, self.experiments = slurm, model, dataset, experiments

    def train(self, name: str, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
        """Starts `python finetune.py --executor slurm …`; a flag given later wins."""
        command = [
            sys.executable,
            "finetune.py",
            "--executor",
            "slurm",
            "--experiment",
            name,
            "--hf_model_id",
            str(self.model),
            "--dataset_path",
            str(self.dataset),
            "--experiments_dir",
            str(self.experiments),
            "--global_batch_size",
            "8",
            "--seq_length",
            "512",
            "--num_sample_answers",
            "0",
            "--lr",
            "1e-3",
            "--num_gpus",
            "1",
            *arguments,
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8", **variables}
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
        )

    def finetune(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Runs `finetune VERB …`."""
        code = "import sys; from finetuning.cli.main import console; sys.argv[0] = 'finetune'; console()"
        command = [sys.executable, "-c", code, *arguments, "--experiments_dir", str(self.experiments)]
        return subprocess.run(
            command, cwd=ROOT, env={**os.environ, "LC_ALL": "C.UTF-8"}, text=True, capture_output=True, check=False
        )

    def status(self, name: str) -> dict[str, object]:
        file = self.experiments / name / "status.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def wait(self, name: str, condition: Callable[[dict[str, object]], bool]) -> dict[str, object]:
        """Waits until status.json says so."""
        deadline = time.monotonic() + WAIT_S
        while not condition(status := self.status(name)):
            assert time.monotonic() < deadline, status
            time.sleep(0.2)
        return status

    def wait_for_step(self, name: str, step: int) -> str:
        """Waits until this step is done, and returns the job's id."""
        return str(self.wait(name, lambda status: is_training(status) and int(str(status["step"])) >= step)["job_id"])

    def metrics(self, name: str) -> list[tuple[str, ...]]:
        with (self.experiments / name / "metrics.csv").open(encoding="utf-8") as file:
            return [tuple(row[key] for key in ("step", "train_loss", "val_loss", "grad_norm")) for row in csv.DictReader(file)]


@pytest.fixture(autouse=True)
def _no_process_is_left(place: Place) -> Iterator[None]:
    yield
    deadline = time.monotonic() + 120
    while left := [pid for pid, command in processes() if str(place.experiments).encode() in command]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def test_two_nodes_train_to_a_finished_model_and_the_token_is_written_nowhere(place: Place) -> None:
    launcher = place.train(
        "finished",
        *["-N", "2", "--num_gpus", "2", "--max_steps", "3", "--save_every_n_steps", "2", "--hf_token"],
        TOKEN,
        WANDB_API_KEY=TOKEN,
    )
    while TOKEN.encode() in Path(f"/proc/{launcher.pid}/cmdline").read_bytes():
        time.sleep(0.01)  # it starts itself again without the token
    watch = TokenWatch([place.slurm])
    output = launcher.communicate()[0]
    assert launcher.returncode == EXIT_FINISHED, output
    assert watch.stop() == []
    assert "step 3/3" in output
    assert "WANDB_API_KEY is not passed to the job" in output
    assert (place.experiments / "finished" / "export" / "model.safetensors").is_file()
    assert [row[0] for row in place.metrics("finished")] == ["1", "2", "3"]
    assert {file.name for file in (place.experiments / "finished" / "logs").glob("rank_?.log")} == {
        f"rank_{rank}.log" for rank in range(4)
    }
    status = place.status("finished")
    assert (status["state"], status["exit_code"]) == ("finished", 0)
    assert TOKEN not in output
    assert files_with(TOKEN, place.experiments) == []


def test_two_jobs_at_once_and_the_warned_one_saves_requeues_itself_and_reaches_the_same_losses(place: Place) -> None:
    arguments = ["-N", "2", "--max_steps", "20", "--save_every_n_steps", "1", "--val_check_interval", "5"]
    launchers = {name: place.train(name, *arguments) for name in ("whole", "warned")}
    job_id = place.wait_for_step("warned", 1)
    subprocess.run(["scancel", "--signal=USR1", job_id], check=True)  # what Slurm sends before the time limit
    outputs = {name: launcher.communicate()[0] for name, launcher in launchers.items()}
    assert [launcher.returncode for launcher in launchers.values()] == [EXIT_FINISHED] * 2, outputs
    assert "time limit: saved at step" in outputs["warned"]
    assert place.status("warned")["restarts"] == 1
    assert place.status("whole")["restarts"] == 0
    assert len(place.metrics("whole")) == 20
    assert place.metrics("warned") == place.metrics("whole")  # to the last bit: gloo adds two ranks in one order


def test_a_job_that_scancel_ends_has_saved_and_its_launcher_says_so(place: Place) -> None:
    launcher = place.train("cancelled", *["-N", "2", "--max_steps", "100000", "--save_every_n_steps", "100000"])
    job_id = place.wait_for_step("cancelled", 1)
    subprocess.run(["scancel", job_id], check=True)
    output = launcher.communicate()[0]
    assert launcher.returncode == EXIT_STOPPED, output
    assert re.search(r"saved at step \d+ of 100000; run the same command to go on", output)
    status = place.status("cancelled")
    assert (status["state"], status["exit_code"]) == ("stopped", EXIT_STOPPED)
    assert (place.experiments / "cancelled" / "checkpoints" / "latest" / "checkpoint.json").is_file()
    assert job_state(job_id).name == "CANCELLED"


def test_a_rank_that_is_killed_ends_the_job_and_is_the_one_that_is_named(place: Place) -> None:
    launcher = place.train("killed", *["-N", "2", "--max_steps", "100000", "--save_every_n_steps", "100000"])
    job_id = place.wait_for_step("killed", 1)
    # The last but not the first rank: rank 0 sees the loss of its partner long before anybody sees the kill.
    os.kill(worker(place, "killed", rank=1), signal.SIGKILL)
    output = launcher.communicate()[0]
    assert launcher.returncode == EXIT_FAILED, output
    assert "Rank 1 failed: its process was killed (SIGKILL)" in output
    assert "logs/rank_1.log" in output
    assert place.status("killed")["state"] == "failed"
    assert job_state(job_id).name == "FAILED"


def test_a_rank_that_hangs_ends_the_job_with_the_stacks_of_all_nodes(place: Place) -> None:
    arguments = ["-N", "2", "--max_steps", "100000", "--save_every_n_steps", "100000", "--stall_timeout_s", "20"]
    launcher = place.train("hung", *arguments)
    job_id = place.wait_for_step("hung", 4)
    os.kill(worker(place, "hung", rank=1), signal.SIGSTOP)
    output = launcher.communicate()[0]
    assert launcher.returncode == EXIT_FAILED, output
    assert "the run hung and was ended. No step for " in output
    for rank in (0, 1):
        log = (place.experiments / "hung" / "logs" / f"rank_{rank}.log").read_text(encoding="utf-8", errors="replace")
        assert "(most recent call first):" in log
    status = place.status("hung")
    assert (status["state"], status["exit_code"]) == ("failed", EXIT_FAILED)
    state = job_state(job_id)
    assert (state.name, state.restarts) == ("FAILED", 0)


def test_a_job_that_is_cancelled_while_it_saves_for_its_time_limit_is_not_requeued(place: Place) -> None:
    launcher = place.train("both", *["--max_steps", "100000", "--save_every_n_steps", "100000"])
    job_id = place.wait_for_step("both", 1)
    frozen = worker(place, "both", rank=0)
    os.kill(frozen, signal.SIGSTOP)
    log = place.experiments / "both" / "logs" / f"slurm-{job_id}.out"
    for name, told in (("USR1", "saving; finetune cancel --now both kills it"), ("INT", "still in step ")):
        subprocess.run(["scancel", f"--signal={name}", job_id], check=True)
        place.wait("both", lambda status, told=told: told in log.read_text(encoding="utf-8"))
    os.kill(frozen, signal.SIGCONT)
    output = launcher.communicate()[0]
    assert launcher.returncode == EXIT_STOPPED, output
    assert re.search(r"saved at step \d+ of 100000; run the same command to go on", output)
    assert place.status("both")["state"] == "stopped"
    assert job_state(job_id).restarts == 0


def worker(place: Place, name: str, rank: int) -> int:
    """The process id of a rank."""
    (pid,) = [
        pid
        for pid, command in processes()
        if b"finetuning.train" in command
        and b"torch.distributed" not in command
        and f"{place.experiments}/{name}/run.yaml".encode() in command
        and f"\0RANK={rank}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    ]
    return pid


def test_a_node_that_cannot_start_fails_the_job_which_is_not_requeued(place: Place, tmp_path: Path) -> None:
    python = tmp_path / "python"
    # srun may drop what a task says within a moment of its end, when that end makes it kill the other tasks.
    fails = 'echo "no Python here" && sleep 1 && exit 3'
    python.write_text(f'#!/bin/bash\n[ "$SLURM_NODEID" = 1 ] && {fails}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    launcher = place.train("half", "-N", "2", "--max_steps", "1", "--python", str(python))
    output = launcher.communicate()[0]
    assert launcher.returncode == EXIT_FAILED, output
    assert "no Python here" in output
    state = job_state(str(place.status("half")["job_id"]))
    assert (state.name, state.restarts) == ("FAILED", 0)


def test_a_job_that_is_warned_before_its_first_step_is_not_requeued(place: Place) -> None:
    launcher = place.train("early", *["--max_steps", "100000", "--save_every_n_steps", "100000"])
    job_id = str(place.wait("early", lambda status: status.get("state") == "starting")["job_id"])
    subprocess.run(["scancel", "--signal=USR1", job_id], check=True)
    output = launcher.communicate()[0]
    assert launcher.returncode == EXIT_FAILED, output
    assert "nothing new was saved since step 0, so the job does not go on by itself" in output
    assert job_state(job_id).restarts == 0


def test_apptainer_is_given_the_folders_and_the_command(place: Place, tmp_path: Path) -> None:
    # A stand-in for Apptainer, which Debian does not have: it takes the documented options and runs the command as it is.
    stand_in = tmp_path / "apptainer"
    stand_in.write_text(f'#!/bin/bash\necho "$@" >{tmp_path}/arguments\nshift 6\nexec "$@"\n')
    stand_in.chmod(0o755)
    arguments = ["--max_steps", "1", "--container_image", "/images/nemo.sif", "--python", sys.executable]
    launcher = place.train("contained", *arguments, PATH=f"{tmp_path}:{os.environ['PATH']}")
    output = launcher.communicate()[0]
    assert launcher.returncode == EXIT_FINISHED, output
    assert "container /images/nemo.sif through apptainer" in output
    given = (tmp_path / "arguments").read_text().split()
    folder = place.experiments / "contained"
    assert given[:2] == ["exec", "--bind"]
    assert {f"{path}:{path}" for path in (ROOT, folder, place.model, place.dataset)} <= set(given[2].split(","))
    assert given[3:6] == ["--pwd", str(folder), "/images/nemo.sif"]
    assert given[6:] == [
        "env",
        f"PYTHONPATH={ROOT}",
        "PYTHONUNBUFFERED=1",
        "PYTHONNOUSERSITE=1",
        sys.executable,
        "-m",
        "finetuning.launch.slurm",
        f"{folder}/run.yaml",
    ]


def test_what_the_cluster_would_refuse_is_found_before_anything_is_submitted(place: Place) -> None:
    launcher = place.train(
        "refused", *["-p", "night", "-N", "3", "--time", "soon", "--environment", "9=x", "--container_image", "mine:1"]
    )
    output = launcher.communicate()[0]
    assert launcher.returncode == EXIT_BAD_INPUT
    assert "--partition night: the cluster has no such partition; it has main, gpu" in output
    assert "--time soon: not a time limit of Slurm" in output
    assert "--environment: '9' is not NAME=VALUE" in output
    assert "--container_image mine:1: srun has no Pyxis and this machine no Apptainer" in output
    assert not (place.experiments / "refused").exists()


def test_a_dry_run_for_gpu_nodes_prints_a_script_that_slurm_accepts(place: Place, tmp_path: Path) -> None:
    given = "--comment='a b; \"c\" #d' --mail-type END"
    launcher = place.train("planned", *["-p", "gpu", "-G", "8", "--time", "8:00:00", f"--sbatch_options={given}", "--dryrun"])
    output = launcher.communicate()[0]
    assert launcher.returncode == EXIT_FINISHED, output
    assert "device: cuda" in output
    assert re.search(r"^memory +about \d+ GiB of each GPU's 79 GiB \(Slurm's name of the GPUs: h100\)$", output, re.MULTILINE)
    script = tmp_path / "job.sbatch"
    script.write_text("#!/bin/bash" + output.partition("#!/bin/bash")[2])
    options = re.findall(r"^#SBATCH (.*)$", script.read_text(), re.MULTILINE)
    assert {"--partition=gpu", "--gpus-per-node=8", "--cpus-per-task=32", "--mem=0", "--time=8:00:00"} <= set(options)
    assert {"'--comment=a b; \"c\" #d'", "--mail-type=END"} <= set(options)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    test = subprocess.run(["sbatch", "--test-only", script], capture_output=True, text=True, check=False)
    assert test.returncode == 0, test.stderr
    assert not (place.experiments / "planned").exists()


def test_a_node_whose_gpus_cannot_be_used_is_named(place: Place) -> None:
    launcher = place.train("blind", "-p", "gpu", "--max_steps", "1")
    output = launcher.communicate()[0]
    assert launcher.returncode == EXIT_FAILED, output
    assert re.search(r"Rank 0 failed: \S+ has 0 usable GPUs, and --num_gpus asks for 1; see `nvidia-smi` there", output)


def test_the_doctor_lets_two_nodes_meet(place: Place) -> None:
    examined = place.finetune("doctor", "--slurm", "--num_nodes", "2")
    assert examined.returncode == 0, examined.stdout + examined.stderr
    assert "ok   Slurm         partition gpu: 1 node x 8 GPUs, 32 CPUs, time limit 1-00:00:00\n" in examined.stdout
    for node in ("node1", "node2"):
        assert re.search(
            rf"^ok   {node} +meeting 2 nodes at 127.0.0.1:\d+ · gloo adds up \d+ MiB/s$", examined.stdout, re.MULTILINE
        )
    refused = place.finetune("doctor", "--slurm", "--partition", "night")
    assert refused.returncode == EXIT_FAILED
    assert "bad  allocation    --partition night: the cluster has no such partition" in refused.stdout
    assert list(place.experiments.glob(".doctor-*")) == []


def test_the_cluster_is_described_as_it_is(place: Place) -> None:
    cluster = read_cluster()
    main, gpu = cluster.partitions
    assert (main.name, main.is_default, main.num_nodes, main.gpus_per_node, main.cpus_per_node) == ("main", True, 2, 0, 4)
    assert (gpu.name, gpu.is_default, gpu.num_nodes, gpu.gpus_per_node, gpu.cpus_per_node) == ("gpu", False, 1, 8, 32)
    assert cluster.accounts is None
    assert not cluster.has_pyxis


def test_a_job_at_its_time_limit_requeues_itself_and_can_be_watched_and_cancelled(place: Place) -> None:
    arguments = ["--max_steps", "100000", "--save_every_n_steps", "1", "--time", "60", "--save_time_s", "120"]
    launcher = place.train("endless", *arguments, "--detach")
    output = launcher.communicate()[0]
    assert launcher.returncode == EXIT_FINISHED, output
    assert "status: finetune status endless" in output
    job_id = place.wait_for_step("endless", 1)
    # Between one and two minutes from now; Slurm looks twice a minute and warns 120 s before.
    set_time_limit(job_id, minutes=run_time_s(job_id) // 60 + 2)
    place.wait("endless", lambda status: status.get("state") == "queued")
    set_time_limit(job_id, minutes=60)
    status = place.wait("endless", lambda status: is_training(status) and status.get("restarts") == 1)
    log = (place.experiments / "endless" / "logs" / f"slurm-{job_id}.out").read_text()
    found = re.search(r"time limit: saved at step (\d+) of 100000; the job goes on by itself", log)
    assert found is not None and int(str(status["step"])) >= int(found[1]) > 0

    again = place.train("endless", *arguments).communicate()[0]
    assert f"experiment endless is job {job_id} already" in again
    listed = place.finetune("list").stdout
    assert re.search(rf"^endless +running +\d+/100000 +slurm {job_id} ", listed, re.MULTILINE), listed
    shown = place.finetune("status", "endless").stdout
    assert f"slurm {job_id} · RUNNING · node" in shown
    assert "requeued 1 time" in shown
    assert "checkpoint saved" in place.finetune("logs", "endless").stdout
    cancelled = place.finetune("cancel", "endless")
    assert cancelled.returncode == 0, cancelled.stdout + cancelled.stderr
    assert "endless: stopped, newest checkpoint at step" in cancelled.stdout
    assert place.status("endless")["state"] == "stopped"
    state = job_state(job_id)
    assert (state.name, state.restarts) == ("FAILED", 1)  # exit code 75: what waits for a finished run does not start
    twice = place.finetune("cancel", "endless")
    assert twice.returncode == EXIT_BAD_INPUT
    assert "experiment endless does not run: stopped" in twice.stderr


def run_time_s(job_id: str) -> int:
    command = ["squeue", "--noheader", "--format=%M", f"--jobs={job_id}"]
    minutes, _, seconds = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().rpartition(":")
    return 60 * int(minutes) + int(seconds)  # a job of this test does not run for an hour


def set_time_limit(job_id: str, minutes: int) -> None:
    subprocess.run(["scontrol", "update", f"JobId={job_id}", f"TimeLimit={minutes}"], check=True)


def is_training(status: dict[str, object]) -> bool:
    return status.get("state") == "running" and "train_loss" in status


def processes() -> list[tuple[int, bytes]]:
    """Process ids and command lines of this machine."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found.append((int(folder.name), (folder / "cmdline").read_bytes()))
        except OSError:  # it has ended meanwhile
            continue
    return found


def files_with(text: str, *folders: Path) -> list[str]:
    result = subprocess.run(["grep", "-rlF", text, *folders], capture_output=True, text=True, check=False)
    return result.stdout.split()


class TokenWatch:
    """Looks for the token in all command lines and in Slurm's own files while a job lives."""

    def __init__(self, folders: list[Path]):
        self.folders, self.seen, self.stopped, self.rounds = folders, set[str](), threading.Event(), 0
        self.thread = threading.Thread(target=self._look)
        self.thread.start()

    def stop(self) -> list[str]:
        self.stopped.set()
        self.thread.join()
        assert self.rounds > 5
        return sorted(self.seen)

    def _look(self) -> None:
        while not self.stopped.wait(0.5):
            self.rounds += 1
            self.seen |= {f"pid {pid}" for pid, command in processes() if TOKEN.encode() in command}
            self.seen |= set(files_with(TOKEN, *self.folders))
