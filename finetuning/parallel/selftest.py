"""Is a layout right on this machine? Loss and every gradient of a tiny model, compared with one process.

`finetune selftest` starts this file through torchrun. All processes run one training batch of packed rows in the chosen
layout; rank 0 runs the same rows through the plain model and compares. Weights and rows are random but fixed, and adapters
are filled, so that no gradient is zero by construction. The last rows have nothing to train: some process has no loss.
"""

import dataclasses
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuning.runtime.garbage import end_imports
from finetuning.runtime.process_lifetime import begin_worker

if __name__ == "__main__":  # before the imports below, which take seconds
    begin_worker()

# isort: split
import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import Tensor

from finetuning.config.degrees import Degrees
from finetuning.config.llama import LlamaConfig
from finetuning.config.rope import RopeScaling
from finetuning.config.settings import LORA_TARGETS
from finetuning.config.stages import stage_indices
from finetuning.config.strategy import FUSED, PLAIN, Strategy, spread
from finetuning.data.batches.global_batch import MicroBatch, StepBatch
from finetuning.i18n import language_of_environment, set_language, t
from finetuning.model.attention import make_documents
from finetuning.model.cross_entropy import IGNORED_LABEL, count_targets
from finetuning.model.llama import Llama
from finetuning.model.lora import add_lora, is_adapter
from finetuning.parallel.mesh import Layout
from finetuning.parallel.parallelize import ParallelLlama, build_model, trainable_dtype
from finetuning.parallel.weights import fill

# Largest difference of an entry, relative to the 2-norm of the gradient. Sums in another order differ by some 1e-7 in float32
# and 1e-16 in float64; the gradient of a lost document, head or process differs by more than 1e-3.
TOLERANCE = 1e-6
EXACT_TOLERANCE = 1e-12
# The same with bfloat16 in the layout and float32 in the one process: a gradient goes through some thirty products, each
# rounded to 2^-9 = 2e-3.
HALF_TOLERANCE = 5e-2
DTYPES = {
    "float64": (torch.float64, EXACT_TOLERANCE),
    "float32": (torch.float32, TOLERANCE),
    "bfloat16": (torch.bfloat16, HALF_TOLERANCE),
}
LONGEST_DOCUMENT = 40


def main(spec: dict[str, Any]) -> int:
    """This process's part of `finetune selftest`; rank 0 prints the table. Returns 1 when some row is not equal."""
    set_language(language_of_environment())
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    degrees = Degrees(
        pp=spec["pipeline_model_parallel_size"],
        dp_replicate=spec["data_parallel_replicate_size"],
        dp_shard=spec["data_parallel_size"] // spec["data_parallel_replicate_size"],
        cp=spec["context_parallel_size"],
        tp=spec["tensor_model_parallel_size"],
    )
    layout = Layout(device.type, degrees)
    schedule = spec["pipeline_schedule"]
    stages_per_rank = len(stage_indices(schedule, degrees.pp, 0))
    config = tiny_config(degrees, stages_per_rank=stages_per_rank)
    rows = random_rows(config, 2 * degrees.data_parallel * degrees.pp, 16 * degrees.cp * degrees.tp)
    found: list[tuple[str, Comparison, float]] = []
    for peft in spec["peft"]:
        for dtype_name in spec["dtypes"]:
            dtype, tolerance = DTYPES[dtype_name]
            fused = peft in spec["fused"] and _fused_is_exact(peft, dtype, on_gpu)
            strategy = _strategy(spec, peft, schedule, dtype_name, degrees, fused=fused)
            # The kernels of fused LoRA blocks multiply by halves of heads, in tiles of 16 at least.
            of_case = dataclasses.replace(config, head_dim=32) if fused else config
            comparison = compare(of_case, strategy, layout, rows, device)
            if comparison is not None:
                name = ", ".join(("LoRA" if peft == "lora" else t("all weights"), dtype_name, *([t("fused")] if fused else [])))
                found.append((name, comparison, tolerance))
    equal = torch.tensor(float(all(comparison.equal(tolerance) for _, comparison, tolerance in found)))
    dist.broadcast(equal, src=0)
    if found:
        Console(width=130).print(_table(str(degrees), found))
        if spec["json"]:
            write_json(Path(spec["json"]), str(degrees), found)
    dist.destroy_process_group()
    return 0 if equal else 1


def _fused_is_exact(peft: str, dtype: torch.dtype, on_gpu: bool) -> bool:
    """Fused blocks compute between products in float32, and add updates of adapters in TF32 on GPUs."""
    return dtype == torch.bfloat16 or (dtype == torch.float32 and not (on_gpu and peft == "lora"))


def _strategy(spec: dict[str, Any], peft: str, schedule: str, dtype_name: str, degrees: Degrees, *, fused: bool) -> Strategy:
    lora = peft == "lora"
    by_default = "replicated" if lora else "step" if degrees.pp > 1 else "full"
    return Strategy(
        blocks=FUSED if fused else PLAIN,
        compute_dtype=dtype_name,
        optimizer_states="bf16" if fused and not lora and dtype_name == "bfloat16" else "fp32",  # as in training
        lora_rank=3 if lora else None,
        lora_alpha=6.0,
        lora_targets=LORA_TARGETS if lora else (),
        sharding=by_default if spec["sharding"] == "auto" else spec["sharding"],
        activation_checkpointing=spec["activation_checkpointing"].replace("auto", "none"),
        pipeline_schedule=schedule,
    )


def _table(layout: str, found: list[tuple[str, "Comparison", float]]) -> Table:
    table = Table(title=t("{layout} against one process", layout=layout))
    heads = (
        t("trained"),
        t("loss"),
        t("one process"),
        t("gradient norm"),
        t("one process"),
        t("largest difference"),
        t("limit"),
    )
    for head in (*heads, t("verdict")):
        table.add_column(head, justify="left" if head == heads[0] else "right")
    for name, comparison, tolerance in found:
        table.add_row(
            name,
            f"{comparison.loss:.6f}",
            f"{comparison.expected_loss:.6f}",
            f"{comparison.grad_norm:.6f}",
            f"{comparison.expected_grad_norm:.6f}",
            f"{comparison.worst[1]:.1e}",
            f"{tolerance:.0e}",
            t("equal") if comparison.equal(tolerance) else t("NOT EQUAL: {weight}", weight=comparison.worst[0]),
        )
    return table


def write_json(path: Path, layout: str, found: list[tuple[str, "Comparison", float]]) -> None:
    """The table for programs."""
    rows = [
        {
            "trained": name,
            "loss": comparison.loss,
            "expected_loss": comparison.expected_loss,
            "grad_norm": comparison.grad_norm,
            "expected_grad_norm": comparison.expected_grad_norm,
            "largest_difference": comparison.worst[1],
            "in": comparison.worst[0],
            "limit": tolerance,
            "equal": comparison.equal(tolerance),
        }
        for name, comparison, tolerance in found
    ]
    path.write_text(json.dumps({"layout": layout, "rows": rows}, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Comparison:
    """One layout against one process."""

    loss: float
    expected_loss: float
    grad_norm: float
    expected_grad_norm: float
    differences: dict[str, float]  # weight -> largest difference in its gradient, relative to the gradient's 2-norm
    of_largest: dict[str, float]  # the same, relative to the gradient's largest entry

    @property
    def worst(self) -> tuple[str, float]:
        return max(self.differences.items(), key=lambda item: item[1])

    def equal(self, tolerance: float = TOLERANCE) -> bool:
        losses = abs(self.loss - self.expected_loss) <= tolerance * abs(self.expected_loss)
        norms = abs(self.grad_norm - self.expected_grad_norm) <= tolerance * self.expected_grad_norm
        return losses and norms and self.worst[1] <= tolerance


def tiny_config(degrees: Degrees, *, stages_per_rank: int = 1, tied: bool = False) -> LlamaConfig:
    """A Llama that the degrees divide: 2 query heads for each of max(4, tp) key/value heads."""
    key_value_heads = max(4, degrees.tp)
    return LlamaConfig(
        vocab_size=32 * max(4, degrees.tp),
        hidden_size=16 * key_value_heads,
        intermediate_size=24 * key_value_heads,
        num_hidden_layers=max(4, degrees.pp * stages_per_rank),
        num_attention_heads=2 * key_value_heads,
        num_key_value_heads=key_value_heads,
        head_dim=8,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16),
        max_position_embeddings=4096,
        tie_word_embeddings=tied,
        dtype="float32",
    )


def random_rows(config: LlamaConfig, num_rows: int, length: int) -> list[MicroBatch]:
    """Rows of documents of random length, with about half of each trained, by weights; none in the last quarter of the rows."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for index in range(num_rows):
        lengths: list[int] = []
        while (left := length - sum(lengths)) > 0:
            lengths.append(min(left, int(torch.randint(1, min(LONGEST_DOCUMENT, length) + 1, (), generator=generator))))
        tokens = torch.randint(0, config.vocab_size, (1, length), generator=generator)
        labels = tokens.roll(-1, 1)
        prompt = torch.rand((1, length), generator=generator) < 0.3 + 0.4 * index / num_rows
        labels[prompt] = IGNORED_LABEL
        labels[0, torch.tensor(lengths).cumsum(0) - 1] = IGNORED_LABEL
        if index >= num_rows - num_rows // 4:
            labels.fill_(IGNORED_LABEL)
        positions = torch.cat([torch.arange(count) for count in lengths])[None]
        weights = 0.25 * torch.randint(1, 5, (1, length), generator=generator)
        rows.append(MicroBatch(tokens, positions, labels, make_documents(lengths), count_targets(labels), weights))
    return rows


def share_of(rows: list[MicroBatch], data_rank: int, data_parallel: int) -> StepBatch:
    """The rows of one data-parallel rank: neighbors, so that the last one may have no loss at all."""
    each = len(rows) // data_parallel
    answer_tokens = sum(row.num_targets for row in rows)
    tokens = sum(row.tokens.numel() for row in rows)
    share, divisor = rows[data_rank * each : (data_rank + 1) * each], sum(map(_weight_of, rows))
    return StepBatch(0, share, answer_tokens, divisor, tokens, tokens, 0.0, np.arange(len(rows)))


def _weight_of(row: MicroBatch) -> float:
    assert row.weights is not None
    return float(row.weights[row.labels != IGNORED_LABEL].double().sum())


def random_weight(name: str, shape: torch.Size) -> Tensor:
    """A value that depends on the name only, float32. Blocks add about half of what they get, so that the rounding of one
    block is not magnified by the next ones."""
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "little"))
    value = torch.randn(shape, generator=generator)
    return 1 + 0.2 * value if len(shape) == 1 else 0.5 * shape[1] ** -0.5 * value


def fill_randomly(model: ParallelLlama) -> None:
    """Every process must call it."""
    with torch.no_grad():
        for name, weight in model.weights().items():
            view = model.view(name, weight.data)
            fill(view, random_weight(name, view.shape))
    model.refresh_copies()


def one_process(
    config: LlamaConfig, strategy: Strategy, rows: list[MicroBatch], device: torch.device, dtype: torch.dtype
) -> tuple[float, float, dict[str, Tensor]]:
    """Loss, gradient norm and gradients of the plain model, computed in `dtype`, from the same float32 weights."""
    model = Llama(config)
    if strategy.lora_rank is not None:
        add_lora(model, strategy.lora_rank, strategy.lora_alpha, strategy.lora_targets)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(random_weight(name, weight.shape))
    model.to(device, dtype)
    batch = share_of(rows, 0, 1)
    total = 0.0
    for row in batch.micro_batches:
        row = row.to(device)
        loss = model(row.tokens, row.positions, row.documents, labels_BT=row.labels, weights_BT=row.weights)
        (loss / batch.divisor).backward()
        total += loss.item()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norm = math.sqrt(sum(float(gradient.double().pow(2).sum()) for gradient in gradients.values()))
    return total / batch.divisor, norm, gradients


def in_layout(
    config: LlamaConfig, strategy: Strategy, layout: Layout, rows: list[MicroBatch], device: torch.device
) -> tuple[float, float, dict[str, Tensor]]:
    """The same of the model spread over all processes; gradients on rank 0 only. Every process must call it."""
    model = build_model(config, layout, device, spread(strategy, config, layout.degrees))
    fill_randomly(model)
    batch = share_of(rows, layout.data_rank, layout.degrees.data_parallel)
    shared = torch.stack((model.backward(batch).double(), model.squared_gradient_norm()))
    dist.all_reduce(shared)
    return shared[0].item() / batch.divisor, math.sqrt(shared[1].item()), dict(whole_gradients(model))


def whole_gradients(model: ParallelLlama) -> Iterator[tuple[str, Tensor]]:
    """Every gradient, on rank 0; every process must call it and go to the end."""
    for name, shape in model.all_shapes().items():
        if model.trains_all or is_adapter(name):
            weight = model.trained.get(name)
            gradient = None
            if weight is not None:
                assert weight.grad is not None, f"{name} has no gradient"
                gradient = weight.grad
            whole = model.whole(name, gradient, shape, model.trainable_dtype)
            if whole is not None:
                yield name, whole


def compare(
    config: LlamaConfig, strategy: Strategy, layout: Layout, rows: list[MicroBatch], device: torch.device
) -> Comparison | None:
    """The layout against one process, on rank 0; None on the others. Every process must call it."""
    loss, norm, gradients = in_layout(config, strategy, layout, rows, device)
    if dist.get_rank() != 0:
        return None
    expected_loss, expected_norm, expected = one_process(config, strategy, rows, device, trainable_dtype(strategy))
    assert gradients.keys() == expected.keys()
    return Comparison(loss, expected_loss, norm, expected_norm, *differences_between(gradients, expected))


def differences_between(gradients: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[dict[str, float], dict[str, float]]:
    """The largest difference in each gradient, relative to its 2-norm and to its largest entry."""
    largest = {name: (gradients[name] - value).abs().max() for name, value in expected.items()}
    return (
        {name: (largest[name] / value.norm()).item() for name, value in expected.items()},
        {name: (largest[name] / value.abs().max()).item() for name, value in expected.items()},
    )


if __name__ == "__main__":
    end_imports()
    sys.exit(main(json.loads(sys.argv[1])))
