"""Kills a run at random moments, half of them while a checkpoint is written, and looks at what is left each time.

A run of two CPU processes goes on after each kill, as it does after a second command, until it is done. After each kill every
checkpoint must be complete and every byte of it sound, and `latest` must lead to one; in the end losses, ledger and result must
be those of a run that nobody disturbed, to the bit. The workers are forked from a process that has their libraries, so that a
kill takes seconds.

    python benchmarks/kills.py --work /tmp/kills --kills 100 --seed 1
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from examples.make_tiny_model import TRAINING_FILE, make_tiny_model  # noqa: E402
from finetuning.checkpoint.files import find_checkpoints  # noqa: E402
from finetuning.config.run import Run, read_run, write_run  # noqa: E402
from finetuning.data.batches.ledger import LEDGER_FILE, read_ledger  # noqa: E402
from finetuning.files.atomic import remove_incomplete  # noqa: E402
from finetuning.storage.dcp_reader import ShardedFiles, damaged_part  # noqa: E402
from finetuning.training.metrics import read_metrics  # noqa: E402

PROCESSES = 2
SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 512,
}
SAMPLES = {"training": 40, "validation": 6, "test": 4}
SAME = ("step", "train_loss", "val_loss", "learning_rate", "grad_norm", "samples", "tokens", "answer_tokens")
MOMENT_S = 0.08  # a save of this model takes about as long; a kill comes somewhere within it
LATEST_S = 4.0  # after its workers have begun to train
POLL_S = 0.001
TIMEOUT_S = 300.0
EVERY, VALIDATES_EVERY = 2, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for model, data and experiments")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=200, help="of each run; when one is done, the next one is killed")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began_s = time.monotonic()
    found = kill_runs(arguments.work, arguments.kills, arguments.steps, random.Random(arguments.seed), say=print)
    print(json.dumps({"seed": arguments.seed, "minutes": round((time.monotonic() - began_s) / 60, 1), **found}))


def kill_runs(work: Path, kills: int, steps: int, chance: random.Random, say: Callable[[str], object]) -> dict[str, int]:
    """How many kills there were, of which kind, and how many runs came to their end with nothing lost.

    Raises:
        AssertionError: something was lost, or not sound.
    """
    undisturbed = prepare(work, steps)
    counts: Counter[str] = Counter()
    while counts["kills"] < kills:
        run = another(undisturbed, f"killed-{counts['runs']}")
        while counts["kills"] < kills:
            what = kill_once(run, in_save=counts["kills"] % 2 == 0, chance=chance)
            if what is None:  # it has finished
                break
            counts.update(("kills", what))
            counts["in a save"] += any((Path(run.experiment_dir) / "checkpoints").glob(".incomplete-*"))
            say(f"kill {counts['kills']}: {what}, at step {check(run)}")
        finish(run)
        compare(run, undisturbed)
        counts["runs"] += 1
    return dict(counts)


def prepare(work: Path, steps: int) -> Run:
    """The run that nobody disturbs; that of an earlier call, where it has as many steps."""
    model, data = work / "model", work / "data"
    if not model.is_dir():
        make_tiny_model(model, **SHAPE)
    data.mkdir(exist_ok=True)
    for name, count in SAMPLES.items():
        lines = (TRAINING_FILE.parent / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        text = "\n".join(sorted(lines, key=len)[:count]) + "\n"
        (data / f"{name}.jsonl").write_text(text, encoding="utf-8")
    experiments = work / "experiments"
    for killed in experiments.glob("killed-*"):
        shutil.rmtree(killed)
    run_file = experiments / "undisturbed" / "run.yaml"
    if (run_file.parent / "export").is_dir() and read_run(run_file).max_steps == steps:
        return read_run(run_file)
    shutil.rmtree(experiments, ignore_errors=True)
    command = [sys.executable, str(ROOT / "finetune.py"), "--experiment", "undisturbed", "--num_gpus", str(PROCESSES)]
    command += ["--experiments_dir", str(experiments), "--hf_model_id", str(model), "--dataset_path", str(data)]
    command += ["--global_batch_size", "8", "--seq_length", "256", "--lr", "1e-3", "--max_steps", str(steps)]
    command += ["--save_every_n_steps", str(EVERY), "--val_check_interval", str(VALIDATES_EVERY), "--num_sample_answers", "0"]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, stdout=subprocess.DEVNULL)
    return read_run(run_file)


def another(run: Run, name: str) -> Run:
    """The same once more, in a folder of its own."""
    folder = Path(run.experiment_dir).with_name(name)
    (folder / "checkpoints").mkdir(parents=True)
    found = dataclasses.replace(run, experiment_dir=str(folder))
    write_run(found, folder / "run.yaml")
    shutil.copytree(Path(run.experiment_dir) / "data", folder / "data")
    return found


def kill_once(run: Run, *, in_save: bool, chance: random.Random) -> str | None:
    """Starts the workers, and kills all of them, or one; what was done, None where they had finished before."""
    checkpoints, metrics = Path(run.experiment_dir) / "checkpoints", Path(run.experiment_dir) / "metrics.csv"
    remove_incomplete(Path(run.experiment_dir))
    remove_incomplete(checkpoints)
    before = len(read_metrics(metrics))
    workers = start(run)
    try:
        wait_until(lambda: len(read_metrics(metrics)) != before or ended(workers), workers)
        time.sleep(chance.random() * (0.5 if in_save else LATEST_S))
        if in_save:
            wait_until(lambda: any(checkpoints.glob(".incomplete-step=*")) or ended(workers), workers)
            time.sleep(chance.random() * MOMENT_S)
        if ended(workers):
            return None
        victims = chance.sample(workers, chance.choice((1, PROCESSES)))
        for worker in victims:
            time.sleep(chance.random() * 0.01)
            kill(worker)
        if len(victims) < PROCESSES:  # the other one notices, or waits for what will never come, as under torchrun
            time.sleep(chance.random() * 0.2)
        return "all" if len(victims) == PROCESSES else f"rank {workers.index(victims[0])} first"
    finally:
        for worker in workers:
            kill(worker)
            worker.join()


def finish(run: Run) -> None:
    """Lets it go on to its end."""
    remove_incomplete(Path(run.experiment_dir) / "checkpoints")
    workers = start(run)
    wait_until(lambda: not any(worker.is_alive() for worker in workers), workers)
    log = Path(run.experiment_dir) / "logs" / "rank_0.log"
    assert [worker.exitcode for worker in workers] == [0] * PROCESSES, log.read_text(encoding="utf-8")


def check(run: Run) -> int:
    """The step that it would go on from; whatever is a checkpoint is sound, and `latest` is one."""
    checkpoints = Path(run.experiment_dir) / "checkpoints"
    complete, broken = find_checkpoints(checkpoints)
    assert not broken, broken
    for checkpoint in complete:
        damage = damaged_part(ShardedFiles(checkpoint.path), 0, 1)
        assert damage is None, (checkpoint.path, damage)
    if complete:  # the newest one; or the one before, where it was killed between two names
        assert (checkpoints / "latest").resolve() in [checkpoint.path for checkpoint in complete[-2:]]
    return complete[-1].step if complete else 0


def compare(run: Run, other: Run) -> None:
    """Nothing is lost, nothing is there twice, all is equal to the bit."""
    folders = [Path(each.experiment_dir) for each in (run, other)]
    rows = [[{name: row[name] for name in SAME} for row in read_metrics(folder / "metrics.csv")] for folder in folders]
    assert rows[0] == rows[1]
    entries = [[(e.step, *e.lines.tolist()) for e in read_ledger(folder / LEDGER_FILE)] for folder in folders]
    assert entries[0] == entries[1] and len(entries[0]) == run.max_steps
    exports = [(folder / "export" / "model.safetensors").read_bytes() for folder in folders]
    assert exports[0] == exports[1]


def start(run: Run) -> list[BaseProcess]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["finetuning.train"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers: list[BaseProcess] = [
        context.Process(target=work, args=(run.experiment_dir, rank, port)) for rank in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    return workers


def work(folder: str, rank: int, port: int) -> None:
    """What torchrun starts."""
    import torch

    from finetuning.train import main

    torch.set_num_threads(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(PROCESSES), "LOCAL_WORLD_SIZE": str(PROCESSES)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    sys.exit(main(Path(folder) / "run.yaml"))


def ended(workers: list[BaseProcess]) -> bool:
    return any(worker.exitcode is not None for worker in workers)


def kill(worker: BaseProcess) -> None:
    if worker.pid is not None:
        with suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)


def wait_until(holds: Callable[[], bool], workers: list[BaseProcess]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline_s, f"waited for {TIMEOUT_S:.0f} s; exit codes {[w.exitcode for w in workers]}"
        time.sleep(POLL_S)


if __name__ == "__main__":
    main()
