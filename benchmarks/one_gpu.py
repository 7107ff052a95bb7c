"""Llama-3.1-8B on one GPU through the ordinary command: tokens per second and peak memory.

Makes an 8B-shaped checkpoint with random weights and data of chosen lengths (both on the spot, in --work), runs
`finetune.py` once per case and reads its metrics.csv. Real tokens only: padding does not count. The first steps, where
kernels are compiled, are left out; the figure is the median of the others. With it go clocks and power of the GPU in those
steps, and how near that is to what matrix products and attention alone would take on an H200.

--profile tells where the time of one more step goes, by groups of kernels; --count_compilations trains the case once more for
an epoch and counts what is compiled after the first steps.

    python benchmarks/one_gpu.py --work /tmp/bench --cases lora-alpaca full-8192 --profile --count_compilations --out one.json
    python benchmarks/one_gpu.py --work /tmp/small --cases lora-8192 --profile --small --layers 2     # to try the script
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

from make_tiny_model import make_tiny_model  # noqa: E402

from benchmarks.gpu import GpuSampler, driver  # noqa: E402
from benchmarks.step_profile import as_table, where_the_time_goes  # noqa: E402
from finetuning.config.llama import LlamaConfig, read_llama_config  # noqa: E402
from finetuning.config.run import read_run, write_run  # noqa: E402
from finetuning.config.settings import PROFILE_AFTER_STEPS  # noqa: E402
from finetuning.data.batches.order import steps_per_epoch  # noqa: E402
from finetuning.data.reading.records import Sample  # noqa: E402
from finetuning.data.tokens.tokenized import open_split  # noqa: E402
from finetuning.launch.torchrun import torchrun_options, worker_environment  # noqa: E402
from finetuning.model.llama import Llama  # noqa: E402
from finetuning.training.metrics import read_metrics  # noqa: E402

SHAPE_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
}
SHAPE_SMALL = SHAPE_8B | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 4096,
}
SMALLER = 32  # by this, --small divides row lengths and batches
SHARD_LAYERS = 8
WARM_UP_STEPS = 3
MEDIAN_TOKENS, SIGMA, LONGEST_TOKENS = 180, 0.9, 2000  # answers and questions like zh-TW Alpaca: log-normal with a long tail

# One H200 at its power limit, 2026-11-23: matrix products of the 8B's shapes in bfloat16 and fp8; forward and backward of one
# layer's attention for 8192 tokens with 32 heads of 128 by the fastest of the kernels measured (FlashAttention-4).
BF16_FLOPS, FP8_FLOPS = 690e12, 1300e12
ATTENTION_S = {"8192": 3.49e-3, "alpaca": 0.68e-3}
ATTENTION_TOKENS, ATTENTION_WIDTH = 8192, 4096


@dataclass(frozen=True)
class Case:
    """One run: what is trained, on which lengths."""

    lengths: str  # alpaca | 8192
    steps: int
    flags: tuple[str, ...]
    global_batch_size: int


LORA = ("--peft", "lora", "--lora_rank", "16")
CASES = {
    "lora-alpaca": Case("alpaca", 20, LORA, 128),
    "lora-8192": Case("8192", 12, LORA, 4),
    "lora-fp8-alpaca": Case("alpaca", 20, (*LORA, "--fp8"), 128),
    "lora-fp8-8192": Case("8192", 12, (*LORA, "--fp8"), 4),
    "lora-least-8192": Case("8192", 12, (*LORA, "--least_memory"), 4),
    "lora-fp8-least-8192": Case("8192", 12, (*LORA, "--fp8", "--least_memory"), 4),
    "full-alpaca": Case("alpaca", 12, (), 128),
    "full-8192": Case("8192", 10, (), 4),
    "full-fp8-alpaca": Case("alpaca", 12, ("--fp8",), 128),
    # What an 80 GB card can hold.
    "full-8bit-8192": Case("8192", 8, ("--optimizer_states", "8bit", "--activation_checkpointing", "selective"), 4),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for model, data and experiments: 40 GB")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--layers", type=int, default=SHAPE_8B["num_hidden_layers"], help="fewer, to try the script")
    parser.add_argument("--small", action="store_true", help="narrow layers, short rows, small batches, to try the script")
    parser.add_argument("--flags", default="", help="more flags for every run, separated by spaces")
    parser.add_argument("--profile", action="store_true", help="also tell where the time of a step goes")
    parser.add_argument("--count_compilations", action="store_true", help="also train an epoch of the case and count")
    parser.add_argument("--out", type=Path, help="where to write the results as JSON")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    model = arguments.work / f"llama-8b-{arguments.layers}{'-small' * arguments.small}"
    if not model.is_dir():
        make_model(model, arguments.layers, SHAPE_SMALL if arguments.small else SHAPE_8B)
    config = read_llama_config(model)
    results = []
    for name in arguments.cases:
        case = smaller(CASES[name]) if arguments.small else CASES[name]
        more = ["--profile_steps", "1"] if arguments.profile else []
        folder = arguments.work / "experiments" / name
        shutil.rmtree(folder, ignore_errors=True)  # or the command would find nothing left to do
        with GpuSampler() as sampler:
            result = run_case(name, case, model, config, arguments.work, [*arguments.flags.split(), *more])
        if window := result.pop("window", None):
            result |= sampler.means(*window)  # type: ignore[misc]
            if arguments.profile:
                thin = config.num_key_value_heads * config.head_dim  # the narrowest frozen layer
                result["profile"] = where_the_time_goes(folder / "profile", thin)
                print(as_table(result["profile"]), flush=True)  # type: ignore[arg-type]
            if arguments.count_compilations:
                result["compilations"] = count_compilations(folder, arguments.work / f"{name}-counted.log")
        results.append(result)
        print(json.dumps(result), flush=True)
        if arguments.out:
            head = machine() | driver()
            arguments.out.write_text(json.dumps({"machine": head, "results": results}, indent=1) + "\n", encoding="utf-8")


def smaller(case: Case) -> Case:
    lengths = case.lengths if case.lengths == "alpaca" else str(int(case.lengths) // SMALLER)
    return replace(case, lengths=lengths, global_batch_size=max(1, case.global_batch_size // SMALLER))


def run_case(name: str, case: Case, model: Path, config: LlamaConfig, work: Path, flags: list[str]) -> dict[str, object]:
    """What a run found out; `window` are the times of day between which its steady steps were done."""
    data = work / f"data-{case.lengths}"
    if not data.is_dir():
        make_data(data, model, case.lengths)
    experiments = work / "experiments"
    row_tokens = 8192 if case.lengths == "alpaca" else int(case.lengths)
    command = [
        sys.executable,
        str(ROOT / "finetune.py"),
        "--executor",
        "local",
        "--experiment",
        name,
        "--num_gpus",
        "1",
        "--hf_model_id",
        str(model),
        "--dataset_path",
        str(data),
        "--max_steps",
        str(case.steps),
        "--global_batch_size",
        str(case.global_batch_size),
        "--seq_length",
        str(row_tokens),
        "--save_every_n_steps",
        "0",
        "--num_sample_answers",
        "0",
        "--experiments_dir",
        str(experiments),
        "--warmup_steps",
        "0",
        *case.flags,
        *flags,
    ]
    started, started_at = time.monotonic(), time.time()
    with (work / f"{name}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        code = wait_until(process, lambda: len(read_metrics(experiments / name / "metrics.csv")) == case.steps)
    result: dict[str, object] = {"case": name, "exit_code": code, "wall_s": round(time.monotonic() - started, 1)}
    metrics = experiments / name / "metrics.csv"
    rows, left_out = read_metrics(metrics), WARM_UP_STEPS
    if "--profile_steps" in flags:
        left_out = max(left_out, PROFILE_AFTER_STEPS + int(flags[flags.index("--profile_steps") + 1]))
    if len(rows) <= left_out:
        print((work / f"{name}.log").read_text(encoding="utf-8")[-3000:], flush=True)
        return result
    figures = steady_figures(rows, left_out)
    ended = metrics.stat().st_mtime  # the last row is appended at the end of its step
    result |= figures | {
        "command_to_first_step_s": round(ended - started_at - sum(float(row["seconds"]) for row in rows[1:]), 1),
        "matmul_tflops": round(figures["tokens_per_second"] * flop_per_token(config, "lora" in name) / 1e12),
        "window": [ended - sum(float(row["seconds"]) for row in rows[left_out:]), ended],
    }
    if case.lengths in ATTENTION_S:
        limit = limit_of(config, case.lengths, lora="lora" in name, fp8="--fp8" in (*case.flags, *flags))
        result["percent_of_limit"] = round(100 * figures["tokens_per_second"] / limit, 1)
    return result


def count_compilations(experiment: Path, log_file: Path) -> dict[str, int]:
    """Trains an epoch with the settings of an experiment that has run, in a process that counts."""
    run, folder = read_run(experiment / "run.yaml"), experiment.with_name(f"{experiment.name}-counted")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    steps = steps_per_epoch(len(open_split(Path(run.tokens_dir) / "training")), run.config.global_batch_size)
    config = replace(run.config, profile_steps=0, experiment=folder.name)
    write_run(replace(run, config=config, experiment_dir=str(folder), max_steps=steps), folder / "run.yaml")
    counts_file = folder / "counts.json"
    command = [*torchrun_options(1), str(ROOT / "benchmarks" / "counted_run.py"), str(folder / "run.yaml"), str(counts_file)]
    with log_file.open("w", encoding="utf-8") as log:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=worker_environment(1), check=True)
    counts = json.loads(counts_file.read_text(encoding="utf-8"))
    first = counts[WARM_UP_STEPS - 1]
    return {"steps": len(counts), "in_warm_up": first, "after_warm_up": counts[-1] - first}


def wait_until(process: subprocess.Popen[bytes], enough: Callable[[], bool]) -> int:
    """Exit code; 0 if it was ended here, when `enough` held: nothing is measured in an export of 16 GB."""
    while process.poll() is None and not enough():
        time.sleep(0.2)
    if process.returncode is not None:
        return process.returncode
    for pid in (*descendants(process.pid), process.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    return 0


def descendants(pid: int) -> list[int]:
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [found for child in children for found in (child, *descendants(child))]


def steady_figures(rows: list[dict[str, str]], left_out: int) -> dict[str, Any]:
    """Of a run's metrics.csv, without its first rows."""
    steady = rows[left_out:]
    return {
        "tokens_per_second": round(statistics.median(float(row["tokens_per_second"]) for row in steady)),
        "memory_gib": float(rows[-1]["memory_gib"]),
        "fill": round(statistics.mean(float(row["fill"]) for row in steady), 4),
        "steps": len(rows),
        "first_step_s": round(float(rows[0]["seconds"]), 1),
        "loss": [float(row["train_loss"]) for row in (rows[0], rows[-1])],
    }


def flop_per_token(config: LlamaConfig, lora: bool) -> float:
    """Matrix products of linear layers and head: 2 per weight forward, 2 for the input's gradient, 2 for the weight's."""
    linears = config.num_parameters - (1 if config.tie_word_embeddings else 2) * config.vocab_size * config.hidden_size
    return (4 if lora else 6) * (linears + config.vocab_size * config.hidden_size)


def limit_of(config: LlamaConfig, lengths: str, *, lora: bool, fp8: bool) -> float:
    """Tokens per second of an H200 that did nothing but the matrix products and the attention, each at its best rate."""
    head = (4 if lora else 6) * config.vocab_size * config.hidden_size
    products_s = (flop_per_token(config, lora) - head) / (FP8_FLOPS if fp8 else BF16_FLOPS) + head / BF16_FLOPS
    width = config.num_attention_heads * config.head_dim
    attention_s = config.num_hidden_layers * ATTENTION_S[lengths] / ATTENTION_TOKENS * width / ATTENTION_WIDTH
    return 1 / (products_s + attention_s)


def make_model(folder: Path, layers: int, shape: dict[str, int] = SHAPE_8B) -> None:
    """A random checkpoint in bfloat16, in shards; its tokenizer is the example's, so only a few ids occur in the data."""
    make_tiny_model(
        folder, hidden_size=64, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, intermediate_size=64
    )
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings |= {**shape, "num_hidden_layers": layers, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    (folder / "model.safetensors").unlink()
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in Llama(read_llama_config(folder)).named_parameters()}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(1)
    shards: dict[int, dict[str, torch.Tensor]] = {}
    for name, shape in shapes.items():
        value = torch.ones(shape, device=device)
        if len(shape) == 2:
            value.normal_(0, 0.02, generator=generator)
        layer = int(name.split(".")[2]) if name.startswith("model.layers.") else layers
        shards.setdefault(layer // SHARD_LAYERS, {})[name] = value.to(device="cpu", dtype=torch.bfloat16)
    weight_map = {}
    for number, tensors in shards.items():
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file(tensors, str(folder / file), metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {"total_size": 2 * sum(shape.numel() for shape in shapes.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def make_data(folder: Path, model: Path, lengths: str) -> None:
    """Training data only: "alpaca", or the number of tokens of every sample; the example's words from random places on."""
    from finetuning.data.prompts.prompt_format import load_prompt_format
    from finetuning.data.prompts.tokenizer import open_tokenizer

    prompt_format, tokenizer = load_prompt_format(model, None, None), open_tokenizer(model / "tokenizer.json")
    words = (ROOT / "examples" / "data" / "alpaca" / "training.jsonl").read_text(encoding="utf-8").replace("\n", " ")
    ids = tokenizer.encode(words, add_special_tokens=False).ids
    chance = random.Random(1)
    around = len(prompt_format.encode(Sample(1, "", ""))[0])
    folder.mkdir(parents=True)
    with (folder / "training.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(4096 if lengths == "alpaca" else 64):
            if lengths != "alpaca":
                wanted = int(lengths)
            else:
                wanted = min(LONGEST_TOKENS, max(around + 8, round(chance.lognormvariate(0, SIGMA) * MEDIAN_TOKENS)))
            file.write(json.dumps(_sample(prompt_format, tokenizer, ids, wanted, chance), ensure_ascii=False) + "\n")


def _sample(prompt_format, tokenizer, ids: list[int], wanted: int, chance: random.Random) -> dict[str, str]:  # type: ignore[no-untyped-def]
    """A sample of about `wanted` tokens, never more; text that is cut inside a character encodes to other tokens again."""
    question = tokenizer.decode(ids[:16])
    answer_tokens = wanted - len(prompt_format.encode(Sample(1, question, ""))[0])
    start = chance.randrange(len(ids))
    taken = [ids[(start + i) % len(ids)] for i in range(max(8, answer_tokens))]
    while True:
        answer = tokenizer.decode(taken)
        excess = len(prompt_format.encode(Sample(1, question, answer))[0]) - wanted
        if excess <= 0 or len(taken) <= 8:
            return {"input": question, "output": answer}
        taken = taken[:-excess]


def machine() -> dict[str, object]:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "date": time.strftime("%Y-%m-%d")}


if __name__ == "__main__":
    main()
