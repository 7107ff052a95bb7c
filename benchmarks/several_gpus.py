"""The layouts on 1, 2, 4 and 8 GPUs of one host, through the ordinary commands: right, how fast, and what survives.

Three parts, each row of the result printed as it comes and kept in --out:

- parity: `finetune selftest` for single axes and triples in float32 and bfloat16, from one process's gradients;
- speed: Llama-3.1-8B, weak scaling (the global batch grows with the GPUs). Tokens per second of each GPU against one GPU,
  memory against `finetuning.config.memory`, and from a profile the share of a step that waits for messages while nothing
  computes;
- resume: a rank is killed after a checkpoint, and the run goes on in another layout; its losses against an undisturbed run's.

    python benchmarks/several_gpus.py --work /tmp/bench --out result.json                      # a box of eight, 300 GB
    python benchmarks/several_gpus.py --work /tmp/bench --gpus 1 --parts speed --cases lora full
    python benchmarks/several_gpus.py --work /tmp/bench --device cpu --layers 2 --small        # to try the script
"""

import argparse
import dataclasses
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

from benchmarks.one_gpu import (  # noqa: E402
    LORA,
    SHAPE_8B,
    SHAPE_SMALL,
    SMALLER,
    WARM_UP_STEPS,
    descendants,
    machine,
    make_data,
    make_model,
    steady_figures,
    wait_until,
)
from finetuning.config.llama import read_llama_config  # noqa: E402
from finetuning.config.memory import plan_memory  # noqa: E402
from finetuning.config.run import read_run  # noqa: E402
from finetuning.config.settings import PROFILE_AFTER_STEPS  # noqa: E402
from finetuning.runtime.status import read_status  # noqa: E402
from finetuning.training.metrics import read_metrics  # noqa: E402

PARTS = ("parity", "speed", "resume")
PROFILED_STEPS = 2
STEPS = PROFILE_AFTER_STEPS + PROFILED_STEPS + 5
RESUME_STEPS, RESUME_LAYERS = 4, 2
TIMEOUT_S = 900.0

# Layout -> GPUs and flags of `finetune selftest`.
PARITY: dict[str, tuple[int, tuple[str, ...]]] = {
    "one": (1, ()),
    "tp2": (2, ("-T", "2", "--blocks", "plain")),
    "cp2": (2, ("-C", "2", "--blocks", "plain")),
    "pp2": (2, ("-P", "2", "--blocks", "plain")),
    "dp2": (2, ("--blocks", "plain")),
    "dp2-fused": (2, ("--blocks", "fused")),
    "tp2-fused": (2, ("-T", "2", "--blocks", "fused")),
    "pp2-fused": (2, ("-P", "2", "--blocks", "fused")),
    "cp2-fused": (2, ("-C", "2", "--blocks", "fused")),
    "tp2-pp2": (4, ("-T", "2", "-P", "2")),
    "tp2-cp2": (4, ("-T", "2", "-C", "2")),
    "cp2-dp2": (4, ("-C", "2")),
    "tp2-dp2-fused": (4, ("-T", "2", "--blocks", "fused")),
    "pp2-dp2-fused": (4, ("-P", "2", "--blocks", "fused")),
    "tp2-pp2-dp2": (8, ("-T", "2", "-P", "2")),
    "tp2-dp4-fused": (8, ("-T", "2", "--blocks", "fused")),
    "tp2-cp2-dp2": (8, ("-T", "2", "-C", "2")),
}


@dataclass(frozen=True)
class Case:
    """One way of training; what the degrees leave over is data parallel."""

    flags: tuple[str, ...]
    degree: int = 1  # of tensor or context parallel: at least so many GPUs
    lengths: str = "alpaca"  # or tokens of every sample
    batch_per_gpu: int = 128  # samples
    needs_cuda: bool = False


CASES = {
    "lora": Case(LORA),
    "lora-fp8": Case((*LORA, "--fp8"), needs_cuda=True),
    "full": Case(()),
    "full-rows-8192": Case(("--row_length", "8192")),
    "full-gathered-for-each-use": Case(("--sharding", "full"), degree=2),
    "full-tp2": Case(("-T", "2"), degree=2),
    "full-cp2-32k": Case(("-C", "2"), degree=2, lengths="32768", batch_per_gpu=1),
}
# GPUs -> flags before and after the rank was killed.
MOVES: dict[int, tuple[tuple[str, ...], tuple[str, ...]]] = {
    1: ((), ()),
    2: (("-T", "2"), ()),
    4: (("-T", "2", "-P", "2"), ("-C", "2")),
    8: (("-T", "2", "-P", "2", "-C", "2"), ("-T", "2")),
}


@dataclass(frozen=True)
class Bench:
    """Where and on what this run of the script works."""

    work: Path
    device: str  # cuda | cpu
    small: bool
    layers: int

    @property
    def row_length(self) -> int:
        return 1024 if self.small else 8192

    def model(self, layers: int) -> Path:
        folder = self.work / f"llama-{'small' if self.small else '8b'}-{layers}"
        if not folder.is_dir():
            make_model(folder, layers, SHAPE_SMALL if self.small else SHAPE_8B)
        return folder

    def data(self, lengths: str) -> Path:
        folder = self.work / f"data-{lengths}"
        if not folder.is_dir():
            make_data(folder, self.model(self.layers), lengths)
        return folder

    def environment(self) -> dict[str, str]:
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if self.device == "cpu" else {}
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return os.environ | hidden | {"PYTHONPATH": os.pathsep.join(paths)}

    def command(self, name: str, gpus: int, model: Path, lengths: str, steps: int, batch: int, save_every: int) -> list[str]:
        tokens = self.row_length if lengths == "alpaca" else int(lengths)
        return [
            sys.executable,
            str(ROOT / "finetune.py"),
            "--executor",
            "local",
            "--experiment",
            name,
            "--num_gpus",
            str(gpus),
            "--hf_model_id",
            str(model),
            "--dataset_path",
            str(self.data(lengths)),
            "--max_steps",
            str(steps),
            "--global_batch_size",
            str(batch),
            "--seq_length",
            str(tokens),
            "--truncation",
            "drop",
            "--num_sample_answers",
            "0",
            "--experiments_dir",
            str(self.work / "experiments"),
            "--warmup_steps",
            "0",
            "--save_every_n_steps",
            str(save_every),
            "--keep_last",
            "1",
            "--lang",
            "en",
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for model, data and experiments")
    parser.add_argument("--gpus", nargs="+", type=int, choices=MOVES, default=list(MOVES))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--layouts", nargs="+", choices=PARITY, default=list(PARITY), help="of parity")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="of speed")
    parser.add_argument("--layers", type=int, default=SHAPE_8B["num_hidden_layers"], help="fewer, to try the script")
    parser.add_argument("--small", action="store_true", help="narrow layers, short rows, small batches")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="where to keep the results as JSON")
    parser.add_argument(
        "--baseline", nargs="+", type=Path, default=[], help="results of one GPU from other calls of this script"
    )
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(given.work, given.device, given.small, given.layers)
    most = torch.cuda.device_count() if given.device == "cuda" else max(MOVES)
    gpus = [count for count in given.gpus if count <= most]
    head = machine() | ({"device": f"{os.cpu_count()} CPU cores, gloo"} if given.device == "cpu" else {"gpus": most})
    head |= {"small": given.small, "layers": given.layers}
    results: list[dict[str, Any]] = []
    for row in rows(bench, given.parts, gpus, given.layouts, given.cases, speeds_of_one(given.baseline)):
        results.append(row)
        print(json.dumps(row), flush=True)
        if given.out:
            given.out.write_text(json.dumps({"machine": head, "results": results}, indent=1) + "\n", encoding="utf-8")
    sys.exit(any(row["exit_code"] != 0 for row in results))


def speeds_of_one(files: list[Path]) -> dict[str, float]:
    """Case -> tokens per second of one GPU, as far as results have it."""
    results = [row for file in files for row in json.loads(file.read_text(encoding="utf-8"))["results"]]
    return {row["case"]: row["tokens_per_second_of_each"] for row in results if row["gpus"] == 1 and "tokens_per_second" in row}


def rows(
    bench: Bench, parts: list[str], gpus: list[int], layouts: list[str], cases: list[str], of_one: dict[str, float]
) -> Iterator[dict[str, Any]]:
    """Runs what was asked for, a row of the result after the other; adds what it finds to the speeds of one GPU."""
    if "parity" in parts:
        for name in layouts:
            if PARITY[name][0] in gpus:
                yield compare(bench, name)
    if "speed" in parts:
        for name in cases:
            for count in gpus:
                if count >= CASES[name].degree and not (CASES[name].needs_cuda and bench.device == "cpu"):
                    row = train(bench, name, count)
                    # Parallel ways of full training are compared with one GPU that does it alone.
                    alone = of_one.get(name.partition("-")[0] if count > 1 and name.startswith("full") else name)
                    if "tokens_per_second_of_each" in row and count == 1:
                        of_one[name] = row["tokens_per_second_of_each"]
                    elif "tokens_per_second_of_each" in row and alone and CASES[name].lengths == "alpaca":
                        row["share_of_one_gpu"] = round(row["tokens_per_second_of_each"] / alone, 4)
                    yield row
    if "resume" in parts:
        for count in gpus:
            yield kill_and_resume(bench, count)


def compare(bench: Bench, name: str) -> dict[str, Any]:
    """`finetune selftest` in one layout."""
    gpus, flags = PARITY[name]
    table = bench.work / f"parity-{name}.json"
    table.unlink(missing_ok=True)
    console = "import sys; from finetuning.cli.main import console; sys.argv[0] = 'finetune'; console()"
    command = [sys.executable, "-c", console, "selftest", "--num_gpus", str(gpus), "--json", str(table), *flags]
    code, seconds = run(command, bench, f"parity-{name}")
    row: dict[str, Any] = {"part": "parity", "layout": name, "gpus": gpus, "exit_code": code, "wall_s": seconds}
    if table.is_file():
        found = json.loads(table.read_text(encoding="utf-8"))["rows"]
        row["largest_difference"] = {entry["trained"]: float(f"{entry['largest_difference']:.1e}") for entry in found}
        row["equal"] = all(entry["equal"] for entry in found)
    return row


def train(bench: Bench, name: str, gpus: int) -> dict[str, Any]:
    """One run of `finetune.py`: speed, memory and messages."""
    case, experiment = CASES[name], f"{name}-{gpus}"
    lengths = str(int(case.lengths) // SMALLER) if bench.small and case.lengths != "alpaca" else case.lengths
    batch = max(1, case.batch_per_gpu // (SMALLER if bench.small else 1)) * gpus
    command = bench.command(experiment, gpus, bench.model(bench.layers), lengths, STEPS, batch, save_every=0)
    folder = fresh(bench, experiment)
    code, seconds = run(
        [*command, "--profile_steps", str(PROFILED_STEPS), *case.flags], bench, experiment, until=has_steps(folder, STEPS)
    )
    row: dict[str, Any] = {"part": "speed", "case": name, "gpus": gpus, "exit_code": code, "wall_s": seconds}
    metrics = read_metrics(folder / "metrics.csv")
    if len(metrics) > WARM_UP_STEPS + PROFILED_STEPS:
        row |= steady_figures(metrics, WARM_UP_STEPS + PROFILED_STEPS)
        row["tokens_per_second_of_each"] = round(row["tokens_per_second"] / gpus)
        run_file = read_run(folder / "run.yaml")
        plan = plan_memory(run_file.strategy, read_llama_config(Path(run_file.model_path)))
        strategy = dataclasses.asdict(run_file.strategy)
        row |= {"planned_gib": round(plan.total_gib, 2), "strategy": strategy, "waits": share_of_messages(folder)}
    shutil.rmtree(folder, ignore_errors=True)  # an export takes 16 GB
    return row


def share_of_messages(folder: Path) -> dict[str, float]:
    """Of the profiled steps on the worst rank: messages, and messages while nothing computes, as parts of the time."""
    found = {}
    for name in ("messages", "only_messages"):
        shares = [
            statistics.mean(row[f"{name}_s"] / row["seconds"] for row in json.loads(file.read_text(encoding="utf-8")))
            for file in (folder / "profile").glob("rank_*.json")
        ]
        found[name] = round(max(shares), 4)
    return found


def kill_and_resume(bench: Bench, gpus: int) -> dict[str, Any]:
    """Kills the last rank after a checkpoint, goes on in another layout, and compares the losses with an undisturbed run's."""
    before, after = MOVES[gpus]
    model = bench.model(min(RESUME_LAYERS * (2 if "-P" in before else 1), bench.layers))
    batch = (4 if bench.small else 32) * gpus
    visible = ("--lr", "1e-3")  # so that a step not taken, or taken twice, shows in the losses
    flags = [*bench.command(f"moved-{gpus}", gpus, model, "alpaca", RESUME_STEPS, batch, save_every=1), *visible]
    moved, plain = fresh(bench, f"moved-{gpus}"), fresh(bench, f"plain-{gpus}")
    killed_code, seconds_to_end = run_until_killed([*flags, *before], bench, moved, gpus)
    status = read_status(moved)
    resumed_code, _ = run([*flags, *after], bench, f"moved-{gpus}-resumed", until=has_steps(moved, RESUME_STEPS))
    plain_flags = [*bench.command(f"plain-{gpus}", gpus, model, "alpaca", RESUME_STEPS, batch, save_every=0), *visible]
    plain_code, _ = run([*plain_flags, *after], bench, f"plain-{gpus}", until=has_steps(plain, RESUME_STEPS))
    text = (bench.work / f"moved-{gpus}-resumed.log").read_text(encoding="utf-8")
    losses, expected = (
        [float(entry["train_loss"]) for entry in read_metrics(folder / "metrics.csv")] for folder in (moved, plain)
    )
    complete = len(losses) == len(expected) == RESUME_STEPS
    row = {
        "part": "resume",
        "gpus": gpus,
        "before": " ".join(before),
        "after": " ".join(after),
        "exit_code_after_kill": killed_code,
        "reason": status.get("reason"),
        "seconds_from_kill_to_end": seconds_to_end,
        "exit_code": 0 if resumed_code == plain_code == 0 and complete and killed_code == 1 else 1,
        "checkpoint_s": [float(seconds) for seconds in re.findall(r"checkpoint saved in ([\d.]+) s", text)],
        "checkpoint_gib": round(size_of(moved / "checkpoints" / "latest") / 2**30, 3),
        "losses": losses,
        "largest_loss_difference": max(
            (abs(loss - other) / other for loss, other in zip(losses, expected, strict=True)), default=None
        )
        if complete
        else None,
    }
    for folder in (moved, plain):
        shutil.rmtree(folder, ignore_errors=True)
    return row


def run(command: list[str], bench: Bench, name: str, until: Callable[[], bool] | None = None) -> tuple[int, float]:
    """Exit code and seconds; the output goes to a log in --work, and its end is shown when it failed.

    Args:
        until: ends the command when this holds, with exit code 0: nothing is measured in an export of 16 GB.
    """
    started = time.monotonic()
    log_file = bench.work / f"{name}.log"
    with log_file.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=bench.environment(), cwd=bench.work)
        code = process.wait() if until is None else wait_until(process, until)
    if code != 0:
        print(log_file.read_text(encoding="utf-8")[-3000:], flush=True)
    return code, round(time.monotonic() - started, 1)


def has_steps(folder: Path, steps: int) -> Callable[[], bool]:
    """Whether an experiment has recorded so many."""
    return lambda: len(read_metrics(folder / "metrics.csv")) == steps


def run_until_killed(command: list[str], bench: Bench, folder: Path, gpus: int) -> tuple[int, float | None]:
    """Kills the last rank as soon as a checkpoint is there; exit code, and how long the command took to end after it."""
    started = time.monotonic()
    with (bench.work / f"{folder.name}-killed.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=bench.environment(), cwd=bench.work)
        while process.poll() is None and time.monotonic() - started < TIMEOUT_S:
            if (folder / "checkpoints" / "latest").exists():
                workers = list(workers_of(process.pid, gpus - 1))
                for pid in workers:
                    os.kill(pid, signal.SIGKILL)
                killed_at = time.monotonic()
                return process.wait(TIMEOUT_S), round(time.monotonic() - killed_at, 1) if workers else None
            time.sleep(0.05)
        process.terminate()
        return process.wait(TIMEOUT_S), None


def workers_of(launcher: int, rank: int) -> Iterator[int]:
    """The process of this rank below the launcher (Linux)."""
    for pid in descendants(launcher):
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if f"RANK={rank}".encode() in variables and b"finetuning.train" in arguments:
            yield pid


def fresh(bench: Bench, experiment: str) -> Path:
    """The folder of an experiment that has not been run."""
    folder = bench.work / "experiments" / experiment
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.resolve().rglob("*") if file.is_file())


if __name__ == "__main__":
    main()
