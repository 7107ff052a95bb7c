"""Where the time of a whole job goes: the ordinary command with its defaults, from the prompt to the result.

Makes an 8B-shaped checkpoint with random weights and Alpaca-like data with validation and test (both on the spot, in --work),
runs `finetune.py` and looks at its status.json meanwhile. Tells the seconds of each phase, what the first step waited for,
what saves cost, and how fast steps were while a save was being written.

    python benchmarks/whole_job.py --work /tmp/whole --cases lora --steps 100 --out whole.json
    python benchmarks/whole_job.py --work /tmp/whole --cases lora --steps 100 --warm      # once before, so that all is cached
    python benchmarks/whole_job.py --work /tmp/small --cases lora --steps 30 --small --layers 2         # to try the script
"""

import argparse
import itertools
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

from benchmarks.gpu import driver  # noqa: E402
from benchmarks.one_gpu import SHAPE_8B, SHAPE_SMALL, WARM_UP_STEPS, machine, make_data, make_model  # noqa: E402
from finetuning.runtime.status import read_status  # noqa: E402
from finetuning.training.metrics import read_metrics  # noqa: E402

LOOKS_PER_S = 20
VALIDATION_SAMPLES, TEST_SAMPLES = 128, 64
CASES = {
    "lora": ("--num_gpus", "1", "--peft", "lora"),
    "lora-fp8": ("--num_gpus", "1", "--peft", "lora", "--fp8"),
    "full": ("--num_gpus", "1"),
    "full-tp2": ("--num_gpus", "2", "--tensor_model_parallel_size", "2"),
}
SAVED = re.compile(r"^step (\d+): checkpoint saved in ([\d.]+) s, of which the training waited ([\d.]+) s$", re.MULTILINE)
BEFORE_FIRST_STEP = re.compile(r"before|starting|running|loading|validating after step 0$|generating|in its first step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for model, data and experiments: 40 GB, full: 250 GB")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["lora"])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=128, help="samples of a step")
    parser.add_argument("--flags", default="", help="more flags for every run, separated by spaces")
    parser.add_argument("--warm", action="store_true", help="a few steps before, so that kernels, tokens and files are cached")
    parser.add_argument("--layers", type=int, default=SHAPE_8B["num_hidden_layers"], help="fewer, to try the script")
    parser.add_argument("--small", action="store_true", help="narrow layers, to try the script")
    parser.add_argument("--out", type=Path, help="where to write the results as JSON")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    model = arguments.work / f"llama-8b-{arguments.layers}{'-small' * arguments.small}"
    if not model.is_dir():
        make_model(model, arguments.layers, SHAPE_SMALL if arguments.small else SHAPE_8B)
    data = arguments.work / "data"
    if not data.is_dir():
        make_splits(data, model)
    results = []
    for case in arguments.cases:
        flags = [*CASES[case], "--global_batch_size", str(arguments.batch), *arguments.flags.split()]
        if arguments.warm:
            run(arguments.work, f"{case}-before", model, data, [*flags, "--max_steps", str(WARM_UP_STEPS + 1)])
        found = {"case": case, **run(arguments.work, case, model, data, [*flags, "--max_steps", str(arguments.steps)])}
        results.append(found)
        print(f"\n{case}\n{as_table(found)}", flush=True)
        if arguments.out:
            text = json.dumps({"machine": machine() | driver(), "results": results}, indent=1)
            arguments.out.write_text(text + "\n", encoding="utf-8")


def make_splits(folder: Path, model: Path) -> None:
    """Alpaca-like data; some of them for validation and test."""
    make_data(folder, model, "alpaca")
    lines = (folder / "training.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    for name, count in (("validation", VALIDATION_SAMPLES), ("test", TEST_SAMPLES)):
        (folder / f"{name}.jsonl").write_text("".join(lines[:count]), encoding="utf-8")
        lines = lines[count:]
    (folder / "training.jsonl").write_text("".join(lines), encoding="utf-8")


def run(work: Path, name: str, model: Path, data: Path, flags: list[str]) -> dict[str, Any]:
    """What a run shows of its time."""
    experiment = work / "experiments" / name
    shutil.rmtree(experiment, ignore_errors=True)  # or the command would find nothing left to do
    command = [sys.executable, str(ROOT / "finetune.py"), "--experiment", name, "--experiments_dir", str(experiment.parent)]
    command += ["--hf_model_id", str(model), "--dataset_path", str(data), *flags]
    log = work / f"{name}.log"
    began_s, seen = time.monotonic(), list[tuple[float, str]]()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            status = read_status(experiment)
            doing = status.get("doing") or status.get("state") or "before the workers"
            doing = "in a step" if re.fullmatch(r"in step \d+", doing) else doing
            if not seen or doing != seen[-1][1]:
                seen.append((time.monotonic() - began_s, doing))
            time.sleep(1 / LOOKS_PER_S)
    wall_s = time.monotonic() - began_s
    if process.returncode != 0:
        raise SystemExit(log.read_text(encoding="utf-8")[-4000:])
    rows, text = read_metrics(experiment / "metrics.csv"), (experiment / "logs" / "train.log").read_text(encoding="utf-8")
    return {
        "wall_s": round(wall_s, 1),
        "spent": read_status(experiment)["spent"],
        "until_first_step": first_step(seen),
        "first_step_s": float(rows[0]["seconds"]),
        "command_to_first_step_s": round(float(rows[0]["other_seconds"]) + float(rows[0]["seconds"]), 1),
        "median_step_s": statistics.median(float(row["seconds"]) for row in rows[WARM_UP_STEPS:]),
        "saves": [
            {"step": int(step), "s": float(all_s), "waited_s": float(waited)} for step, all_s, waited in SAVED.findall(text)
        ],
        "tokens_per_second": speeds(rows, text),
        "timeline": [(round(at, 1), doing) for at, doing in seen],
    }


def first_step(seen: list[tuple[float, str]]) -> dict[str, float]:
    """Seconds of each phase until the first step is done."""
    found: dict[str, float] = {}
    for (begin, doing), (end, _) in itertools.pairwise(seen):
        if not BEFORE_FIRST_STEP.match(doing):
            break
        found[doing] = round(found.get(doing, 0.0) + end - begin, 1)
    return found


def speeds(rows: list[dict[str, str]], text: str) -> dict[str, float | None]:
    """Medians over steps that ran while a save was being written, and over the others."""
    ended = {int(row["step"]): float(row["time"]) for row in rows}
    windows = [(ended[int(step)], ended[int(step)] + float(seconds)) for step, seconds, _ in SAVED.findall(text)]
    found: dict[str, list[float]] = {"while saving": [], "otherwise": []}
    for row in rows[WARM_UP_STEPS:]:
        end = float(row["time"])
        saving = any(begin < end and end - float(row["seconds"]) < stop for begin, stop in windows)
        found["while saving" if saving else "otherwise"].append(float(row["tokens_per_second"]))
    return {when: round(statistics.median(each)) if each else None for when, each in found.items()}


def as_table(found: dict[str, Any]) -> str:
    spent, wall_s = found["spent"], found["wall_s"]
    lines = ["| what | s | share |", "| --- | --- | --- |"]
    parts = {**spent, "after the workers, or not counted": wall_s - sum(spent.values())}
    lines += [f"| {part} | {seconds:.1f} | {seconds / wall_s:.1%} |" for part, seconds in parts.items()]
    lines += [f"| **all** | {wall_s:.1f} | |", "", "| until the first step is done | s |", "| --- | --- |"]
    lines += [f"| {doing} | {seconds:.1f} |" for doing, seconds in found["until_first_step"].items()]
    saves = ", ".join(f"step {save['step']}: {save['s']:.1f} s, waited {save['waited_s']:.1f} s" for save in found["saves"])
    step_s = found["median_step_s"]
    lines += ["", f"saves: {saves or 'none'}", f"median step {step_s:.3f} s; tokens/s {found['tokens_per_second']}"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
