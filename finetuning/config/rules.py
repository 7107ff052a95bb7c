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
from finetuning.config.settings import LORA_TARGETS, PROFILE_AFTER_STEPS, RunConfig
from finetuning.config.strategy import obstacles_to_fused
from finetuning.i18n import t

SIZES = (
    "num_nodes", "num_gpus", "global_batch_size", "micro_batch_size", "tensor_model_parallel_size",
    "pipeline_model_parallel_size", "context_parallel_size", "data_parallel_replicate_size",
)  # fmt: skip
AT_LEAST_ONE = (
    *SIZES,
    "max_steps",
    "lora_rank",
    "val_check_interval",
    "keep_last",
    "max_new_tokens",
    "save_time_s",
    "cpus_per_task",
    "row_length",
)
AT_LEAST_ZERO = (
    "min_lr", "warmup_steps", "weight_decay", "clip_grad", "seed", "save_every_n_steps", "num_sample_answers",
    "profile_steps",
)  # fmt: skip
ABOVE_ZERO = ("lr", "lora_alpha", "adam_eps", "gpu_memory_gib")
# Numbers beyond these are slips of the keyboard; they would fill the memory or the screen before anything else failed.
AT_MOST = {
    "num_nodes": 100_000, "num_gpus": 1024, "global_batch_size": 2**20, "micro_batch_size": 2**20, "seq_length": 2**24,
    "row_length": 2**26, "gpu_memory_gib": 1024, "max_steps": 10**9, "seed": 2**63 - 1,
}  # fmt: skip
CPU_PROCESSES_PER_CORE = 4
# Those of the specification may stay when its command is run on one machine.
SLURM_ONLY = (
    "time",
    "save_time_s",
    "gpu_request",
    "gpu_memory_gib",
    "cpus_per_task",
    "mem",
    "exclusive",
    "qos",
    "constraint",
    "nodelist",
    "exclude",
    "dependency",
    "sbatch_options",
    "setup",
    "environment",
    "container_runtime",
    "mounts",
    "python",
    "slurm_template",
)
LINES = ("setup", "environment")  # may be several lines
LORA_ONLY = ("lora_rank", "lora_alpha", "lora_targets")
EXPERIMENT_NAME = re.compile(r"\w[\w.\-]*")  # nothing hidden, nothing that leaves the experiments folder


def check_settings(config: RunConfig) -> list[str]:
    """Values that are wrong by themselves or in combination."""
    problems = []
    for names, holds, rule in (
        (AT_LEAST_ONE, lambda value: value >= 1, t("must be 1 or more")),
        (AT_LEAST_ZERO, lambda value: value >= 0, t("must be 0 or more")),
        (ABOVE_ZERO, lambda value: value > 0, t("must be greater than 0")),
        (("adam_beta1", "adam_beta2"), lambda value: 0 <= value < 1, t("must be at least 0 and less than 1")),
        (("seq_length",), lambda value: value >= 2, t("must be 2 or more")),
    ):
        for name in names:
            value = getattr(config, name)
            if value is not None and math.isinf(value):
                problems.append(t("--{name} {value}: must be finite", name=name, value=value))
            elif value is not None and not holds(value):
                problems.append(t("--{name} {value}: {rule}", name=name, value=value, rule=rule))
    if config.row_length is not None and 0 < config.row_length < config.seq_length:
        problems.append(
            t("--row_length {given}: a row must hold the longest sample, --seq_length {longest}; give {longest} or more, or "
              "leave it out", given=config.row_length, longest=config.seq_length)
        )  # fmt: skip
    for name, limit in AT_MOST.items():
        if (getattr(config, name) or 0) > limit:
            problems.append(t("--{name} {value}: must be {limit} or less", name=name, value=getattr(config, name), limit=limit))
    if not EXPERIMENT_NAME.fullmatch(config.experiment):
        problems.append(
            t(
                "--experiment {name!r}: it names a folder; use letters, digits, '_', '-' and '.', no '.' or '-' first",
                name=config.experiment,
            )
        )
    problems += _check_texts(config)
    unknown = [name for name in config.lora_targets if name not in LORA_TARGETS]
    if unknown or not config.lora_targets:
        problems.append(
            t("--lora_targets {given}: unknown {unknown}; choose from {known}", given=",".join(config.lora_targets),
              unknown=", ".join(map(repr, unknown)) or t("nothing"), known=", ".join(LORA_TARGETS))
        )  # fmt: skip
    elif len(set(config.lora_targets)) < len(config.lora_targets):
        problems.append(t("--lora_targets {given}: a name is given twice", given=",".join(config.lora_targets)))
    if config.peft == "none":
        defaults = RunConfig(hf_model_id="", dataset_path="")
        changed = [name for name in LORA_ONLY if getattr(config, name) != getattr(defaults, name)]
        problems += [t("--{name} has no effect without --peft lora", name=name) for name in changed]
    elif config.optimizer_states not in ("auto", "fp32"):
        problems.append(
            t(
                "--optimizer_states {states} has no effect with --peft lora: adapters are small, and stay in float32",
                states=config.optimizer_states,
            )
        )
    if config.learning_rate < config.min_lr:
        problems.append(
            t("--min_lr {minimum} is above the peak learning rate {peak}", minimum=config.min_lr, peak=config.learning_rate)
        )
    if config.executor == "local":
        defaults = RunConfig(hf_model_id="", dataset_path="")
        changed = [name for name in SLURM_ONLY if getattr(config, name) != getattr(defaults, name)]
        problems += [t("--{name} has no effect without --executor slurm", name=name) for name in changed]
    for flag, package in (("wandb_project", "wandb"), ("mlflow_tracking_uri", "mlflow")):
        if getattr(config, flag) and importlib.util.find_spec(package) is None:
            problems.append(
                t("--{flag} needs a package that is not installed: pip install {package}", flag=flag, package=package)
            )
    if config.log_artifacts and not (config.wandb_project or config.mlflow_tracking_uri):
        problems.append(t("--log_artifacts has no effect without --mlflow_tracking_uri or --wandb_project"))
    if config.profile_steps > 0 and config.max_steps is not None and config.max_steps <= PROFILE_AFTER_STEPS:
        problems.append(
            t("--profile_steps {count} looks at steps after the first {first}; give a --max_steps above {first}",
              count=config.profile_steps, first=PROFILE_AFTER_STEPS)
        )  # fmt: skip
    return problems + _check_parallel_settings(config) + _check_fp8(config) + _check_least_memory(config) + _not_yet(config)


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
            t("--pipeline_schedule {schedule} has no effect without --pipeline_model_parallel_size 2 or more",
              schedule=config.pipeline_schedule)
        )  # fmt: skip
    if config.sharding == "replicated" and config.peft != "lora":
        problems.append(
            t("--sharding replicated keeps frozen weights whole, and without --peft lora none are frozen; for whole copies of "
              "trained weights give --data_parallel_replicate_size")
        )  # fmt: skip
    if config.sharding == "full" and in_pipeline:
        problems.append(
            t("--sharding full gathers weights for each use, but a pipeline schedule gathers them once per step; give "
              "--sharding step, or replicated with --peft lora")
        )  # fmt: skip
    return problems


def installed_torch() -> str:
    """Its version, read without importing it."""
    return importlib.metadata.version("torch")


def check_layout(config: RunConfig, model: LlamaConfig | None) -> list[str]:
    """Degrees, processes and batch sizes against each other and, when it is known, against the model."""
    problems: list[str] = []
    if not all(1 <= getattr(config, name) <= AT_MOST.get(name, math.inf) for name in SIZES):
        return problems  # check_settings has said so
    world, degree = config.world_size, config.model_parallel_size
    tensor, pipeline = config.tensor_model_parallel_size, config.pipeline_model_parallel_size
    stages = pipeline * (1 if config.pipeline_schedule == "1f1b" else 2)
    if model is not None:
        if not _divides_heads(tensor, model):
            fitting = [number for number in _divisors(world) if _divides_heads(number, model)]
            problems.append(
                t("--tensor_model_parallel_size {degree}: must divide {heads} attention heads and {key_value_heads} key/value "
                  "heads; with {world} GPUs use {choices}", degree=tensor, heads=model.num_attention_heads,
                  key_value_heads=model.num_key_value_heads, world=world, choices=_listed(fitting))
            )  # fmt: skip
        elif model.vocab_size % tensor != 0 or model.intermediate_size % tensor != 0:
            problems.append(
                t("--tensor_model_parallel_size {degree}: must divide the vocabulary of {vocabulary} and the MLP's {inner} "
                  "features", degree=tensor, vocabulary=model.vocab_size, inner=model.intermediate_size)
            )  # fmt: skip
        if pipeline > 1 and stages > model.num_hidden_layers:
            problems.append(
                t("--pipeline_model_parallel_size {degree} with --pipeline_schedule {schedule} makes {stages} stages, but the "
                  "model has only {layers} layers", degree=pipeline, schedule=config.pipeline_schedule, stages=stages,
                  layers=model.num_hidden_layers)
            )  # fmt: skip
        if config.peft == "lora" and config.lora_rank > model.hidden_size:
            problems.append(
                t("--lora_rank {rank}: must be at most the model's hidden size, {hidden}", rank=config.lora_rank,
                  hidden=model.hidden_size)
            )  # fmt: skip
    if world % degree != 0:
        problems.append(
            t("{nodes} x {gpus} = {world} GPUs cannot be divided by tensor {tensor} x pipeline {pipeline} x context {context} "
              "= {degree}; the product must be one of {choices}", nodes=config.num_nodes, gpus=config.num_gpus, world=world,
              tensor=tensor, pipeline=pipeline, context=config.context_parallel_size, degree=degree,
              choices=_listed(_divisors(world)))
        )  # fmt: skip
        return problems
    if config.data_parallel_size % config.data_parallel_replicate_size != 0:
        problems.append(
            t("--data_parallel_replicate_size {copies}: must divide data parallel {data}; use {choices}",
              copies=config.data_parallel_replicate_size, data=config.data_parallel_size,
              choices=_listed(_divisors(config.data_parallel_size)))
        )  # fmt: skip
    unit = config.micro_batch_size * config.data_parallel_size
    if config.global_batch_size % unit != 0:
        below = config.global_batch_size // unit * unit
        nearest = _listed([batch for batch in (below, below + unit) if batch > 0])
        problems.append(
            t("--global_batch_size {batch}: must be a multiple of micro_batch_size {micro} x data parallel {data} = {unit}; "
              "nearest: {nearest}", batch=config.global_batch_size, micro=config.micro_batch_size,
              data=config.data_parallel_size, unit=unit, nearest=nearest)
        )  # fmt: skip
    return problems


def check_devices(config: RunConfig, visible_gpus: int) -> list[str]:
    """Processes against the GPUs of this machine; without any GPU, processes run on the CPU."""
    if config.fp8 and visible_gpus == 0 and config.executor == "local":
        return [t("--fp8 needs a CUDA GPU of compute capability 8.9 or newer (Ada, Hopper); there is none here")]
    if config.executor != "local" or config.num_gpus > AT_MOST["num_gpus"]:  # check_settings has said so
        return []
    cores = os.cpu_count() or 1
    limit = max(CPU_PROCESSES_PER_CORE * cores, RunConfig.num_gpus)
    if visible_gpus == 0 and config.num_gpus > limit:
        return [
            t("--num_gpus {asked}: without a GPU it counts CPU processes, and this machine has {cores} cores; give {limit} or "
              "less", asked=config.num_gpus, cores=cores, limit=limit)
        ]  # fmt: skip
    if 0 < visible_gpus < config.num_gpus:
        return [
            t("--num_gpus {asked}: this machine has {found}; give --num_gpus {found} (and a --global_batch_size that is a "
              "multiple of micro_batch_size x {found})", asked=config.num_gpus, found=visible_gpus)
        ]  # fmt: skip
    return []


def _not_yet(config: RunConfig) -> list[str]:
    """Settings that are understood and checked, but that this version cannot carry out."""
    problems = []
    if config.nemo_model and not Path(config.nemo_model).exists():
        problems.append(t("--nemo_model {path}: there is no such file or folder", path=config.nemo_model))
    if config.restore_config and not Path(config.restore_config).is_dir():
        problems.append(t("--restore_config {path}: there is no such folder", path=config.restore_config))
    return problems


def _divides_heads(degree: int, model: LlamaConfig) -> bool:
    return model.num_attention_heads % degree == 0 and model.num_key_value_heads % degree == 0


def _divisors(number: int) -> list[int]:
    small = [candidate for candidate in range(1, math.isqrt(number) + 1) if number % candidate == 0]
    return sorted({*small, *(number // candidate for candidate in small)})


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
