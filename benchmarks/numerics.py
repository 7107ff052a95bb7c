"""Do the fast paths learn what the plain one learns? Loss curves and gradients on learnable data, against plain float32.

The data are functions of Python's standard library: the question is a function's head and documentation, the answer its
body. A Llama of medium size is trained on half of the modules first, with all weights, so that it knows something (the
"base"). From it, on the other half and on the example's questions, each variant trains with the same start, order and steps:

    lora: plain float32 (blocks as written, nothing fused or compiled), the command's defaults, each technique off or on
    full: the same with all weights

The variants are flags of the command, given to the code that the command runs in its workers; --variant adds more.

    python benchmarks/numerics.py --work /tmp/numerics --out results
    python benchmarks/numerics.py --work /tmp/numerics --mode full --variant "name=--flag value" --out results
    python benchmarks/numerics.py --work /tmp/numerics --small          # on a CPU, to try the script

Reported for each variant, against plain float32: mean difference of the loss over the last hundred steps, difference of the
validation loss, the cosine between the gradients of one step from the same trained weights, by layer, and in which steps
something was compiled.
"""

import argparse
import ast
import dataclasses
import json
import os
import random
import statistics
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from compilations import CompilationCounter
from one_gpu import ROOT, machine
from rich.console import Console
from torch import Tensor

sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

from make_tiny_model import make_tiny_model  # noqa: E402

from finetuning.cli.main import build_parser  # noqa: E402
from finetuning.config.read_settings import config_from_dict  # noqa: E402
from finetuning.config.strategy import Strategy  # noqa: E402
from finetuning.data.batches.global_batch import GlobalBatches, StepBatch  # noqa: E402
from finetuning.errors import InputError  # noqa: E402
from finetuning.formats.load_sharded import load_base_weights  # noqa: E402
from finetuning.formats.peft.sharded import initialize_adapters  # noqa: E402
from finetuning.launch.prepare import prepare  # noqa: E402
from finetuning.parallel.parallelize import ParallelLlama, build_model  # noqa: E402
from finetuning.parallel.weights import fill, local_part  # noqa: E402
from finetuning.runtime.progress import Progress  # noqa: E402
from finetuning.runtime.stop_switch import StopSwitch  # noqa: E402
from finetuning.train import Worker  # noqa: E402
from finetuning.training.evaluate import evaluate  # noqa: E402
from finetuning.training.optimizer import gradient_scaler  # noqa: E402
from finetuning.training.step import train_step  # noqa: E402

Report = dict[str, Any]  # what is written as JSON


@dataclass(frozen=True)
class Limits:
    """Largest differences that pass, relative to plain float32, and the smallest cosine of a layer's gradients."""

    curve: float
    validation: float
    cosine: float


# A gradient goes through some 60 products. bfloat16 rounds to 2^-9: if the errors add up like noise, 60^0.5 * 2^-9 = 1.5 %,
# and a cosine of 1 - 0.015² / 2 = 0.9999; correlated, ten times the error and 0.99. fp8 (e4m3) rounds to 2^-4, with a factor
# for each row: about 3 % for each product, 20 % in all, and 0.98; correlated 0.9. Losses average over steps.
BFLOAT16 = Limits(curve=0.005, validation=0.005, cosine=0.99)
FP8 = Limits(curve=0.01, validation=0.01, cosine=0.9)
REFERENCE = "float32"
LAST_STEPS = 100
FULL_LAYERS = 8  # with all weights, or plain float32 takes too long
# Variant -> flags. The first is what the command does by itself; the others switch one thing.
VARIANTS = {
    "lora": {
        "default": "",
        "compile-off": "--compile off",
        "recompute": "--activation_checkpointing full",
        "fp8": "--fp8",
    },
    "full": {
        "default": "",
        "compile-off": "--compile off",
        "states-fp32": "--optimizer_states fp32",
        "states-8bit": "--optimizer_states 8bit",
        "fp8": "--fp8",
    },
}


@dataclass(frozen=True)
class Scale:
    """Sizes of one use of the script."""

    shape: dict[str, int]
    samples: int  # of each half of the data
    batch: int
    base_steps: int
    steps: dict[str, int]
    longest_characters: int
    seq_length: int
    base_rate: float
    initializer_range: float


LARGE = Scale(
    {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "intermediate_size": 5632,
        "vocab_size": 8192,
    },
    samples=4096,
    batch=16,
    base_steps=400,
    steps={"lora": 300, "full": 500},
    longest_characters=2500,
    seq_length=4096,
    base_rate=6e-4,
    initializer_range=0.02,
)
SMALL = Scale(
    {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 512,
    },
    samples=64,
    batch=4,
    base_steps=30,
    steps={"lora": 20, "full": 20},
    longest_characters=600,
    seq_length=1024,
    base_rate=3e-3,
    initializer_range=0.06,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for model, data and tokens: 10 GB")
    parser.add_argument("--mode", choices=VARIANTS, default="lora")
    parser.add_argument("--variant", action="append", default=[], metavar="NAME=FLAGS", help="one more variant, by its flags")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these variants only, besides plain float32")
    parser.add_argument("--steps", type=int, help="optimizer steps of each variant")
    parser.add_argument("--layers", type=int, help="of the model")
    parser.add_argument("--small", action="store_true", help="a tiny model and few steps, to try the script on a CPU")
    parser.add_argument("--out", type=Path, help="folder for DATE-numerics-MODE.json, .csv and .md")
    arguments = parser.parse_args()
    scale = SMALL if arguments.small else LARGE
    layers = arguments.layers or (
        FULL_LAYERS if arguments.mode == "full" and scale is LARGE else scale.shape["num_hidden_layers"]
    )
    scale = dataclasses.replace(scale, shape=scale.shape | {"num_hidden_layers": layers})
    variants = VARIANTS[arguments.mode] | dict(text.split("=", 1) for text in arguments.variant)
    if arguments.only:
        variants = {name: variants[name] for name in arguments.only}
    start_process()
    arguments.work.mkdir(parents=True, exist_ok=True)
    study = Study(arguments.work, scale, arguments.mode, arguments.steps or scale.steps[arguments.mode])
    report = study.run(variants)
    if arguments.out:
        write_report(arguments.out, arguments.mode, report)
    print(as_markdown(arguments.mode, report))
    dist.destroy_process_group()
    return 0 if all(row["verdict"] in ("pass", "reference", "refused") for row in report["variants"].values()) else 1


def start_process() -> None:
    """One process that is a whole run, without a launcher."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.setdefault("MASTER_PORT", "29517")
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


class Study:
    """Model, data and base, and the runs that start from them."""

    def __init__(self, work: Path, scale: Scale, mode: str, steps: int):
        self.work, self.scale, self.mode, self.steps = work, scale, mode, steps
        self.device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        self.model = work / f"model-{scale.shape['num_hidden_layers']}"
        self.base: dict[str, Tensor] = {}

    def run(self, variants: dict[str, str]) -> Report:
        write_data(self.work, self.scale)
        if not self.model.is_dir():
            shape, first = self.scale.shape, self.work / "data-base" / "training.jsonl"
            make_tiny_model(self.model, **shape, initializer_range=self.scale.initializer_range, training_file=first)
        report: Report = {"machine": machine(), "mode": self.mode, "scale": dataclasses.asdict(self.scale), "variants": {}}
        report["base"] = self._train_base()
        reference = self._variant(REFERENCE, "--optimizer_states fp32" if self.mode == "full" else "", None, report)
        for name, flags in variants.items():
            self._variant(name, flags, reference, report)
        return report

    def _train_base(self) -> dict[str, object]:
        """Trains all weights on the first half of the data and keeps them, in bfloat16's precision like published ones."""
        scale = self.scale
        steps = f"--max_steps {scale.base_steps} --warmup_steps {scale.base_steps // 10}"
        worker = self._worker("data-base", f"--peft none --optimizer_states fp32 --compile off --lr {scale.base_rate} {steps}")
        net = worker._build()
        curve, _ = self._fit(worker, net)
        self.base = {name: weight.full_tensor().bfloat16().float() for name, weight in views(net).items()}
        return {"steps": len(curve), "loss": [curve[0], curve[-1]]}

    def _variant(self, name: str, flags: str, reference: "Outcome | None", report: Report) -> "Outcome | None":
        """Trains a variant and puts what it shows into the report; None, and the reason there, where the command refuses it."""
        started = time.monotonic()
        torch._dynamo.reset()
        try:
            worker = self._worker(
                "data-second", f"--peft {self._peft} --max_steps {self.steps} --warmup_steps 10 {self._rate} {flags}"
            )
        except InputError as error:
            report["variants"][name] = {"flags": flags, "verdict": "refused", "reason": " ".join(error.problems)}
            return None
        net = self._plain_float32(worker) if name == REFERENCE else worker._build()
        self._fill(net, worker)
        with CompilationCounter() as counter:
            curve, compiled_at = self._fit(worker, net, counter)
        evaluated = evaluate(net, worker.splits["validation"], worker.run.strategy.packs.without_gradients())
        assert evaluated is not None
        kept = reference.trained if reference else {key: view.full_tensor().clone() for key, view in views(net).items()}
        for key, view in views(net).items():  # gradients are compared at weights that all have learnt, from which all start
            fill(view, kept[key])
        gradients = self._gradients(worker, net)
        outcome = Outcome(curve, evaluated.loss, gradients, kept)
        row = {
            "flags": flags,
            "loss": curve,
            "validation_loss": evaluated.loss,
            "seconds": round(time.monotonic() - started, 1),
        }
        row |= {"steps_that_compiled": compiled_at, "steps_of_an_epoch": -(-len(worker.splits["training"]) // self.scale.batch)}
        row["tokens_per_step"] = round(statistics.mean(worker.splits["training"].lengths.tolist()) * self.scale.batch)
        report["variants"][name] = row | ({"verdict": "reference"} if reference is None else compare(reference, outcome, flags))
        print(
            name, {key: value for key, value in report["variants"][name].items() if key not in ("loss", "cosines")}, flush=True
        )
        return outcome

    @property
    def _peft(self) -> str:
        return "lora" if self.mode == "lora" else "none"

    @property
    def _rate(self) -> str:
        return "--lr 3e-4" if self.mode == "lora" else "--lr 5e-5"

    def _worker(self, data: str, flags: str) -> Worker:
        """The worker that the command would start for these flags; raises InputError like the command."""
        command = [
            "--hf_model_id",
            str(self.model),
            "--dataset_path",
            str(self.work / data),
            "--num_gpus",
            "1",
            "--global_batch_size",
            str(self.scale.batch),
            "--seq_length",
            str(self.scale.seq_length),
            "--save_every_n_steps",
            "0",
            "--num_sample_answers",
            "0",
            "--experiments_dir",
            str(self.work / "experiments"),
            *flags.split(),
        ]
        given = vars(build_parser("numerics").parse_args(command))
        for name in ("hf_token", "config", "dryrun"):
            given.pop(name)
        folder = self.work / "experiments" / "numerics"
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        run = prepare(config_from_dict(given, "numerics"), None, folder, self.work / "tokens", with_weights=True).run
        return Worker(run, 0, Console(quiet=True), StopSwitch(Progress()))

    def _plain_float32(self, worker: Worker) -> ParallelLlama:
        config = worker.config
        lora = config.peft == "lora"
        strategy = Strategy(
            lora_rank=config.lora_rank if lora else None,
            lora_alpha=config.standard_alpha,
            lora_targets=config.lora_targets if lora else (),
            compute_dtype="float32",
            sharding=worker.run.strategy.sharding,
            degrees=worker.layout.degrees,
        )
        net = build_model(worker.llama_config, worker.layout, self.device, strategy)
        load_base_weights(worker.model_path, net)
        return net

    def _fill(self, net: ParallelLlama, worker: Worker) -> None:
        for name, view in all_views(net).items():
            if name in self.base:
                fill(view, self.base[name])
        if self.mode == "lora":
            initialize_adapters(net, worker.config.seed)

    def _fit(
        self, worker: Worker, net: ParallelLlama, counter: CompilationCounter | None = None
    ) -> tuple[list[float], list[int]]:
        """Loss of every step, and the steps (from 1) in which something was compiled."""
        worker.module.net = net
        optimizer = worker.module.configure_optimizers()
        curve, compiled_at, compiled = [], [], 0
        for batch in self._batches(worker, worker.run.max_steps):
            for group in optimizer.param_groups:
                group["lr"] = worker.module.learning_rate(batch.step)
            scale = gradient_scaler(optimizer)
            result = train_step(net, batch, optimizer.step, scale=scale, clip_grad=worker.config.clip_grad, stop=False)
            curve.append(result.loss)
            optimizer.zero_grad()
            if counter is not None and counter.total() > compiled:
                compiled_at.append(batch.step + 1)
                compiled = counter.total()
        return curve, compiled_at

    def _gradients(self, worker: Worker, net: ParallelLlama) -> dict[str, Tensor]:
        (batch,) = self._batches(worker, 1)
        net.backward(batch)
        found = {
            name: local_part(weight.grad).float().clone() for name, weight in net.weights().items() if weight.grad is not None
        }
        net.zero_grad()
        return found

    def _batches(self, worker: Worker, steps: int) -> Iterator[StepBatch]:
        return iter(
            GlobalBatches(
                worker.splits["training"],
                start_step=0,
                max_steps=steps,
                seed=worker.config.seed,
                global_batch_size=self.scale.batch,
                data_rank=0,
                data_parallel_size=1,
                plan=worker.run.strategy.packs,
            )
        )


@dataclass(frozen=True)
class Outcome:
    """What a variant showed; `trained` are its weights at the end, those of plain float32 for all others."""

    curve: list[float]
    validation: float
    gradients: dict[str, Tensor]
    trained: dict[str, Tensor]


def all_views(net: ParallelLlama) -> dict[str, torch.distributed.tensor.DTensor]:
    return {name: net.view(name, weight.data) for name, weight in net.weights().items()}


def views(net: ParallelLlama) -> dict[str, torch.distributed.tensor.DTensor]:
    """The weights that are trained."""
    return {name: net.view(name, weight.data) for name, weight in net.weights().items() if weight.requires_grad}


def compare(reference: Outcome, found: Outcome, flags: str) -> dict[str, object]:
    """Differences and the verdict."""
    limits = FP8 if "fp8" in flags else BFLOAT16
    last = min(LAST_STEPS, len(found.curve) // 2)
    pairs = list(zip(found.curve, reference.curve, strict=True))[-last:]
    expected = statistics.mean(loss for _, loss in pairs)
    curve = statistics.mean(loss - other for loss, other in pairs) / expected
    each = max(abs(loss - other) / other for loss, other in pairs)
    validation = (found.validation - reference.validation) / reference.validation
    cosines = cosine_by_layer(reference.gradients, found.gradients)
    passed = abs(curve) <= limits.curve and abs(validation) <= limits.validation and min(cosines.values()) >= limits.cosine
    return {
        "mean_difference": curve,
        "largest_difference": each,
        "validation_difference": validation,
        "cosines": cosines,
        "smallest_cosine": min(cosines.values()),
        "median_cosine": statistics.median(cosines.values()),
        "limits": dataclasses.asdict(limits),
        "verdict": "pass" if passed else "FAIL",
    }


def cosine_by_layer(reference: dict[str, Tensor], found: dict[str, Tensor]) -> dict[str, float]:
    """Layer (or table) -> cosine between all its gradients taken as one vector."""
    sums: dict[str, list[float]] = {}
    for name, gradient in reference.items():
        parts = name.split(".")
        layer = f"layer {parts[2]}" if name.startswith("model.layers.") else name
        one, other = gradient.double().flatten(), found[name].double().flatten()
        products = (float(one @ other), float(one @ one), float(other @ other))
        sums[layer] = [total + product for total, product in zip(sums.get(layer, [0.0] * 3), products, strict=True)]
    return {layer: dot / (one * other) ** 0.5 for layer, (dot, one, other) in sums.items()}


def write_data(work: Path, scale: Scale) -> None:
    """data-base and data-second: functions of half of the library's modules each; the second with the example's data."""
    folders = [work / "data-base", work / "data-second"]
    if all((folder / "training.jsonl").is_file() for folder in folders):
        return
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")) + sorted(
        Path(sysconfig.get_path("stdlib")).glob("*/*.py")
    )
    modules = [module for module in modules if module.parent.name not in ("site-packages", "test", "idlelib", "lib2to3")]
    random.Random(1).shuffle(modules)
    example = (ROOT / "examples" / "data" / "alpaca" / "training.jsonl").read_text(encoding="utf-8").splitlines()
    for index, folder in enumerate(folders):
        pairs = [pair for module in modules[index::2] for pair in functions(module, scale.longest_characters)]
        if index == 1:
            pairs += [json.loads(line) for line in example[: scale.samples // 8]]
        random.Random(2).shuffle(pairs)
        pairs = list({pair["input"] + pair["output"]: pair for pair in pairs}.values())[: scale.samples + scale.samples // 16]
        folder.mkdir(parents=True, exist_ok=True)
        held_out = len(pairs) // 17
        for name, part in (("validation", pairs[:held_out]), ("training", pairs[held_out:])):
            text = "".join(json.dumps({"input": p["input"], "output": p["output"]}, ensure_ascii=False) + "\n" for p in part)
            (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def functions(module: Path, longest_characters: int) -> Iterator[dict[str, str]]:
    """Question and answer for each documented function of a module: its head with documentation, and its body."""
    source = module.read_text(encoding="utf-8", errors="ignore")
    try:
        tree = ast.parse(source)
    except SyntaxError:  # some modules are there to be broken
        return
    lines = source.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) and len(node.body) > 1:
            end = node.body[0].end_lineno
            head, body = "\n".join(lines[node.lineno - 1 : end]), "\n".join(lines[end : node.end_lineno])
            if body.strip() and len(head) + len(body) <= longest_characters:
                yield {"input": f"{module.name}\n{head}", "output": body}


def write_report(folder: Path, mode: str, report: Report) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{report['machine']['date']}-numerics-{mode}"
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    curves = {variant: row["loss"] for variant, row in report["variants"].items() if "loss" in row}
    rows = [",".join(["step", *curves])]
    rows += [
        ",".join([str(step), *(f"{loss:.6f}" for loss in losses)])
        for step, losses in enumerate(zip(*curves.values(), strict=True), 1)
    ]
    (folder / f"{name}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(as_markdown(mode, report), encoding="utf-8")


def as_markdown(mode: str, report: Report) -> str:
    found = report["machine"]
    lines = [f"# Numerics, {mode}, {found['date']}, {found['device']}, torch {found['torch']}", ""]
    before, after = report["base"]["loss"]
    lines += [f"Base: {report['base']['steps']} steps, loss {before:.3f} → {after:.3f}.", ""]
    heads = (
        "variant",
        "flags",
        "last loss",
        "validation",
        "curve",
        "largest",
        "validation",
        "cosine min / median",
        "compiled in",
    )
    lines += [" | ".join(["", *heads, "verdict", ""]).strip(), "| --- " * 10 + "|"]
    for name, row in report["variants"].items():
        if row["verdict"] == "refused":
            lines.append(f"| {name} | `{row['flags']}` | {row['reason']} | | | | | | | refused |")
            continue
        cells = [name, f"`{row['flags']}`", f"{row['loss'][-1]:.4f}", f"{row['validation_loss']:.4f}"]
        if row["verdict"] == "reference":
            cells += ["", "", "", ""]
        else:
            differences = (row["mean_difference"], row["largest_difference"], row["validation_difference"])
            cells += [f"{100 * value:+.3f} %" for value in differences]
            cells += [f"{row['smallest_cosine']:.5f} / {row['median_cosine']:.5f}"]
        compiled = row["steps_that_compiled"]
        cells += [f"{', '.join(map(str, compiled)) or 'none'} of {len(row['loss'])}", row["verdict"]]
        lines.append("| " + " | ".join(cells) + " |")
    for kind, limits in (("bfloat16", BFLOAT16), ("fp8", FP8)):
        losses = f"loss over the last {LAST_STEPS} steps {100 * limits.curve} %, validation loss {100 * limits.validation} %"
        lines += ["", f"Limits, {kind}: {losses}, cosine of a layer's gradients {limits.cosine}."]
    epoch = report["variants"][REFERENCE]["steps_of_an_epoch"]
    return "\n".join(
        [*lines, "", f"An epoch is {epoch} steps of about {report['variants'][REFERENCE]['tokens_per_step']} tokens.", ""]
    )


if __name__ == "__main__":
    sys.exit(main())
