"""`finetune selftest`: is this parallel layout right on this machine? Starts finetuning/parallel/selftest.py, which says so."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from finetuning.cli.common_flags import verb_parser
from finetuning.config.rules import check_capability, check_devices, check_layout, check_settings
from finetuning.config.settings import CHOICES, RunConfig
from finetuning.config.strategy import obstacles_to_fused
from finetuning.errors import InputError
from finetuning.i18n import t
from finetuning.launch.gpus import count_gpus, find_gpu_capability
from finetuning.launch.torchrun import run_to_the_end, torchrun_options, worker_environment

DEGREES = (
    ("tensor_model_parallel_size", "-T"),
    ("pipeline_model_parallel_size", "-P"),
    ("context_parallel_size", "-C"),
    ("data_parallel_replicate_size", None),
)
CHOSEN = ("pipeline_schedule", "sharding", "activation_checkpointing")
DTYPES = ("float64", "float32", "bfloat16")
BLOCKS = ("auto", "plain", "fused")


def main(arguments: list[str]) -> int:
    """Runs the command; 0: every row of its table is equal, 1: some row is not.

    Raises:
        InputError: the layout cannot be.
    """
    config, compared = _parse(arguments)
    visible_gpus = count_gpus()
    problems = check_settings(config) + check_layout(config, None) + check_devices(config, visible_gpus)
    problems += check_capability(config, find_gpu_capability())
    blocks = compared.pop("blocks")
    fused = _fused_ways(config, compared["peft"]) if blocks == "fused" or (blocks == "auto" and visible_gpus) else []
    if blocks == "fused" and not fused:
        problems.append(t("--blocks fused: those with LoRA go without -T and with --sharding auto or replicated"))
    if problems:
        raise InputError(problems)
    spec = {name: getattr(config, name) for name in (*(name for name, _ in DEGREES), *CHOSEN)}
    spec |= {"data_parallel_size": config.data_parallel_size, "fused": fused, **compared}
    command = [*torchrun_options(config.num_gpus), "-m", "finetuning.parallel.selftest", json.dumps(spec)]
    return run_to_the_end(command, worker_environment(config.num_gpus))


def _fused_ways(config: RunConfig, ways: list[str]) -> list[str]:
    sharding = "replicated" if config.sharding == "auto" else config.sharding
    return [way for way in ways if not obstacles_to_fused(dataclasses.replace(config, peft=way), sharding)]


def _parse(arguments: list[str]) -> tuple[RunConfig, dict[str, Any]]:
    """The layout as a configuration, and what is compared in it."""
    parser = verb_parser(
        "selftest", t("Trains one batch of a tiny model in this layout and in one process, and compares every gradient.")
    )
    parser.add_argument("-G", "--num_gpus", type=int, default=2, metavar="N", help=t("GPUs; without CUDA, CPU processes"))
    texts = {
        "tensor_model_parallel_size": t("tensor parallel degree"),
        "pipeline_model_parallel_size": t("pipeline parallel degree"),
        "context_parallel_size": t("context parallel degree"),
        "data_parallel_replicate_size": t("whole copies of the sharded weights; a divisor of data parallel"),
        "pipeline_schedule": t("order of forward and backward passes in a pipeline"),
        "sharding": t("full: weights are gathered for each use; step: once a step; replicated: frozen ones are whole"),
        "activation_checkpointing": t("recompute in backward; selective: cheap or wide; full: all; auto: the least"),
    }
    for name, short in DEGREES:
        parser.add_argument(*([short] if short else []), f"--{name}", type=int, default=1, metavar="N", help=texts[name])
    for name in CHOSEN:
        parser.add_argument(f"--{name}", choices=CHOICES[name], default=getattr(RunConfig, name), help=texts[name])
    parser.add_argument(
        "--blocks",
        choices=BLOCKS,
        default="auto",
        help=t("plain, or fused as in training on GPUs (float32 and bfloat16); auto: fused with CUDA only"),
    )
    parser.add_argument("--peft", choices=CHOICES["peft"], help=t("compare only this way of training; default: all"))
    parser.add_argument("--dtype", choices=DTYPES, help=t("compare only in this precision; default: in each"))
    parser.add_argument("--json", metavar="FILE", type=Path, help=t("also write the table as JSON"))
    given = vars(parser.parse_args(arguments))
    del given["lang"]
    peft, dtype, file, blocks = given.pop("peft"), given.pop("dtype"), given.pop("json"), given.pop("blocks")
    # "replicated" is about adapters, so with it only they are compared.
    ways = [peft] if peft else ["lora"] if given["sharding"] == "replicated" else ["none", "lora"]
    config = RunConfig(
        hf_model_id="tiny", dataset_path="random", peft=ways[0], global_batch_size=max(1, given["num_gpus"]), **given
    )
    dtypes = [dtype] if dtype else list(DTYPES)
    return config, {"peft": ways, "dtypes": dtypes, "json": str(file) if file else None, "blocks": blocks}
