"""Rules a configuration must keep, checked before anything is read, downloaded or started.

Each function returns messages — what was given, the rule, what would work — and none when all is well, so that a user
sees every problem at once. Imports no torch.
"""

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import re
import unicodedata
from pathlib import Path

from finetuning.config.llama import LlamaConfig
from finetuning.config.secrets import PROSE
from finetuning.config.settings import CHOSEN_LATER, DEFAULTS, DEGREES, FLAGS, LORA_TARGETS, PROFILE_AFTER_STEPS, RunConfig
from finetuning.config.strategy import obstacles_to_fused
from finetuning.i18n import t

SIZES = (
    "num_nodes",
    "num_gpus",
    "global_batch_size",
    "micro_batch_size",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "context_parallel_size",
    "data_parallel_replicate_size",
)
CPU_PROCESSES_PER_CORE = 4
FP8_CAPABILITY = (8, 9)  # of CUDA, from which on there are products in fp8
LINES = ("setup", "environment")  # may be several lines
MAX_NAME_BYTES = 200  # of 255 that file systems take; names of files are made from it
EXPERIMENT_NAME = re.compile(r"\w[\w.\-]*")  # nothing hidden, nothing that leaves the experiments folder


def check_settings(config: RunConfig) -> list[str]:
    """Values that are wrong by themselves or in combination."""
    problems = _check_ranges(config)
    if config.row_length is not None and 0 < config.row_length < config.seq_length:
        problems.append(
            t(
                "--row_length {given}: a row must hold the longest sample, --seq_length {longest}; give {longest} or more, or "
                "leave it out",
                given=config.row_length,
                longest=config.seq_length,
            )
        )
    if not EXPERIMENT_NAME.fullmatch(config.experiment):
        problems.append(
            t(
                "--experiment {name!r}: it names a folder; use letters, digits, '_', '-' and '.', no '.' or '-' first",
                name=config.experiment,
            )
        )
    elif len(config.experiment.encode(errors="replace")) > MAX_NAME_BYTES:
        problems.append(t("--experiment: a name of more than {most} bytes, which folders cannot have", most=MAX_NAME_BYTES))
    problems += _check_texts(config)
    unknown = [name for name in config.lora_targets if name not in LORA_TARGETS]
    if unknown or not config.lora_targets:
        problems.append(
            t(
                "--lora_targets {given}: unknown {unknown}; choose from {known}",
                given=",".join(config.lora_targets),
                unknown=", ".join(map(repr, unknown)) or t("nothing"),
                known=", ".join(LORA_TARGETS),
            )
        )
    elif len(set(config.lora_targets)) < len(config.lora_targets):
        problems.append(t("--lora_targets {given}: a name is given twice", given=",".join(config.lora_targets)))
    if config.peft == "none":
        problems += _without_effect(config, "--peft lora")
    elif config.optimizer_states not in ("auto", "fp32"):
        problems.append(
            t(
                "--optimizer_states {states} has no effect with --peft lora: adapters are small, and stay in float32",
                states=config.optimizer_states,
            )
        )
    if config.lr is not None and (problem := above_the_peak(config, config.lr)):
        problems.append(problem)
    if config.warmup_ratio is not None and config.warmup_steps is not None:
        problems.append(t("--warmup_ratio and --warmup_steps say the same; give one of them"))
    if config.takes_best and config.save_every_n_steps == 0:
        problems.append(
            t(
                "{flag} keeps the weights of the best validation; --save_every_n_steps 0 keeps none, leave it out",
                flag=config.best_flag,
            )
        )
    if config.lr_schedule == "constant" and config.min_lr > 0:
        problems.append(t("--min_lr has no effect with --lr_schedule constant"))
    if config.executor == "local":
        problems += _without_effect(config, "--executor slurm")
    for flag, package in (("wandb_project", "wandb"), ("mlflow_tracking_uri", "mlflow")):
        if getattr(config, flag) and importlib.util.find_spec(package) is None:
            problems.append(
                t("--{flag} needs a package that is not installed: pip install {package}", flag=flag, package=package)
            )
    if config.log_artifacts and not (config.wandb_project or config.mlflow_tracking_uri):
        problems.append(t("--log_artifacts has no effect without --mlflow_tracking_uri or --wandb_project"))
    if config.profile_steps > 0 and config.max_steps is not None and config.max_steps <= PROFILE_AFTER_STEPS:
        problems.append(
            t(
                "--profile_steps {count} looks at steps after the first {first}; give a --max_steps above {first}",
                count=config.profile_steps,
                first=PROFILE_AFTER_STEPS,
            )
        )
    return problems + _check_parallel_settings(config) + _check_fp8(config) + _check_least_memory(config) + _not_yet(config)


def above_the_peak(config: RunConfig, peak: float) -> str | None:
    """What is wrong with --min_lr for this peak, which may be known only after everything else."""
    if config.min_lr > peak:
        return t("--min_lr {minimum} is above the peak learning rate {peak:g}", minimum=config.min_lr, peak=peak)
    return None


def _check_texts(config: RunConfig) -> list[str]:
    """Characters that break the line of a job script, of a screen or of a process list that the text stands in."""
    problems = []
    for name, value in dataclasses.asdict(config).items():
        for text in value if isinstance(value, tuple) else (value,):
            if not isinstance(text, str):
                continue
            kinds = {unicodedata.category(character) for character in text if not (name in LINES and character in "\n\t")}
            if "Cs" in kinds:
                problems.append(t("--{name} {value!r}: not UTF-8", name=name, value=text))
            elif name not in PROSE and kinds & {"Cc", "Zl", "Zp"}:
                rule = t("has control characters") if name in LINES else t("must be one line, without control characters")
                problems.append(t("--{name} {value!r}: {rule}", name=name, value=text, rule=rule))
    return problems


def _check_ranges(config: RunConfig) -> list[str]:
    """Numbers outside their ranges."""
    problems = []
    for name, flag in FLAGS.items():
        value, rule = getattr(config, name), flag.rule
        if rule is None or value is None or (name in DEGREES and value == CHOSEN_LATER):
            continue
        if math.isinf(value):
            problems.append(t("--{name} {value}: must be finite", name=name, value=value))
        elif not flag.holds(value):
            problems.append(t("--{name} {value}: {rule}", name=name, value=value, rule=rule))
        elif flag.at_most is not None and value > flag.at_most:
            problems.append(t("--{name} {value}: must be {limit} or less", name=name, value=value, limit=flag.at_most))
    return problems


def _without_effect(config: RunConfig, needed: str) -> list[str]:
    """Settings that were changed and do nothing without `needed`; the specification's may stay, so they need nothing."""
    changed = [
        name for name, flag in FLAGS.items() if flag.needs == needed and getattr(config, name) != getattr(DEFAULTS, name)
    ]
    return [t("--{name} has no effect without {needed}", name=name, needed=needed) for name in changed]


def _check_fp8(config: RunConfig) -> list[str]:
    """What keeps fp8 from being used: it is part of the fused blocks."""
    if not config.fp8:
        return []
    needs = _obstacles(config)
    if config.peft == "none":
        needs += [("--num_gpus", t("1 without --peft lora"))] if config.world_size > 1 else []
        needs += [("--optimizer_states", "bf16 / 8bit")] if config.optimizer_states == "fp32" else []
    return [t("--fp8 needs {flag} {value}", flag=flag, value=value) for flag, value in needs]


def _check_least_memory(config: RunConfig) -> list[str]:
    """What keeps blocks from taking the least memory: they are fused LoRA blocks that hold all weights."""
    if not config.least_memory:
        return []
    needs = _obstacles(config) if config.peft == "lora" else [("--peft", "lora")]
    rules = (
        (config.pipeline_model_parallel_size > 1, "--pipeline_model_parallel_size", "1"),
        (config.context_parallel_size > 1, "--context_parallel_size", "1"),
        (config.activation_checkpointing != "auto", "--activation_checkpointing", "auto"),
        (config.compile == "on", "--compile", "auto"),
    )
    needs += [(flag, value) for broken, flag, value in rules if broken]
    return [t("--least_memory needs {flag} {value}", flag=flag, value=value) for flag, value in needs]


def _obstacles(config: RunConfig) -> list[tuple[str, str]]:
    lora = config.peft == "lora"
    return obstacles_to_fused(config, "replicated" if lora and config.sharding == "auto" else config.sharding)


def _check_parallel_settings(config: RunConfig) -> list[str]:
    """Ways of spreading a model that cannot be combined, or would have no effect."""
    problems = []
    in_pipeline = config.pipeline_model_parallel_size > 1
    if config.pipeline_schedule != "1f1b" and not in_pipeline:
        problems.append(
            t(
                "--pipeline_schedule {schedule} has no effect without --pipeline_model_parallel_size 2 or more",
                schedule=config.pipeline_schedule,
            )
        )
    if config.sharding == "replicated" and config.peft != "lora":
        problems.append(
            t(
                "--sharding replicated keeps frozen weights whole, and without --peft lora none are frozen; for whole copies "
                "of trained weights give --data_parallel_replicate_size"
            )
        )
    if config.sharding == "full" and in_pipeline:
        problems.append(
            t(
                "--sharding full gathers weights for each use, but a pipeline schedule gathers them once per step; give "
                "--sharding step, or replicated with --peft lora"
            )
        )
    return problems


def installed_torch() -> str:
    """Its version, read without importing it."""
    return importlib.metadata.version("torch")


def check_layout(config: RunConfig, model: LlamaConfig | None) -> list[str]:
    """Degrees, processes and batch sizes against each other and, when it is known, against the model."""
    problems: list[str] = []
    if not all(1 <= getattr(config, name) <= (FLAGS[name].at_most or math.inf) for name in SIZES):
        return problems  # check_settings has said so
    world, degree = config.world_size, config.model_parallel_size
    tensor, pipeline = config.tensor_model_parallel_size, config.pipeline_model_parallel_size
    stages = pipeline * (1 if config.pipeline_schedule == "1f1b" else 2)
    if model is not None:
        if not _divides_heads(tensor, model):
            fitting = [number for number in _divisors(world) if _divides_heads(number, model)]
            problems.append(
                t(
                    "--tensor_model_parallel_size {degree}: must divide {heads} attention heads and {key_value_heads} "
                    "key/value heads; with {world} GPU{world:s} use {choices}",
                    degree=tensor,
                    heads=model.num_attention_heads,
                    key_value_heads=model.num_key_value_heads,
                    world=world,
                    choices=_listed(fitting),
                )
            )
        elif model.vocab_size % tensor != 0 or model.intermediate_size % tensor != 0:
            problems.append(
                t(
                    "--tensor_model_parallel_size {degree}: must divide the vocabulary of {vocabulary} and the MLP's {inner} "
                    "features",
                    degree=tensor,
                    vocabulary=model.vocab_size,
                    inner=model.intermediate_size,
                )
            )
        if pipeline > 1 and stages > model.num_hidden_layers:
            problems.append(
                t(
                    "--pipeline_model_parallel_size {degree} with --pipeline_schedule {schedule} makes {stages} stages, but "
                    "the model has only {layers} layer{layers:s}",
                    degree=pipeline,
                    schedule=config.pipeline_schedule,
                    stages=stages,
                    layers=model.num_hidden_layers,
                )
            )
        if config.peft == "lora" and config.lora_rank > model.hidden_size:
            problems.append(
                t(
                    "--lora_rank {rank}: must be at most the model's hidden size, {hidden}",
                    rank=config.lora_rank,
                    hidden=model.hidden_size,
                )
            )
    if world % degree != 0:
        problems.append(
            t(
                "{nodes} x {gpus} = {world} GPU{world:s} cannot be divided by tensor {tensor} x pipeline {pipeline} x "
                "context {context} "
                "= {degree}; the product must be one of {choices}",
                nodes=config.num_nodes,
                gpus=config.num_gpus,
                world=world,
                tensor=tensor,
                pipeline=pipeline,
                context=config.context_parallel_size,
                degree=degree,
                choices=_listed(_divisors(world)),
            )
        )
        return problems
    if config.data_parallel_size % config.data_parallel_replicate_size != 0:
        problems.append(
            t(
                "--data_parallel_replicate_size {copies}: must divide data parallel {data}; use {choices}",
                copies=config.data_parallel_replicate_size,
                data=config.data_parallel_size,
                choices=_listed(_divisors(config.data_parallel_size)),
            )
        )
    unit = config.micro_batch_size * config.data_parallel_size
    if config.global_batch_size % unit != 0:
        below = config.global_batch_size // unit * unit
        nearest = _listed([batch for batch in (below, below + unit) if batch > 0])
        problems.append(
            t(
                "--global_batch_size {batch}: must be a multiple of micro_batch_size {micro} x data parallel {data} = {unit}; "
                "nearest: {nearest}",
                batch=config.global_batch_size,
                micro=config.micro_batch_size,
                data=config.data_parallel_size,
                unit=unit,
                nearest=nearest,
            )
        )
    return problems


def check_capability(config: RunConfig, capability: tuple[int, int] | None) -> list[str]:
    """The settings against CUDA's compute capability of the GPUs; None: not known."""
    if not config.fp8 or capability is None or capability >= FP8_CAPABILITY:
        return []
    return [
        t(
            "--fp8 needs a GPU of compute capability 8.9 or newer (Ada, Hopper), and this one has {found}; leave it out",
            found=".".join(map(str, capability)),
        )
    ]


def check_devices(config: RunConfig, visible_gpus: int) -> list[str]:
    """Processes against the GPUs of this machine; without any GPU, processes run on the CPU."""
    if config.fp8 and visible_gpus == 0 and config.executor == "local":
        return [t("--fp8 needs a CUDA GPU of compute capability 8.9 or newer (Ada, Hopper); there is none here")]
    if config.executor != "local" or config.num_gpus > (FLAGS["num_gpus"].at_most or math.inf):  # check_settings has said so
        return []
    cores = os.cpu_count() or 1
    limit = max(CPU_PROCESSES_PER_CORE * cores, RunConfig.num_gpus)
    if visible_gpus == 0 and config.num_gpus > limit:
        return [
            t(
                "--num_gpus {asked}: without a GPU it counts CPU processes, and this machine has {cores} core{cores:s}; "
                "give {limit} or "
                "less",
                asked=config.num_gpus,
                cores=cores,
                limit=limit,
            )
        ]
    if 0 < visible_gpus < config.num_gpus:
        return [
            t(
                "--num_gpus {asked}: this machine has {found}; give --num_gpus {found} (and a --global_batch_size that is a "
                "multiple of micro_batch_size x {found})",
                asked=config.num_gpus,
                found=visible_gpus,
            )
        ]
    return []


def _not_yet(config: RunConfig) -> list[str]:
    """Settings that are understood and checked, but that this version cannot carry out."""
    problems = []
    for name in ("nemo_model", "restore_config"):
        given = getattr(config, name)
        try:
            if given and name == "nemo_model" and not Path(given).exists():
                problems.append(t("--nemo_model {path}: there is no such file or folder", path=given))
            if given and name == "restore_config" and not Path(given).is_dir():
                problems.append(t("--restore_config {path}: there is no such folder", path=given))
        except OSError as error:  # a name that is too long, a folder of somebody else
            problems.append(t("--{name} {path}: cannot be read: {reason}", name=name, path=given, reason=error.strerror))
    return problems


def _divides_heads(degree: int, model: LlamaConfig) -> bool:
    return model.num_attention_heads % degree == 0 and model.num_key_value_heads % degree == 0


def _divisors(number: int) -> list[int]:
    small = [candidate for candidate in range(1, math.isqrt(number) + 1) if number % candidate == 0]
    return sorted({*small, *(number // candidate for candidate in small)})


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
