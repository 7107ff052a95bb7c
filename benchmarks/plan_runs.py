"""Steps of many models and settings on one GPU, for `plan.py` to hold against `finetune plan`; and the rates that plan uses.

Runs the real step (`finetuning.training.step`) on random weights and tokens, without data, checkpoints or Lightning: a case is
a model of 1B to 70B shape (of some layers), what is trained, and packs of one length. Each case is a process of its own. Tells
the most memory that tensors took, what the allocator held, what the GPU had in use, seconds of a step, tokens per second and
power. --rates measures products by shape, attention by length of documents, copies.

    python benchmarks/plan_runs.py --out runs.json                        # about 4 minutes on an H200
    python benchmarks/plan_runs.py --cases 8b-lora-24576 --rates --out one.json
    python benchmarks/plan_runs.py --device cpu --small --steps 2         # to try the script
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks.gpu import GpuSampler, driver  # noqa: E402
from finetuning.config.llama import LlamaConfig  # noqa: E402
from finetuning.config.resolve import resolve  # noqa: E402
from finetuning.config.settings import RunConfig  # noqa: E402
from finetuning.data.batches.global_batch import MicroBatch, StepBatch  # noqa: E402
from finetuning.model.attention import (  # noqa: E402
    attention_backward,
    attention_forward,
    attention_kernel,
    make_documents,
)
from finetuning.model.cross_entropy import IGNORED_LABEL, count_targets  # noqa: E402
from finetuning.model.kernels.ops import quantize_rows, scaled_product  # noqa: E402
from finetuning.parallel.mesh import Layout  # noqa: E402
from finetuning.parallel.parallelize import ParallelLlama, adapter_parameters, base_groups, build_model  # noqa: E402
from finetuning.parallel.weights import local_part  # noqa: E402
from finetuning.training.optimizer import build_optimizer, gradient_scaler  # noqa: E402
from finetuning.training.step import train_step  # noqa: E402

WARM_UP_STEPS = 3
MEDIAN_TOKENS, SIGMA, LONGEST_TOKENS = 180, 0.9, 2000  # short documents, as in one_gpu.py
TARGET_SHARE = {"short": 0.76, "one": 0.99}
SHAPES = {
    "1b": (128256, 2048, 8192, 16, 32, 8, 64, True),
    "3b": (128256, 3072, 8192, 28, 24, 8, 128, True),
    "8b": (128256, 4096, 14336, 32, 32, 8, 128, False),
    "70b": (128256, 8192, 28672, 80, 64, 8, 128, False),
}


@dataclass(frozen=True)
class Case:
    shape: str
    flags: dict[str, Any]
    row_length: int
    lengths: str = "short"  # of documents: short, or one that fills the pack
    layers: int | None = None  # fewer than the model has
    packs: int = 2  # of a step
    steps: int = 7


LORA: dict[str, Any] = {"peft": "lora"}
# The most telling ones first.
CASES = {
    "8b-lora-24576": Case("8b", LORA, 24576, packs=1),
    "1b-full-24576": Case("1b", {}, 24576),
    "3b-lora-fp8-24576": Case("3b", LORA | {"fp8": True}, 24576),
    "3b-full-8192": Case("3b", {}, 8192, "one"),
    "1b-lora-24576": Case("1b", LORA, 24576),
    "8b-full-8bit-8192": Case("8b", {"optimizer_states": "8bit"}, 8192, "one", steps=6),
    "8b-4-lora-least-131072": Case("8b", LORA | {"least_memory": True}, 131072, "one", layers=4, packs=1, steps=5),
    "70b-8-lora-fp8-least-8192": Case("70b", LORA | {"fp8": True, "least_memory": True}, 8192, "one", layers=8),
    "8b-lora-recomputed-8192": Case("8b", LORA | {"activation_checkpointing": "full"}, 8192, "one", steps=6),
    "70b-4-full-8192": Case("70b", {}, 8192, "one", layers=4, steps=6),
    "8b-4-lora-recomputed-131072": Case(
        "8b", LORA | {"activation_checkpointing": "full"}, 131072, "one", layers=4, packs=1, steps=5
    ),
    "3b-full-fp8-24576": Case("3b", {"fp8": True}, 24576),
    "8b-lora-selective-24576": Case("8b", LORA | {"activation_checkpointing": "selective"}, 24576, packs=1, steps=6),
    "70b-8-lora-8192": Case("70b", LORA, 8192, "one", layers=8, steps=6),
    "8b-lora-fp8-24576": Case("8b", LORA | {"fp8": True}, 24576, packs=1),
    "8b-full-fp8-8192": Case("8b", {"fp8": True}, 8192, "one", steps=6),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--rates", action="store_true", help="also products, attention and copies")
    parser.add_argument("--steps", type=int, help="instead of each case's own")
    parser.add_argument("--seconds", type=float, default=600, help="no case is begun later than this after the start")
    parser.add_argument("--small", action="store_true", help="narrow layers and short packs, to try the script")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, help="where to keep the results as JSON")
    given = parser.parse_args()
    found: dict[str, Any] = {"machine": {"torch": torch.__version__, "cuda": torch.version.cuda} | driver(), "runs": []}
    found["machine"]["date"] = time.strftime("%Y-%m-%d")
    jobs: list[tuple[str, Callable[..., Any], tuple[Any, ...]]] = [
        (name, run_case, (name, given.device, given.small, given.steps)) for name in given.cases
    ]
    if given.rates:
        jobs.insert(0, ("rates", measure_rates, (given.device, given.small)))
    began_s = time.monotonic()
    for name, function, arguments in jobs:
        if time.monotonic() - began_s > given.seconds:
            break
        result = in_process(function, arguments)
        if name == "rates":
            found["rates"] = result
        else:
            found["runs"].append({"case": name} | result)
        print(name, json.dumps(result), flush=True)
        if given.out:
            given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def in_process(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """What the function returns, from a process that has all imports of this one and leaves no memory behind."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        return {"exit_code": process.exitcode}
    finally:
        process.join()


def _send(sender: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    sender.send(function(*arguments))


def model_of(case: Case, *, small: bool) -> LlamaConfig:
    vocabulary, hidden, inner, layers, heads, key_value_heads, head_dim, tied = SHAPES[case.shape]
    layers = case.layers or layers
    if small:
        vocabulary, hidden, inner, layers, heads, key_value_heads, head_dim = 1024, 64, 128, 2, 4, 2, 32
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        rope_scaling=None,
        max_position_embeddings=131072,
        tie_word_embeddings=tied,
        dtype="bfloat16",
    )


def run_case(name: str, device_type: str, small: bool, steps: int | None) -> dict[str, Any]:
    case, device = CASES[name], torch.device(device_type)
    model_config = model_of(case, small=small)
    length = case.row_length // (64 if small else 1)
    config = RunConfig(
        hf_model_id="random", dataset_path="random", num_gpus=1, seq_length=length, row_length=length, **case.flags
    )
    strategy = resolve(config, model_config, 1000.0, on_gpu=True)
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    if device_type == "cuda":
        torch.cuda.set_device(0)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo")
    began_s = time.perf_counter()
    model = build_model(model_config, Layout(device_type, strategy.degrees), device, strategy)
    fill(model, device)
    optimizer = build_optimizer(
        model,
        learning_rate=1e-5,
        betas=(0.9, 0.98),
        eps=1e-8,
        weight_decay=0.1,
        fused=device_type == "cuda",
        states=strategy.optimizer_states,
    )
    built_s = time.perf_counter() - began_s
    chance, seconds, losses = random.Random(1), list[float](), list[float]()
    count = steps or case.steps
    with GpuSampler() as sampler:
        for step in range(count):
            rows = [make_pack(length, case.lengths, model_config.vocab_size, chance) for _ in range(case.packs)]
            batch = as_step(step, rows)
            if step == min(WARM_UP_STEPS, count - 1):
                window_began = time.time()
            synchronize(device)
            began_s = time.perf_counter()
            result = train_step(
                model, batch, optimizer.step, scale=gradient_scaler(optimizer), clip_grad=1.0, stop=False, save=False
            )
            optimizer.zero_grad()
            synchronize(device)
            seconds.append(time.perf_counter() - began_s)
            losses.append(result.loss)
        means = sampler.means(window_began, time.time())
    steady = seconds[WARM_UP_STEPS:] or seconds[-1:]
    tokens = length * case.packs
    lengths = [document_lengths(row) for row in rows]
    found = {
        "model": dataclasses.asdict(model_config) | {"rope_scaling": None},
        "flags": case.flags,
        "row_length": length,
        "packs": case.packs,
        "documents": case.lengths,
        "mean_squared_length": round(statistics.mean(n * n for row in lengths for n in row)),
        "documents_of_a_pack": round(statistics.mean(map(len, lengths)), 1),
        "targets": TARGET_SHARE[case.lengths],
        "attention": attention_kernel(device, torch.bfloat16),
        "blocks": strategy.blocks,
        "build_s": round(built_s, 1),
        "first_step_s": round(seconds[0], 2),
        "step_s": round(statistics.median(steady), 4),
        "tokens_per_second": round(tokens / statistics.median(steady)),
        "losses": [losses[0], losses[-1]],
    } | means
    if device_type == "cuda":
        free, total = torch.cuda.mem_get_info()
        found |= {
            "memory_gib": torch.cuda.max_memory_allocated() / 2**30,
            "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
            "in_use_gib": (total - free) / 2**30,
            "total_gib": total / 2**30,
            "retries": torch.cuda.memory_stats()["num_alloc_retries"],
        }
    return found


def fill(model: ParallelLlama, device: torch.device) -> None:
    """Random weights; norms are 1."""
    generator = torch.Generator(device).manual_seed(1)
    with torch.no_grad():
        for group in base_groups(model):
            for value in group.values():
                local = local_part(value)
                made = torch.ones(local.shape, dtype=local.dtype, device=device)
                local.copy_(made.normal_(0, 0.02, generator=generator) if local.ndim > 1 else made)
        for name, value in adapter_parameters(model).items():
            local_part(value).zero_() if "lora_B" in name else local_part(value).normal_(0, 0.02)
    model.base_loaded()


def make_pack(length: int, lengths: str, vocabulary: int, chance: random.Random) -> MicroBatch:
    """A full pack of random tokens; the first part of each document is no target."""
    documents: list[int] = []
    while (left := length - sum(documents)) > 0:
        wanted = length if lengths == "one" else round(chance.lognormvariate(0, SIGMA) * MEDIAN_TOKENS)
        documents.append(min(left, max(2, min(wanted, length if lengths == "one" else LONGEST_TOKENS))))
    tokens = torch.from_numpy(np.random.default_rng(chance.randrange(2**31)).integers(0, vocabulary, (1, length)))
    labels = tokens.roll(-1, 1)
    start = 0
    for count in documents:
        labels[0, start : start + round(count * (1 - TARGET_SHARE[lengths]))] = IGNORED_LABEL
        start += count
    positions = torch.cat([torch.arange(count) for count in documents])[None]
    return MicroBatch(tokens, positions, labels, make_documents(documents), count_targets(labels))


def document_lengths(row: MicroBatch) -> list[int]:
    count = int(row.documents.extent[0])
    return row.documents.boundaries[: count + 1].diff().tolist()


def as_step(step: int, rows: list[MicroBatch]) -> StepBatch:
    targets, tokens = sum(row.num_targets for row in rows), sum(row.tokens.numel() for row in rows)
    return StepBatch(step, rows, targets, targets, tokens, tokens, 0.0, np.arange(len(rows)))


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


# Rates. They are taken one directly after the other, so that the card stands at its power limit.

WARM_S, TIMED_S = 0.15, 0.2
# Outputs and inputs of products: those of 1B, 3B, 8B and 70B blocks, of 8B with tensor parallel 2, 4 and 8, and heads.
PRODUCTS = (
    (3072, 2048),
    (16384, 2048),
    (2048, 8192),
    (5120, 3072),
    (16384, 3072),
    (3072, 8192),
    (6144, 4096),
    (4096, 4096),
    (28672, 4096),
    (4096, 14336),
    (14336, 4096),
    (4096, 7168),
    (7168, 4096),
    (4096, 3584),
    (3584, 4096),
    (4096, 1792),
    (10240, 8192),
    (57344, 8192),
    (8192, 28672),
    (128256, 4096),
    (128256, 2048),
)
PRODUCT_TOKENS = (2048, 8192, 24576)
ATTENTION_LENGTHS = (128, 256, 512, 1024, 2048, 8192, 32768, 131072)
ATTENTION_TOKENS = 16384
HEADS = ((32, 8, 128), (32, 8, 64))  # query heads, key/value heads, head dimension


def measure_rates(device_type: str, small: bool) -> dict[str, Any]:
    device, smaller = torch.device(device_type), 64 if small else 1
    products = []
    for outputs, inputs in PRODUCTS:
        for tokens in PRODUCT_TOKENS:
            if tokens * outputs // smaller > 2**31 or (tokens != 8192 and (outputs, inputs) not in PRODUCTS[:11:5]):
                continue
            shape = (tokens // smaller, outputs // smaller, inputs // smaller)
            rate = {"tokens": tokens, "outputs": outputs, "inputs": inputs} | product_rates(shape, device)
            products.append(rate)
    attention = [
        {"heads": heads, "documents_of": length} | attention_rates(length // smaller, heads, device)
        for heads in HEADS
        for length in ATTENTION_LENGTHS
    ]
    return {"products": products, "attention": attention, "kernel": attention_kernel(device, torch.bfloat16)} | copies(device)


def product_rates(shape: tuple[int, int, int], device: torch.device) -> dict[str, float]:
    """TFLOP/s of x W^T, of dy W and of dy^T x in bfloat16, and of x W^T in fp8."""
    tokens, outputs, inputs = shape
    x, w, dy = (
        torch.randn(size, device=device, dtype=torch.bfloat16) * 0.02
        for size in ((tokens, inputs), (outputs, inputs), (tokens, outputs))
    )
    flop = 2 * tokens * outputs * inputs
    forms: dict[str, Callable[[], Tensor]] = {"forward": lambda: F.linear(x, w), "input": lambda: dy @ w}
    gradient = torch.zeros_like(w)
    forms["weight"] = lambda: gradient.addmm_(dy.t(), x)
    if device.type == "cuda":
        qx, qw = quantize_rows(x), quantize_rows(w)
        forms["fp8"] = lambda: scaled_product(qx, qw, torch.bfloat16)
    return {name: round(flop / seconds_of(form, device) / 1e12, 1) for name, form in forms.items()}


def attention_rates(length: int, heads: tuple[int, int, int], device: torch.device) -> dict[str, float]:
    """Milliseconds of all documents of a pack, forward and backward."""
    query, key_value, dim = heads
    tokens = max(length, ATTENTION_TOKENS if device.type == "cuda" else length)
    q, k, v, grad = (
        torch.randn(tokens, n, dim, device=device, dtype=torch.bfloat16) for n in (query, key_value, key_value, query)
    )
    documents = make_documents([length] * (tokens // length)).to(device)
    out, logsumexp = attention_forward(q, k, v, documents)
    forward = seconds_of(lambda: attention_forward(q, k, v, documents)[0], device)
    backward = seconds_of(lambda: attention_backward(grad, q, k, v, out, logsumexp, documents)[0], device)
    return {"tokens": tokens, "forward_ms": round(1000 * forward, 4), "backward_ms": round(1000 * backward, 4)}


def copies(device: torch.device) -> dict[str, float]:
    """Bytes a second: read and written on the GPU, and from and to pinned memory of the host."""
    if device.type != "cuda":
        return {}
    here, there = (torch.empty(2**30, dtype=torch.uint8, device=device) for _ in range(2))
    host = torch.empty(2**30, dtype=torch.uint8, pin_memory=True)
    return {
        "copy_bytes_per_s": 2 * 2**30 / seconds_of(lambda: there.copy_(here), device),
        "to_host_bytes_per_s": 2**30 / seconds_of(lambda: host.copy_(here, non_blocking=True), device),
        "from_host_bytes_per_s": 2**30 / seconds_of(lambda: here.copy_(host, non_blocking=True), device),
    }


def seconds_of(function: Callable[[], object], device: torch.device) -> float:
    warm_s, timed_s = (WARM_S, TIMED_S) if device.type == "cuda" else (0.0, 0.0)
    began_s, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - began_s < warm_s:
        function()
        count += 1
        if count % 8 == 0:
            synchronize(device)
    synchronize(device)
    each_s = (time.perf_counter() - began_s) / count
    repeats = max(1, round(timed_s / each_s))
    began_s = time.perf_counter()
    for _ in range(repeats):
        function()
    synchronize(device)
    return (time.perf_counter() - began_s) / repeats


if __name__ == "__main__":
    main()
