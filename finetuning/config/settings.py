"""Every setting of a run: what the user asked for, with the names of the command's flags. Imports no torch."""

import dataclasses
import reprlib
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuning.errors import InputError
from finetuning.files.documents import read_yaml
from finetuning.i18n import t

MAX_FUSED_RANK = 256  # of adapters in hand-written blocks: tiles of more do not fit the shared memory of any GPU
FP8_MULTIPLE = 16  # of the number of terms, and of outputs, of a product in fp8
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MAX_CONFIG_BYTES = 2**18  # a few seconds to read, at worst
NUMBER_OR_TEXT = ("time", "mem")  # minutes and megabytes, without quotes in YAML
PROFILE_AFTER_STEPS = 3  # in the first ones kernels are compiled and memory is laid out

CHOICES = {
    "executor": ("local", "slurm"),
    "truncation": ("refuse", "cut_input", "drop"),
    "peft": ("none", "lora"),
    "sharding": ("auto", "full", "step", "replicated"),
    "optimizer_states": ("auto", "fp32", "bf16", "8bit"),
    "pipeline_schedule": ("1f1b", "interleaved"),
    "activation_checkpointing": ("auto", "none", "selective", "full"),
    "compile": ("auto", "on", "off"),
    "container_runtime": ("auto", "pyxis", "apptainer"),
    "gpu_request": ("auto", "gpus-per-node", "gres", "none"),
    "lang": ("en", "zh-TW"),
}


@dataclass(frozen=True)
class RunConfig:
    """What the user asked for. Secrets are not part of it: the token never reaches a file."""

    # Model and data. A Hugging Face model id or a local folder in its format; a folder of JSONL.
    hf_model_id: str
    dataset_path: str
    nemo_model: str | None = None  # NeMo or Megatron checkpoint that the weights come from, instead of hf_model_id's

    # Where and how it runs.
    executor: str = "local"
    experiment: str = "llama31_pretraining"
    account: str = "root"
    partition: str = "defq"
    container_image: str = "nvcr.io/nvidia/nemo:dev"
    num_nodes: int = 1
    num_gpus: int = 8  # processes per node; CPU processes on a machine without CUDA
    experiments_dir: str = "experiments"

    # The Slurm job. None leaves the choice to the cluster; names and values are those of sbatch's options.
    time: str | None = None  # D-HH:MM:SS
    save_time_s: int = 300  # seconds before the time limit at which the job is told to save and requeue itself
    gpu_request: str = "auto"  # how GPUs are asked for; none: not at all, the processes run on CPUs
    gpu_memory_gib: float | None = None  # of each GPU of the nodes; None: as the doctor has measured it, or by its Slurm name
    cpus_per_task: int | None = None  # CPUs of a node; None: the share of its GPUs, without GPUs one for each process
    mem: str | None = None  # memory of a node; None: with all GPUs of a node all of it, else the cluster's default
    exclusive: bool = False  # no other job on the nodes
    qos: str | None = None
    constraint: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    dependency: str | None = None
    sbatch_options: str | None = None  # more options, as on sbatch's command line
    setup: str | None = None  # lines of shell before the workers start, on the first node
    environment: str | None = None  # NAME=VALUE …, separated by blanks, for the workers
    container_runtime: str = "auto"  # auto: Pyxis where srun has it, else Apptainer
    mounts: tuple[str, ...] = ()  # more folders in the container, FOLDER or FOLDER:TARGET; the run's own are always there
    python: str | None = None  # interpreter on the nodes; None: this one, in a container python3
    slurm_template: str | None = None  # a job script of the user's own, in Jinja2

    # Batch and schedule. Batch sizes count samples; the global batch is per optimizer step, over all ranks.
    max_steps: int | None = None  # optimizer steps; None: one epoch
    global_batch_size: int = 2048
    micro_batch_size: int = 1  # a packed row may hold micro_batch_size * seq_length tokens
    seq_length: int = 8192  # tokens of the longest sample
    row_length: int | None = None  # a packed row holds at most these, instead; None: at least micro_batch_size * seq_length
    truncation: str = "refuse"  # of a longer one: refuse the data, cut its input, drop it
    skip_bad_samples: bool = False  # drop and list what cannot be used, instead of refusing the data

    # Layout.
    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    context_parallel_size: int = 1
    data_parallel_replicate_size: int = 1  # whole copies of the sharded weights; the rest of data parallel shards them
    sharding: str = (
        "auto"  # how data parallel holds weights: gathered per use (full) or per step; frozen ones whole (replicated)
    )
    pipeline_schedule: str = "1f1b"

    # What is trained.
    peft: str = "none"
    lora_rank: int = 16
    lora_alpha: float = 32.0
    lora_targets: tuple[str, ...] = LORA_TARGETS

    # Prompt. None: the tokenizer's own chat template.
    prompt_template: str | None = None
    system_prompt: str | None = None

    # Optimizer: AdamW, linear warm-up, cosine to `min_lr`.
    lr: float | None = None  # None: 5e-6 full, 1e-4 LoRA
    min_lr: float = 0.0
    warmup_steps: int | None = None  # None: a tenth of the steps, at most 50
    weight_decay: float = 0.1  # matrices only; norms are never decayed
    adam_beta1: float = 0.9
    adam_beta2: float = 0.98
    adam_eps: float = 1e-8
    clip_grad: float = 1.0  # largest global gradient norm; 0 switches clipping off
    seed: int = 1234  # sample order and LoRA initialisation

    # Memory and speed.
    activation_checkpointing: str = "auto"  # auto: as little as fits
    compile: str = "auto"  # auto: on with CUDA, off on CPU
    fp8: bool = False  # products in fp8: with LoRA those with frozen base weights, otherwise those of all linear layers
    least_memory: bool = False  # LoRA: what blocks keep waits on the host, and a row goes through them in pieces
    optimizer_states: str = "auto"  # of full fine-tuning: precision of gradients and moments; auto: bf16 on GPUs

    # Evaluation, checkpoints, logs.
    val_check_interval: int | None = None  # optimizer steps; None: ten times in the run
    save_every_n_steps: int | None = None  # optimizer steps; None: with each validation; 0: never
    keep_last: int = 2  # complete checkpoints kept besides the best one
    num_sample_answers: int = 3  # answers generated before and after training; 0: none
    max_new_tokens: int = 64  # per generated answer
    restore_config: str | None = None  # start from the weights of this checkpoint
    accept_changes: bool = False  # resume although data, template, batch or model changed
    wandb_project: str | None = None
    mlflow_tracking_uri: str | None = None
    log_artifacts: bool = False  # of a finished run: report, results and export go to these trackers as well
    profile_steps: int = 0  # steps that are profiled, after PROFILE_AFTER_STEPS
    lang: str = "en"

    @property
    def learning_rate(self) -> float:
        return self.lr if self.lr is not None else (1e-4 if self.peft == "lora" else 5e-6)

    @property
    def asked_row_length(self) -> int:
        return self.row_length or self.micro_batch_size * self.seq_length

    @property
    def world_size(self) -> int:
        return self.num_nodes * self.num_gpus

    @property
    def model_parallel_size(self) -> int:
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.context_parallel_size

    @property
    def data_parallel_size(self) -> int:
        return self.world_size // self.model_parallel_size


def field_types() -> dict[str, Any]:
    """Field name -> annotated type of `RunConfig`."""
    return typing.get_type_hints(RunConfig)


def config_from_dict(values: dict[str, Any], source: str) -> RunConfig:
    """Builds a `RunConfig`; unknown names, missing required ones and wrong types are all reported at once."""
    hints = field_types()
    problems = [
        t("{source}: unknown setting '{name}'; known settings: {known}", source=source, name=name, known=", ".join(hints))
        for name in values
        if name not in hints
    ]
    required = [f.name for f in dataclasses.fields(RunConfig) if f.default is dataclasses.MISSING]
    converted: dict[str, Any] = {}
    if values.get("nemo_model"):
        required.remove("hf_model_id")  # the checkpoint may have all that is needed
        converted["hf_model_id"] = ""
    problems += [t("--{name} is required", name=name) for name in required if not values.get(name)]
    for name, value in values.items():
        if name in hints:
            try:
                converted[name] = _convert(str(value) if name in NUMBER_OR_TEXT and type(value) is int else value, hints[name])
            except (TypeError, ValueError, OverflowError):
                problems.append(
                    t("{source}: {name} is {value}, but must be {type}", source=source, name=name, value=_shown(value),
                      type=_type_name(hints[name]))
                )  # fmt: skip
            else:
                if name in CHOICES and converted[name] not in CHOICES[name]:
                    problems.append(
                        t("{source}: {name} is {value}, but must be one of {choices}", source=source, name=name,
                          value=_shown(value), choices=", ".join(CHOICES[name]))
                    )  # fmt: skip
    if problems:
        raise InputError(problems)
    return RunConfig(**converted)


def read_config_file(path: Path) -> dict[str, Any]:
    """The settings of a `--config` YAML file, flat, with the flags' names as keys."""
    try:
        values = read_yaml(path, object, max_bytes=MAX_CONFIG_BYTES, may_be_pipe=True)
    except FileNotFoundError:
        raise InputError(t("--config {path}: there is no such file", path=path)) from None
    except InputError as error:
        raise InputError([f"--config {problem}" for problem in error.problems]) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(t("--config {path}: must hold 'name: value' lines named like the flags", path=path))
    return values


def _convert(value: Any, hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(arm for arm in typing.get_args(hint) if arm is not type(None))
    if typing.get_origin(hint) is tuple:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
            raise TypeError
        return tuple(item.strip() for item in items)
    if hint is bool:
        if not isinstance(value, bool):
            raise TypeError
        return value
    if hint is int and isinstance(value, float | bool):
        raise TypeError
    if hint is str and not isinstance(value, str):
        raise TypeError
    return hint(value)


def _shown(value: Any) -> str:
    """A wrong value, shortened; with aliases of YAML, a short file may hold one that is long without end."""
    shortened = reprlib.Repr()
    shortened.maxlevel, shortened.maxstring, shortened.maxother = 1, 80, 80
    return shortened.repr(value)


def _type_name(hint: Any) -> str:
    if isinstance(hint, types.UnionType):
        hint = next(arm for arm in typing.get_args(hint) if arm is not type(None))
    names = {int: t("a whole number"), float: t("a number"), bool: t("true or false"), str: t("text")}
    return names.get(hint, t("a list of names"))
