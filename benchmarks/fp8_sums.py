"""What the way in which Hopper adds fp8 products does to the gradients of a trained model, imitated on a CPU.

Its matrix units align 32 products with the sum so far and keep 13 bits below the largest one's first; what is smaller is cut
off (DeepSeek-V3's report, section 3.3.2, and measurements by others). cuBLAS can be asked to add such sums up in float32 every
now and then (`use_fast_accum=False`); here every 128 products.

The model and its data are those of numerics.py, small: all weights are trained, then adapters (or all weights again) in plain
float32. From there the gradients of one batch are compared, by layer, with those of plain float32:

    exact          fp8 operands, sums in float32
    hopper         sums as Hopper makes them
    head-...       with adapters: the gradient of the hidden states through the head in fp8, too; the command does head-promoted
    promoted-...   with all weights: weight gradients added up in float32 every 128 products

    python benchmarks/fp8_sums.py --work /tmp/sums                # 10 minutes on two cores
    python benchmarks/fp8_sums.py --work /tmp/sums --mode full
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from numerics import REFERENCE, Scale, Study, cosine_by_layer, make_tiny_model, start_process, views, write_data
from one_gpu import machine
from torch import Tensor

from finetuning.config.strategy import FUSED, HEAD_GRADIENT, LINEAR, Strategy
from finetuning.formats.load_sharded import load_base_weights
from finetuning.model import cross_entropy
from finetuning.model.blocks import frozen_linear, trainable_linear
from finetuning.model.llama import Head
from finetuning.parallel.parallelize import ParallelLlama, build_model
from finetuning.parallel.weights import fill
from finetuning.train import Worker

BITS = 13  # below the first of the largest addend
DEPTH = 32  # products that are added at once
PROMOTED_AFTER = 128
ELEMENTS = 2e7  # of an intermediate result

SCALE = Scale(
    {
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 768,
        "vocab_size": 8192,
    },
    samples=1024,
    batch=8,
    base_steps=400,
    steps={"lora": 300, "full": 200},
    longest_characters=900,
    seq_length=2048,
    base_rate=1.5e-3,
    initializer_range=0.06,
)
Product = Callable[[tuple[Tensor, Tensor], tuple[Tensor, Tensor], torch.dtype], Tensor]


@dataclass(frozen=True)
class Way:
    """How products in fp8 are added up, and which there are."""

    products: Product
    weight_gradients: Product
    head: Product | None = None  # of the gradient of the hidden states


def exact(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    return ((x[0].float() @ y[0].float().t()) * x[1] * y[1].t()).to(dtype)


def hopper(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    return (hopper_sums(x[0].float(), y[0].float()) * x[1] * y[1].t()).to(dtype)


def promoted(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    pairs = zip(x[0].float().split(PROMOTED_AFTER, 1), y[0].float().split(PROMOTED_AFTER, 1), strict=True)
    return (torch.stack([hopper_sums(*pair) for pair in pairs]).sum(0) * x[1] * y[1].t()).to(dtype)


def hopper_sums(x_TI: Tensor, y_OI: Tensor) -> Tensor:
    """x y^T [T, O] of values that fp8 can hold, in float32."""
    rows = max(1, int(ELEMENTS / (len(y_OI) * DEPTH)))
    return torch.cat([_hopper_sums(part, y_OI) for part in x_TI.split(rows)])


def _hopper_sums(x_TI: Tensor, y_OI: Tensor) -> Tensor:
    total_TO = x_TI.new_zeros(len(x_TI), len(y_OI))
    for x, y in zip(x_TI.split(DEPTH, 1), y_OI.split(DEPTH, 1), strict=True):
        products = x[:, None] * y[None]
        largest = torch.maximum(products.abs().amax(-1), total_TO.abs()).clamp_min(1e-30)
        step = torch.exp2(largest.log2().floor() - BITS)
        total_TO = (total_TO / step).trunc_().add_((products / step[..., None]).trunc_().sum(-1)).mul_(step)
    return total_TO


WAYS = {
    "lora": {
        "exact": Way(exact, exact),
        "hopper": Way(hopper, hopper),
        "head-exact": Way(exact, exact, exact),
        "head-promoted": Way(hopper, hopper, promoted),
        "head-hopper": Way(hopper, hopper, hopper),
    },
    "full": {"exact": Way(exact, exact), "hopper": Way(hopper, hopper), "promoted-gradients": Way(hopper, promoted)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for model, data and tokens")
    parser.add_argument("--mode", choices=WAYS, default="lora")
    parser.add_argument("--ways", nargs="+", help="these only")
    parser.add_argument("--out", type=Path, help="where to write the results as JSON")
    arguments = parser.parse_args()
    start_process()
    arguments.work.mkdir(parents=True, exist_ok=True)
    study = Sums(arguments.work, SCALE, arguments.mode, SCALE.steps[arguments.mode])
    results = {}
    for name, cosines in study.cosines({name: WAYS[arguments.mode][name] for name in arguments.ways or WAYS[arguments.mode]}):
        results[name] = {"smallest": min(cosines.values()), "median": statistics.median(cosines.values()), "by_layer": cosines}
        print(json.dumps({name: results[name]}), flush=True)
        if arguments.out:
            head = machine() | {"mode": arguments.mode, "base": study.found}
            arguments.out.write_text(json.dumps({"machine": head, "results": results}, indent=1) + "\n", encoding="utf-8")
    torch.distributed.destroy_process_group()


class Sums(Study):
    """A model trained in float32, and its gradients in fp8."""

    def cosines(self, ways: dict[str, Way]) -> Iterator[tuple[str, dict[str, float]]]:
        write_data(self.work, self.scale)
        if not self.model.is_dir():
            first = self.work / "data-base" / "training.jsonl"
            make_tiny_model(self.model, **self.scale.shape, initializer_range=self.scale.initializer_range, training_file=first)
        self.found = self._train_base()
        report: dict[str, dict[str, object]] = {"variants": {}}
        reference = self._variant(REFERENCE, "--optimizer_states fp32" if self.mode == "full" else "", None, report)
        assert reference is not None, report
        worker = self._worker("data-second", f"--peft {self._peft} --max_steps {self.steps}")
        for name, way in ways.items():
            net = self._in_fp8(worker, head=way.head is not None)
            self._fill(net, worker)
            for key, view in views(net).items():
                fill(view, reference.trained[key])
            with added_up(way):
                yield name, cosine_by_layer(reference.gradients, self._gradients(worker, net))

    def _in_fp8(self, worker: Worker, *, head: bool) -> ParallelLlama:
        """What the command builds for --fp8 on a GPU, where it refuses that on a CPU; without fp8 in the head, if so asked."""
        config, lora = worker.config, self.mode == "lora"
        strategy = Strategy(
            lora_rank=config.lora_rank if lora else None,
            lora_alpha=config.standard_alpha,
            lora_targets=config.lora_targets if lora else (),
            compute_dtype="bfloat16",
            sharding=worker.run.strategy.sharding,
            blocks=FUSED,
            fp8=(LINEAR, HEAD_GRADIENT) if lora else (LINEAR,),
            optimizer_states="fp32" if lora else "bf16",
            degrees=worker.layout.degrees,
        )
        net = build_model(worker.llama_config, worker.layout, self.device, strategy)
        load_base_weights(worker.model_path, net)
        for module in net.modules():
            if isinstance(module, Head):
                module.fp8_gradient = head
        return net


@contextmanager
def added_up(way: Way) -> Iterator[None]:
    """Products in fp8 are made in this way."""
    add_gradient = trainable_linear.TrainableFp8Matrix.add_gradient

    def with_weight_gradients(matrix: trainable_linear.TrainableFp8Matrix, grad_TO: Tensor, x_TI: Tensor) -> None:
        with patch.object(trainable_linear, "scaled_product", way.weight_gradients):
            add_gradient(matrix, grad_TO, x_TI)

    with (
        patch.object(frozen_linear, "scaled_product", way.products),
        patch.object(trainable_linear, "scaled_product", way.products),
        patch.object(trainable_linear.TrainableFp8Matrix, "add_gradient", with_weight_gradients),
        patch.object(cross_entropy, "scaled_product", lambda x, y, dtype, fast_sums: (way.head or exact)(x, y, dtype)),
    ):
        yield


if __name__ == "__main__":
    sys.exit(main())
