"""Every setting of a run: what the user asked for, with the names of the command's flags. Imports no torch."""

import dataclasses
import math
import typing
from dataclasses import dataclass
from typing import Any

from finetuning.config.flag import (
    BASIC,
    HARDWARE,
    MEMORY_AND_SPEED,
    MODEL_AND_DATA,
    OPTIMIZER,
    PARALLELISM,
    RECORDS,
    SAMPLES,
    SLURM,
    TRAINABLE,
    TRAINING,
    Flag,
    setting,
)

MAX_FUSED_RANK = 256  # of adapters in hand-written blocks: tiles of more do not fit the shared memory of any GPU
FP8_MULTIPLE = 16  # of the number of terms, and of outputs, of a product in fp8
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
DEFAULT_ALPHA, DEFAULT_RSLORA_ALPHA = 32.0, 8.0
PROFILE_AFTER_STEPS = 3  # in the first ones kernels are compiled and memory is laid out


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What the user asked for. Secrets are not part of it: the token never reaches a file.

    Batch sizes count samples; the global batch is per optimizer step, over all ranks. None leaves a choice to what
    `default_means` says.
    """

    executor: str = setting(
        BASIC,
        "where it runs: local starts torchrun on this machine; slurm submits a job, see docs/slurm.md",
        default="local",
        choices=("local", "slurm"),
    )
    experiment: str = setting(
        BASIC,
        "name of the experiment and of its folder; the same name goes on, another name starts anew",
        default="llama31_pretraining",
        short="-E",
    )

    account: str = setting(SLURM, "Slurm account", default="root", short="-a")
    partition: str = setting(SLURM, "Slurm partition", default="defq", short="-p")
    container_image: str = setting(
        SLURM,
        "container image of the job, a name in a registry or a file; none: no container",
        default="nvcr.io/nvidia/nemo:dev",
        short="-i",
    )
    container_runtime: str = setting(
        SLURM,
        "what runs the image; auto: Pyxis where srun has it, else Apptainer",
        default="auto",
        choices=("auto", "pyxis", "apptainer"),
        needs="--executor slurm",
    )
    mounts: tuple[str, ...] = setting(
        SLURM,
        "more folders in the container, comma-separated FOLDER or FOLDER:TARGET; code, data, model and experiment always are",
        default=(),
        needs="--executor slurm",
    )
    python: str | None = setting(
        SLURM, "Python of the nodes", default=None, default_means="this one; in a container python3", needs="--executor slurm"
    )
    time: str | None = setting(
        SLURM,
        "time limit of the job, e.g. 8:00:00; it saves, requeues itself and goes on",
        default=None,
        default_means="the partition's",
        needs="--executor slurm",
    )
    save_time_s: int = setting(
        SLURM, "seconds before the time limit at which it starts to save", default=300, at_least=1, needs="--executor slurm"
    )
    gpu_request: str = setting(
        SLURM,
        "sbatch option that asks for GPUs: auto, gpus-per-node, gres; none: CPU processes",
        default="auto",
        choices=("auto", "gpus-per-node", "gres", "none"),
        needs="--executor slurm",
    )
    gpu_memory_gib: float | None = setting(
        SLURM,
        "memory of each GPU of the nodes in GiB",
        default=None,
        default_means="as measured, or by Slurm's name",
        above=0,
        at_most=1024,
        needs="--executor slurm",
    )
    cpus_per_task: int | None = setting(
        SLURM, "CPUs of each node", default=None, default_means="the share of its GPUs", at_least=1, needs="--executor slurm"
    )
    mem: str | None = setting(
        SLURM,
        "memory of each node, e.g. 200G; 0: all",
        default=None,
        default_means="with all GPUs of a node all, else the cluster's",
        needs="--executor slurm",
    )
    exclusive: bool = setting(SLURM, "no other job on the nodes", default=False, needs="--executor slurm")
    qos: str | None = setting(
        SLURM, "quality of service", default=None, default_means="the cluster's", needs="--executor slurm"
    )
    constraint: str | None = setting(SLURM, "features that the nodes must have", default=None, needs="--executor slurm")
    nodelist: str | None = setting(SLURM, "nodes that the job must have", default=None, needs="--executor slurm")
    exclude: str | None = setting(SLURM, "nodes that the job must not have", default=None, needs="--executor slurm")
    dependency: str | None = setting(SLURM, "jobs to wait for, e.g. afterok:1234", default=None, needs="--executor slurm")
    sbatch_options: str | None = setting(
        SLURM,
        'more options of sbatch in one text, e.g. "--reservation=r --mail-type=END"',
        default=None,
        needs="--executor slurm",
    )
    setup: str | None = setting(
        SLURM, 'shell lines before the workers start, e.g. "module load cuda"', default=None, needs="--executor slurm"
    )
    environment: str | None = setting(
        SLURM, 'variables of the workers in one text, e.g. "NCCL_SOCKET_IFNAME=ib0"', default=None, needs="--executor slurm"
    )
    slurm_template: str | None = setting(
        SLURM, "job script of your own, see docs/slurm.md", default=None, default_means="ours", needs="--executor slurm"
    )

    num_nodes: int = setting(HARDWARE, "number of machines", default=1, short="-N", at_least=1, at_most=100_000)
    num_gpus: int = setting(
        HARDWARE, "GPUs per machine; on a machine without CUDA, CPU processes", default=8, short="-G", at_least=1, at_most=1024
    )

    hf_model_id: str = setting(
        MODEL_AND_DATA, "Hugging Face model id, or a local folder in its format (required without --nemo_model)"
    )
    nemo_model: str | None = setting(
        MODEL_AND_DATA,
        "NeMo or Megatron checkpoint with the weights to start from; see docs/formats.md",
        default=None,
        short="-n",
    )
    dataset_path: str = setting(
        MODEL_AND_DATA,
        "folder with training.jsonl, validation.jsonl and test.jsonl, or one raw .jsonl; org/name on the hub; several "
        "with the share of each: a:0.7,b:0.3, or a .yaml (required)",
        short="-D",
    )

    max_steps: int | None = setting(
        TRAINING, "optimizer steps", default=None, default_means="one epoch", at_least=1, at_most=10**9
    )
    global_batch_size: int = setting(
        TRAINING,
        "samples per optimizer step; a multiple of micro_batch_size × data parallel size",
        default=2048,
        short="-g",
        at_least=1,
        at_most=2**20,
    )
    micro_batch_size: int = setting(
        TRAINING,
        "a packed row may hold micro_batch_size × seq_length tokens; more needs more memory (see --row_length)",
        default=1,
        short="-m",
        at_least=1,
        at_most=2**20,
    )

    tensor_model_parallel_size: int = setting(
        PARALLELISM,
        "tensor parallel degree: GPUs that share each matrix product; auto: what is expected to be fastest",
        default=1,
        short="-T",
        at_least=1,
        auto=True,
    )
    pipeline_model_parallel_size: int = setting(
        PARALLELISM,
        "pipeline parallel degree: stages the layers are cut into; auto: what is expected to be fastest",
        default=1,
        short="-P",
        at_least=1,
        auto=True,
    )
    context_parallel_size: int = setting(
        PARALLELISM,
        "context parallel degree: GPUs that share each sequence; auto: what is expected to be fastest",
        default=1,
        short="-C",
        at_least=1,
        auto=True,
    )
    data_parallel_replicate_size: int = setting(
        PARALLELISM, "whole copies of the sharded weights, so that weights travel inside a copy only", default=1, at_least=1
    )
    sharding: str = setting(
        PARALLELISM,
        "how data parallel holds weights: gathered for each use (full), once a step (step), frozen ones whole (replicated)",
        default="auto",
        choices=("auto", "full", "step", "replicated"),
    )
    pipeline_schedule: str = setting(
        PARALLELISM,
        "order of forward and backward passes in a pipeline: 1f1b, or interleaved",
        default="1f1b",
        choices=("1f1b", "interleaved"),
    )

    seq_length: int = setting(
        SAMPLES, "longest sample in tokens; a lower one saves memory", default=8192, at_least=2, at_most=2**24
    )
    truncation: str = setting(
        SAMPLES,
        "of a longer sample: refuse the data, cut_input at its end, or drop it; always listed",
        default="refuse",
        choices=("refuse", "cut_input", "drop"),
    )
    skip_bad_samples: bool = setting(
        SAMPLES, "drop and list samples that cannot be used, instead of refusing the data", default=False
    )
    columns: str | None = setting(
        SAMPLES,
        "names that fields have in the data: input=question,output=answer.text; dots lead into objects",
        default=None,
        default_means="the names of the formats",
    )
    train_on: str = setting(
        SAMPLES,
        "answers of a sample that are trained; one of weight 0 never is",
        default="all_answers",
        choices=("all_answers", "last_answer"),
    )
    prompt_template: str | None = setting(
        SAMPLES,
        "text with {input} and {output} instead of the chat template, for base models or a format of your "
        "own; \\n is a new line",
        default=None,
        default_means="the tokenizer's chat template",
    )
    system_prompt: str | None = setting(SAMPLES, "system message put before every sample", default=None)

    peft: str = setting(
        TRAINABLE,
        "none: all weights; lora: low-rank adapters, which fit on a smaller GPU",
        default="none",
        choices=("none", "lora"),
    )
    lora_rank: int = setting(
        TRAINABLE, "rank of the adapters: more can learn more and costs more", default=16, at_least=1, needs="--peft lora"
    )
    lora_alpha: float | None = setting(
        TRAINABLE,
        "adapters are scaled by alpha / rank",
        default=None,
        default_means="auto: 32; with --lora_scaling rslora 8",
        above=0,
        needs="--peft lora",
        auto=True,
    )
    lora_scaling: str = setting(
        TRAINABLE,
        "standard: alpha / rank; rslora: alpha / sqrt(rank), for ranks far above 16",
        default="standard",
        choices=("standard", "rslora"),
        needs="--peft lora",
    )
    lora_targets: tuple[str, ...] = setting(
        TRAINABLE, "linear layers that get adapters, comma-separated", default=LORA_TARGETS, needs="--peft lora"
    )

    lr: float | None = setting(
        OPTIMIZER,
        "peak learning rate: the first one to try when the loss falls too slowly or jumps; see docs/learning.md",
        default=None,
        default_means="auto: by the size of the model, what is trainable, batch and steps",
        above=0,
        auto=True,
    )
    lr_schedule: str = setting(
        OPTIMIZER,
        "learning rate after the warm-up: falls in a cosine or linearly, stays, or stays and falls in the last fifth (wsd)",
        default="cosine",
        choices=("cosine", "linear", "constant", "wsd"),
    )
    min_lr: float = setting(OPTIMIZER, "learning rate at the end of the schedule", default=0.0, at_least=0)
    warmup_steps: int | None = setting(
        OPTIMIZER,
        "steps of linear warm-up; AdamW's first steps have little to go by",
        default=None,
        default_means="a tenth of the steps, at most 50",
        at_least=0,
    )
    warmup_ratio: float | None = setting(
        OPTIMIZER, "warm-up as a share of the steps, instead of --warmup_steps", default=None, at_least=0, below=1
    )
    weight_decay: float = setting(OPTIMIZER, "decay of weight matrices; norms are never decayed", default=0.1, at_least=0)
    adam_beta1: float = setting(
        OPTIMIZER, "AdamW's beta 1: how long the mean of the gradients remembers", default=0.9, at_least=0, below=1
    )
    adam_beta2: float = setting(
        OPTIMIZER, "AdamW's beta 2: how long the mean of their squares remembers", default=0.98, at_least=0, below=1
    )
    adam_eps: float = setting(
        OPTIMIZER, "AdamW's epsilon: keeps the division of the two from exploding", default=1e-08, above=0
    )
    clip_grad: float = setting(
        OPTIMIZER, "largest global gradient norm, against single bad steps; 0 switches clipping off", default=1.0, at_least=0
    )
    seed: int = setting(
        OPTIMIZER, "decides sample order and adapter initialization", default=1234, at_least=0, at_most=2**63 - 1
    )

    activation_checkpointing: str = setting(
        MEMORY_AND_SPEED,
        "computed again in the backward pass, less memory, slower: selective: what is cheap or wide; full: "
        "all; auto: the least that fits",
        default="auto",
        choices=("auto", "none", "selective", "full"),
    )
    compile: str = setting(
        MEMORY_AND_SPEED,
        "fused blocks, or compiled ones for LoRA that is not on all seven layers, of a rank above 256 or with"
        " -T; auto: with CUDA only; off when a compiler is missing",
        default="auto",
        choices=("auto", "on", "off"),
    )
    row_length: int | None = setting(
        MEMORY_AND_SPEED,
        "tokens of a packed sequence at most",
        default=None,
        default_means="micro_batch_size × seq_length, or more",
        at_least=1,
        at_most=2**26,
        details=(
            "tokens of a packed sequence at most. Of short samples, longer ones are faster; by default they hold "
            "as many times --seq_length as the memory plan has room for, up to 24 576 tokens: on GPUs of known "
            "memory, where samples have 4096 tokens or less on average, nothing has to be recomputed and there is"
            " no pipeline. The gradient is the same, up to rounding"
        ),
    )
    fp8: bool = setting(
        MEMORY_AND_SPEED,
        "products of linear layers in fp8: faster, a little less exact",
        default=False,
        details=(
            "products of linear layers in fp8 (with LoRA those with frozen weights, and, without --least_memory, "
            "the gradient through the head; logits and loss stay as they are), faster on Hopper and Ada, a little"
            " less exact; with LoRA on any number of GPUs, without it on one"
        ),
    )
    least_memory: bool = setting(
        MEMORY_AND_SPEED,
        "LoRA in the least GPU memory: recompute in pieces, keep the rest in host memory; slower",
        default=False,
        details=(
            "LoRA on all seven layers in the least GPU memory (8B, rows of 8192 tokens: about 16 GiB, with --fp8 "
            "9 GiB): blocks are computed again in pieces of a row, and what they keep waits in host memory (4 GiB"
            " for such a row, and the embedding)"
        ),
    )
    optimizer_states: str = setting(
        MEMORY_AND_SPEED,
        "of full fine-tuning: gradients and moments in fp32 or bf16, moments in 8bit",
        default="auto",
        choices=("auto", "fp32", "bf16", "8bit"),
        details=(
            "full fine-tuning: fp32: weights, gradients and moments in float32, 16 bytes a parameter; bf16: exact"
            " float32 weights in two halves, the rest in bfloat16, 10 bytes; 8bit: moments in 8 bits, 8 bytes; "
            "auto: bf16 on GPUs, 8bit where that does not fit, fp32 on CPUs"
        ),
    )

    val_check_interval: int | None = setting(
        RECORDS, "steps between validations", default=None, default_means="a tenth of the run", at_least=1
    )
    early_stopping: int | None = setting(
        RECORDS,
        "stop after so many validations without an improvement beyond the standard error of the validation loss; the result "
        "is the best validated step's",
        default=None,
        default_means="off",
        at_least=1,
    )
    export: str = setting(
        RECORDS,
        "whose weights are the result: the last step's, or those of the lowest validation loss; auto: last, with "
        "--early_stopping best",
        default="auto",
        choices=("auto", "last", "best"),
    )
    save_every_n_steps: int | None = setting(
        RECORDS,
        "steps between checkpoints; 0: none, and nothing can be resumed",
        default=None,
        default_means="as often as costs 3 % of the time, at least every 30 minutes",
        at_least=0,
        details=(
            "steps between checkpoints; 0: none, and nothing can be resumed. By default as often as costs at most 3 % "
            "of the time that the run has taken so far, at least every 30 minutes and at most once a minute; in any "
            "case at the end and when it is asked to stop. A validation with the lowest loss so far then also keeps its "
            "weights, without the optimizer's state (`checkpoints/best`)"
        ),
    )
    keep_last: int = setting(
        RECORDS,
        "newest checkpoints to keep, besides the one with the lowest validation loss; each is three times the"
        " trained weights in float32",
        default=2,
        at_least=1,
    )
    num_sample_answers: int = setting(RECORDS, "answers generated before and after training; 0: none", default=3, at_least=0)
    max_new_tokens: int = setting(RECORDS, "longest generated answer, in tokens", default=64, at_least=1)
    restore_config: str | None = setting(
        RECORDS,
        "start a new experiment from the weights of this checkpoint or PEFT adapter, e.g. "
        "experiments/NAME/checkpoints/step=000100; its rank, alpha and targets then hold",
        default=None,
    )
    accept_changes: bool = setting(
        RECORDS, "resume although data, template, batch size or sequence length changed", default=False
    )
    wandb_project: str | None = setting(RECORDS, "also log to this Weights & Biases project", default=None)
    mlflow_tracking_uri: str | None = setting(RECORDS, "also log to this MLflow server", default=None)
    log_artifacts: bool = setting(
        RECORDS, "upload data report, results and exported model to these trackers at the end", default=False
    )
    stall_timeout_s: float | None = setting(
        RECORDS,
        "seconds without a step after which a run counts as hung and is ended; never less than four usual steps. Starts, first "
        "steps, saves and exports, which show no progress, have ten times as long (1800 s). 0: never",
        default=None,
        default_means="20 usual steps, at least 300",
        at_least=0,
    )
    profile_steps: int = setting(
        RECORDS,
        "steps that are profiled, from the fourth one on: work and messages of each rank in profile/, and a trace",
        default=0,
        at_least=0,
    )
    experiments_dir: str = setting(RECORDS, "folder that holds the experiments", default="experiments")
    lang: str = setting(
        RECORDS, "language of the messages: en or zh-TW", default="en", default_means="the locale's", choices=("en", "zh-TW")
    )

    @property
    def alpha(self) -> float:
        """Of LoRA, as PEFT writes it. Both defaults scale rank 16 by 2."""
        if self.lora_alpha is not None:
            return self.lora_alpha
        return DEFAULT_RSLORA_ALPHA if self.lora_scaling == "rslora" else DEFAULT_ALPHA

    @property
    def standard_alpha(self) -> float:
        """That alpha which, divided by the rank, gives the scale of the adapters."""
        return self.alpha * math.sqrt(self.lora_rank) if self.lora_scaling == "rslora" else self.alpha

    @property
    def takes_best(self) -> bool:
        """Whether the result has the weights of the lowest validation loss, not the last ones."""
        return self.export == "best" or (self.export == "auto" and self.early_stopping is not None)

    @property
    def best_flag(self) -> str:
        """The flag that asks for them, as it was given."""
        return "--export best" if self.export == "best" else "--early_stopping"

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


FLAGS: dict[str, Flag] = {field.name: field.metadata["flag"] for field in dataclasses.fields(RunConfig)}
CHOICES = {name: flag.choices for name, flag in FLAGS.items() if flag.choices}
# What `auto` of a degree is until it is chosen (`launch.prepare`); as a number, nobody can give it.
CHOSEN_LATER = 0
DEGREES = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
DEFAULTS = RunConfig(hf_model_id="", dataset_path="")


def field_types() -> dict[str, Any]:
    """Field name -> annotated type of `RunConfig`."""
    return typing.get_type_hints(RunConfig)
