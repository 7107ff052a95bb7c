"""`finetune plan`: will it fit, how long does it take, how much disk, which layout; before anything is queued, without a GPU.

Takes the flags of `finetune train`. The model may be a name on the hub, a folder or a `config.json`; data are not needed.
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuning.cli.main import hide_token, resolve_config, settings_parser
from finetuning.cli.plan_screens import as_json, show_plan
from finetuning.config.llama import LlamaConfig, read_llama_config
from finetuning.config.rules import check_layout, check_settings
from finetuning.config.settings import RunConfig
from finetuning.data.batches.order import steps_per_epoch
from finetuning.data.tokens.prune import TOKENS_FOLDER
from finetuning.errors import EXIT_FAILED, EXIT_FINISHED, InputError
from finetuning.files.atomic import temporary_folder
from finetuning.i18n import t
from finetuning.launch.disk import checkpoint_bytes, export_bytes, size_of
from finetuning.launch.expected import has_flash_4
from finetuning.launch.gpus import GpuMemory, find_gpu_memory
from finetuning.launch.hub import find_model
from finetuning.launch.run_data import find_dataset, samples_of_epoch, work_of
from finetuning.launch.slurm.submit import plan_for
from finetuning.plan.forecast import Forecast, forecast
from finetuning.plan.known_models import known_model
from finetuning.plan.layouts import Planned, Where, choose_degrees, faster_layout, other_ways, rank, smallest_change
from finetuning.plan.rates import GIGA, kind_of_name, kinds, rates_of
from finetuning.plan.step_time import Place
from finetuning.plan.workload import Workload
from finetuning.terminal import open_console

BITS = 8


@dataclass(frozen=True)
class Samples:
    """What is known of the data."""

    work: Workload
    count: int | None  # training samples
    measured: bool  # else assumed, see --tokens_per_sample
    tokens_bytes: int | None


@dataclass(frozen=True)
class Plan:
    """The whole answer."""

    config: RunConfig
    where: Where
    samples: Samples
    chosen: Planned
    forecast: Forecast
    ranking: list[Planned]
    others: list[tuple[dict[str, object], Planned]]  # the same layout otherwise
    faster: Planned | None
    changes: list[tuple[dict[str, object], Planned]]  # that would make it fit, where it does not


def main(argv: Sequence[str]) -> int:
    hide_token(list(argv))
    given = vars(_parser().parse_args(argv))
    own = {name: given.pop(name) for name in ("gpu", "tokens_per_sample", "num_samples", "network", "json", "simulate")}
    token, config_file = given.pop("hf_token", None), given.pop("config")
    config = resolve_config(given, config_file, needs_data=False)
    plan = make_plan(config, token, own)
    found = None
    if own["simulate"]:
        from finetuning.training.simulate import simulate_plan  # with torch, which takes seconds

        found = simulate_plan(plan.chosen.strategy, plan.where.model)
    if own["json"]:
        print(json.dumps(as_json(plan, found), indent=1, ensure_ascii=False))
    else:
        show_plan(open_console(), plan, found)
    return EXIT_FINISHED if plan.chosen.fits else EXIT_FAILED


def make_plan(config: RunConfig, token: str | None, own: dict[str, Any]) -> Plan:
    """
    Args:
        own: the flags that only this verb has.

    Raises:
        InputError: settings, model, layout, data or GPUs are wrong or not known; all problems together.
    """
    memory_flag = config.gpu_memory_gib
    local = config if config.executor == "slurm" else dataclasses.replace(config, gpu_memory_gib=None)
    problems = check_settings(local) + _check_own(own)
    model_path, model = _find_model(local, token, problems)
    problems += check_layout(local, model)
    gpu = _find_gpu(own["gpu"], memory_flag, config, problems)
    if problems or model is None or gpu is None:
        raise InputError(problems)
    samples = _find_samples(local, model_path, model, own)
    kind = own["gpu"] or (kind_of_name(gpu.name) if gpu.name else None)
    rates = rates_of(kind) if kind is not None else None
    network = None if own["network"] is None else own["network"] / BITS * GIGA
    where = Where(model, gpu.gib, rates, samples.work, Place(local.num_gpus, network, has_flash_4()))
    local = choose_degrees(where, local)
    if problems := check_layout(local, model):
        raise InputError(problems)
    ranking = rank(where, local)
    chosen = where.plan_chosen(local)
    if not chosen.fits:
        chosen = next(planned for planned in ranking if planned.config == local)
    max_steps = local.max_steps
    if max_steps is None and samples.count is not None:
        max_steps = steps_per_epoch(samples.count, local.global_batch_size)
    return Plan(
        local,
        where,
        samples,
        chosen,
        forecast(
            chosen,
            model,
            rates,
            max_steps=max_steps,
            checkpoint_bytes=checkpoint_bytes(chosen.strategy, model),
            export_bytes=export_bytes(chosen.strategy, model),
            tokens_bytes=samples.tokens_bytes,
        ),
        ranking,
        other_ways(where, local),
        faster_layout(where, chosen) if chosen.fits else None,
        [] if chosen.fits else smallest_change(where, local),
    )


def _parser() -> argparse.ArgumentParser:
    parser = settings_parser(
        "finetune plan",
        "finetune plan --hf_model_id MODEL --gpu KIND [flags of finetune train]",
        t("Whether a run fits, how long it takes, how much disk it needs and which layout is best. Starts nothing."),
        t("Exit codes: 0 it fits, 1 it does not, 2 wrong input."),
    )
    group = parser.add_argument_group(t("This command"))
    group.add_argument(
        "--gpu",
        metavar="KIND",
        help=t(
            "the GPUs to plan for: {known}; default: those of this machine, or of the Slurm nodes", known=", ".join(kinds())
        ),
    )
    group.add_argument(
        "--tokens_per_sample",
        type=float,
        metavar="X",
        help=t("tokens of a sample, where no data are given (default: --seq_length)"),
    )
    group.add_argument("--num_samples", type=int, metavar="N", help=t("training samples, where no data are given"))
    group.add_argument(
        "--network",
        type=float,
        metavar="GBIT",
        help=t("Gb/s of each GPU between machines; without it, their time is not known"),
    )
    group.add_argument(
        "--simulate",
        action="store_true",
        help=t("also run a step of the real code without memory, as one rank of the layout, and count; takes a minute"),
    )
    group.add_argument("--json", action="store_true", help=t("one JSON object instead of text"))
    group.add_argument("--config", metavar="FILE", type=Path, help=t("YAML file of settings; flags override it"))
    parser.add_argument("-h", "--help", action="help", help=t("show this help and stop"))
    return parser


def _check_own(own: dict[str, Any]) -> list[str]:
    return [
        t("--{name} {value}: must be greater than {limit:g}", name=name, value=own[name], limit=0)
        for name in ("tokens_per_sample", "num_samples", "network")
        if own[name] is not None and not 0 < own[name] < float("inf")
    ]


def _find_model(config: RunConfig, token: str | None, problems: list[str]) -> tuple[Path | None, LlamaConfig | None]:
    """The model's folder, where there is one, and its shape."""
    given = config.hf_model_id
    if not given:
        problems.append(t("finetune plan reads the shape of a model from its config.json; give it as --hf_model_id"))
        return None, None
    file = Path(given)
    try:
        if file.is_file() and file.name == "config.json":
            return None, read_llama_config(file.resolve().parent)
        if not file.is_dir() and not config.dataset_path and (known := known_model(given)) is not None:
            return None, known
        folder = find_model(given, token, with_weights=False)
        return folder, read_llama_config(folder)
    except InputError as error:
        problems += error.problems
        return None, None


def _find_gpu(kind: str | None, memory_gib: float | None, config: RunConfig, problems: list[str]) -> GpuMemory | None:
    """What is asked for, else what the nodes have, else what this machine has."""
    if kind is not None:
        try:
            rates = rates_of(kind)
        except InputError as error:
            problems += error.problems
            return None
        return GpuMemory(memory_gib or rates.memory_gib, name=rates.name)
    if memory_gib is not None:
        return GpuMemory(memory_gib)
    found = plan_for(config).gpu_memory if config.executor == "slurm" else find_gpu_memory()
    if found is None:
        problems.append(
            t("there is no GPU to plan for here; give --gpu, one of {known}, or --gpu_memory_gib", known=", ".join(kinds()))
        )
    return found


def _find_samples(config: RunConfig, model_path: Path | None, model: LlamaConfig, own: dict[str, Any]) -> Samples:
    if not config.dataset_path:
        tokens = min(own["tokens_per_sample"] or config.seq_length, config.seq_length)
        return Samples(Workload(config.global_batch_size, tokens, tokens, 1.0), own["num_samples"], False, None)
    if model_path is None:
        raise InputError(t("to count tokens, the tokenizer is needed: give the model's folder or its name as --hf_model_id"))
    with ExitStack() as stack:
        kept = Path(config.experiments_dir) / TOKENS_FOLDER
        tokens_dir = kept if kept.is_dir() else Path(stack.enter_context(tempfile.TemporaryDirectory(dir=temporary_folder())))
        problems: list[str] = []
        experiment_dir = Path(config.experiments_dir) / config.experiment
        data = find_dataset(config, None, model_path, model, tokens_dir, experiment_dir, problems)
        if data is None:
            raise InputError(problems)
        split = data.dataset.splits["training"]
        return Samples(work_of(split, config), samples_of_epoch(split), True, sum(map(size_of, data.dataset.folders)))
