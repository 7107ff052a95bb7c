"""From what the user asked for to a run that can be started: checks, model, data, schedule, start."""

import math
import os
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetuning.checkpoint.files import run_of
from finetuning.config.learning_rate import LearningRate, choose_learning_rate
from finetuning.config.llama import LlamaConfig, read_llama_config
from finetuning.config.memory import low_memory_on_host_gib
from finetuning.config.resolve import resolve
from finetuning.config.rules import above_the_peak, check_capability, check_devices, check_layout, check_settings
from finetuning.config.run import Run
from finetuning.config.settings import RunConfig
from finetuning.config.strategy import Strategy
from finetuning.data.batches.order import steps_per_epoch
from finetuning.data.prompts.sample_pieces import ALL_ANSWERS
from finetuning.data.tokens.configure import Dataset
from finetuning.data.tokens.prune import TOKENS_FOLDER
from finetuning.errors import InputError
from finetuning.formats.huggingface.companions import check_companions
from finetuning.formats.huggingface.files import check_weights, fingerprint, unreadable_dtypes
from finetuning.formats.nemo.find import check_archive
from finetuning.i18n import t
from finetuning.launch.disk import DiskPlan, disk_problem, plan_disk, size_of
from finetuning.launch.expected import Outlook, look_ahead, with_degrees
from finetuning.launch.gpus import GpuMemory, count_gpus, find_gpu_capability, find_gpu_memory
from finetuning.launch.hub import find_model
from finetuning.launch.resume import Start, decide_start
from finetuning.launch.run_data import (
    file_problem,
    find_dataset,
    mean_sample,
    mixture_in_words,
    mixture_of,
    samples_of_epoch,
    template_of,
    unused_source,
    work_of,
)
from finetuning.launch.schedule_notes import schedule_notes
from finetuning.launch.slurm.job_script import JobPlan
from finetuning.launch.tracker_check import check_trackers

if TYPE_CHECKING:
    from finetuning.formats.nemo.checkpoint import NemoCheckpoint

LONGEST_WARMUP_STEPS = 50
NEMO_FOLDER = "nemo"  # beside the tokens: what --nemo_model has to be decompressed or described into
VALIDATIONS_PER_RUN = 10


@dataclass(frozen=True)
class Prepared:
    """A run that has passed every check."""

    run: Run
    model: LlamaConfig
    dataset: Dataset
    start: Start
    learning_rate: LearningRate
    gpu_memory: GpuMemory | None  # None: processes run on CPUs
    disk: DiskPlan
    notes: list[str]  # worth knowing, nothing to fix
    outlook: Outlook | None = None  # None: it runs on CPUs


def prepare(
    config: RunConfig,
    token: str | None,
    experiment_dir: Path,
    tokens_dir: Path,
    *,
    with_weights: bool,
    job: JobPlan | None = None,
) -> Prepared:
    """Checks everything and resolves the run. Writes to `tokens_dir` and to the hub's cache only.

    Weights are downloaded last, when nothing else is wrong; without `with_weights`, not at all.

    `job` is the plan of the Slurm job, whose nodes decide about the device; None: this machine does.

    Raises:
        InputError: with the problems of settings, cluster, layout, model and data together.
    """
    problems = check_settings(config) + check_trackers(config)
    if job is not None:
        visible_gpus = job.gpus_per_node
        problems += job.problems
        problems += [job.unknown_memory] if job.unknown_memory is not None else []
    else:
        visible_gpus = count_gpus()
        problems += check_devices(config, visible_gpus) + check_capability(config, find_gpu_capability())
    nemo: NemoCheckpoint | None = None
    if config.nemo_model:
        model_path, model, nemo = _find_nemo_model(config, token, tokens_dir / NEMO_FOLDER, problems)
    else:
        model_path, model = _find_checked_model(config, token, problems)
    problems += check_layout(config, model)
    data = find_dataset(config, token, model_path, model, tokens_dir, experiment_dir, problems)
    if problems or model_path is None or model is None or data is None:
        raise InputError(problems)
    dataset = data.dataset

    gpu_memory = job.gpu_memory if job is not None else find_gpu_memory()
    work = work_of(dataset.splits["training"], config)
    config = with_degrees(config, model, gpu_memory, work)
    if problems := check_layout(config, model):
        raise InputError(problems)
    num_samples = samples_of_epoch(dataset.splits["training"])
    max_steps = config.max_steps or steps_per_epoch(num_samples, config.global_batch_size)
    if config.warmup_steps is not None and config.warmup_steps >= max_steps:
        raise InputError(
            t(
                "--warmup_steps {warmup}: must be less than the {max_steps} step{max_steps:s} of the run, or the "
                "learning rate never reaches "
                "its peak",
                warmup=config.warmup_steps,
                max_steps=max_steps,
            )
        )
    memory = gpu_memory.gib if gpu_memory is not None else None
    mean = mean_sample(dataset.splits["training"])
    strategy = resolve(config, model, memory, on_gpu=visible_gpus > 0, mean_sample=mean)
    if config.fp8 and config.peft == "lora" and strategy.sharding != "replicated":
        raise InputError(
            t(
                "--fp8 keeps the frozen weights whole on every GPU, and they do not fit; lower --row_length or "
                "--seq_length, or give --activation_checkpointing full, or more --pipeline_model_parallel_size"
            )
        )
    if with_weights and nemo is None:
        model_path = find_model(config.hf_model_id, token, with_weights=True)
        check_weights(model_path, model)
    weights = _weights_fingerprint(model_path, nemo) if with_weights or nemo is not None else None
    identity = _identity(config, weights, model, dataset) | {"optimizer_states": strategy.optimizer_states}
    start = decide_start(config, experiment_dir, identity, max_steps)
    before = _run_before(start)
    if before is not None:
        strategy = _with_packs_so_far(strategy, config, model, before, memory, on_gpu=visible_gpus > 0)
    rate = choose_learning_rate(config, model, max_steps, before.learning_rate if before is not None else None)
    if problem := above_the_peak(config, rate.peak):
        raise InputError(problem)
    validates_every = config.val_check_interval or max(1, max_steps // VALIDATIONS_PER_RUN)
    if problem := _validation_problem(config, dataset, validates_every):
        raise InputError(problem)
    run = Run(
        config=config,
        experiment_dir=str(experiment_dir),
        device="cuda" if visible_gpus else "cpu",
        model_path=str(model_path),
        tokens_dir=str(dataset.folder),
        sources={name: str(source.path.resolve()) for name, source in dataset.sources.items()},
        strategy=strategy,
        max_steps=max_steps,
        warmup_steps=_warmup_steps(config, max_steps),
        val_check_interval=validates_every,
        save_every_n_steps=config.save_every_n_steps,
        end_token_ids=dataset.prompt_format.end_token_ids,
        initial_weights=str(start.initial_weights) if start.initial_weights else None,
        identity=identity,
        prompt_date=date.fromisoformat(dataset.prompt_format.source.day),
        learning_rate=rate.peak,
        nemo_model=str(nemo.readable.resolve()) if nemo is not None else None,
        data_origin=data.origins.get(""),
        mixture=mixture_of(data),
    )
    if problem := unused_source(run):
        raise InputError(problem)
    step = start.checkpoint.step if start.checkpoint is not None else 0
    tokens_bytes = 0 if tokens_dir == experiment_dir.parent / TOKENS_FOLDER else sum(map(size_of, dataset.folders))
    if start.finished_at is None and (problem := disk_problem(run, model, step, tokens_bytes)) is not None:
        raise InputError(problem)
    disk = plan_disk(run, model, step, tokens_bytes)
    notes = job.notes if job is not None else _device_notes(config, visible_gpus)
    if config.least_memory and visible_gpus:
        gib = low_memory_on_host_gib(model, strategy.packs.capacity)
        notes.append(t("--least_memory: each process keeps {gib:.1f} GiB in host memory as well", gib=gib))
    notes += _notes(config, dataset, num_samples) + schedule_notes(run, rate, num_samples)
    outlook = look_ahead(config, model, strategy, gpu_memory, work)
    return Prepared(run, model, dataset, start, rate, gpu_memory, disk, notes, outlook)


def _find_checked_model(config: RunConfig, token: str | None, problems: list[str]) -> tuple[Path | None, LlamaConfig | None]:
    """The folder with configuration and tokenizer, and the shape; what could not be found is None, its problem added."""
    model_path = model = None
    try:
        model_path = find_model(config.hf_model_id, token, with_weights=False)
        check_companions(model_path)
        is_here = Path(config.hf_model_id).is_dir()  # then the weights are checked with the rest
        problems += unreadable_dtypes(model_path) if is_here else []
        model = read_llama_config(model_path)
        if is_here:
            check_weights(model_path, model)
    except InputError as error:
        problems += [problem for problem in error.problems if problem not in problems]
        return model_path, model
    except OSError as error:
        problems.append(file_problem(error, config.hf_model_id))
        return model_path, model
    _check_length(config, model, problems)
    return model_path, model


def _find_nemo_model(
    config: RunConfig, token: str | None, scratch: Path, problems: list[str]
) -> "tuple[Path | None, LlamaConfig | None, NemoCheckpoint | None]":
    """The checkpoint of --nemo_model, and the folder with configuration and tokenizer: --hf_model_id's, else its own."""
    assert config.nemo_model is not None
    model_path = model = nemo = None
    try:
        check_archive(Path(config.nemo_model), scratch)
        from finetuning.formats.nemo.checkpoint import describe_nemo, nemo_source, open_nemo  # with torch, which takes a second

        if config.hf_model_id:
            model_path = find_model(config.hf_model_id, token, with_weights=False)
            model = read_llama_config(model_path)
        nemo = open_nemo(Path(config.nemo_model), scratch)
        if model_path is None:
            model_path = describe_nemo(nemo, scratch)
            model = read_llama_config(model_path)
        nemo_source(nemo, model)
    except InputError as error:
        problems += [problem for problem in error.problems if problem not in problems]
        return model_path, model, nemo
    except OSError as error:
        problems.append(file_problem(error, config.nemo_model))
        return model_path, model, nemo
    _check_length(config, model, problems)
    return model_path, model, nemo


def _weights_fingerprint(model_path: Path, nemo: "NemoCheckpoint | None") -> str:
    if nemo is None:
        return fingerprint(model_path)
    from finetuning.formats.nemo.checkpoint import nemo_fingerprint

    return nemo_fingerprint(nemo)


def _check_length(config: RunConfig, model: LlamaConfig | None, problems: list[str]) -> None:
    if model is not None and config.seq_length > model.max_position_embeddings:
        problems.append(
            t(
                "--seq_length {given}: the model was made for at most {limit} positions",
                given=config.seq_length,
                limit=model.max_position_embeddings,
            )
        )


def _identity(config: RunConfig, weights: str | None, model: LlamaConfig, dataset: Dataset) -> dict[str, Any]:
    """What must not change unnoticed while an experiment goes on; plain JSON values. `weights`: fingerprint of the base's."""
    lora = config.peft == "lora"
    return ({"base_model": weights} if weights is not None else {}) | {
        "data": f"{dataset.fingerprint} ({len(dataset.splits['training'])} training samples)",
        "template": template_of(dataset),
        "mixture": mixture_in_words(dataset),
        "model_shape": f"{model.num_hidden_layers} x {model.hidden_size}/{model.intermediate_size}, "
        f"vocabulary {model.vocab_size}",
        "global_batch_size": config.global_batch_size,
        "seq_length": config.seq_length,
        "truncation": config.truncation,
        "train_on": config.train_on if config.train_on != ALL_ANSWERS else None,  # earlier versions knew this one only
        "columns": config.columns,
        "seed": config.seed,
        "peft": config.peft,
        "lora_rank": config.lora_rank if lora else None,
        "lora_alpha": config.standard_alpha if lora else None,
        "lora_targets": ",".join(sorted(config.lora_targets)) if lora else None,
    }


def _run_before(start: Start) -> Run | None:
    """What an experiment that goes on was before; None: it begins, or its run.yaml is damaged and will be written anew."""
    try:
        return run_of(start.checkpoint.path) if start.checkpoint is not None else None
    except InputError:
        return None


def _validation_problem(config: RunConfig, dataset: Dataset, validates_every: int) -> str | None:
    """Of flags that go by the validation loss."""
    if not (config.takes_best or config.early_stopping is not None):
        return None
    if "validation" not in dataset.splits:
        return t(
            "{flag} looks at the validation loss, and there is no validation.jsonl; add one or leave the flag out",
            flag=config.best_flag,
        )
    if config.takes_best and config.save_every_n_steps and validates_every % config.save_every_n_steps != 0:
        return t(
            "{flag} keeps the weights of the best validation: --save_every_n_steps {saves} must divide "
            "--val_check_interval {every}, or be left out",
            flag=config.best_flag,
            every=validates_every,
            saves=config.save_every_n_steps,
        )
    return None


def _warmup_steps(config: RunConfig, max_steps: int) -> int:
    if config.warmup_steps is not None:
        return config.warmup_steps
    if config.warmup_ratio is not None:
        return min(math.ceil(config.warmup_ratio * max_steps), max_steps - 1)
    return min(LONGEST_WARMUP_STEPS, max_steps // 10)


def _with_packs_so_far(
    strategy: Strategy, config: RunConfig, model: LlamaConfig, before: Run, memory: float | None, *, on_gpu: bool
) -> Strategy:
    """Packs of an experiment that goes on stay as long as they were, unless asked for or too long now.

    Other packs have other rounding, and on the same layout losses are to be the same to the bit.
    """
    if any(getattr(before.config, name) != getattr(config, name) for name in ("row_length", "micro_batch_size", "seq_length")):
        return strategy
    same = resolve(replace(config, row_length=before.strategy.packs.capacity), model, memory, on_gpu=on_gpu)
    unchanged = replace(same, packs=strategy.packs) == strategy
    return same if unchanged else strategy


def _device_notes(config: RunConfig, visible_gpus: int) -> list[str]:
    if visible_gpus:
        return []
    notes = [t("no CUDA GPU here: --num_gpus {count} means {count} CPU process{count:es}, in float32", count=config.num_gpus)]
    cores = len(os.sched_getaffinity(0))
    if config.num_gpus > cores:
        notes.append(
            t(
                "{count} process{count:es} share {cores} core{cores:s} and take turns; give --num_gpus {cores}",
                count=config.num_gpus,
                cores=cores,
            )
        )
    return notes


def _notes(config: RunConfig, dataset: Dataset, num_samples: int) -> list[str]:
    notes = []
    if dataset.damage is not None:
        notes.append(t("the tokens of before were damaged ({damage}); they were built anew", damage=dataset.damage))
    for where, each in [(f"{s.entry.name}: ", s.dataset) for s in dataset.mixture] or [("", dataset)]:
        if each.was_split:
            sizes = ", ".join(f"{name} {len(split)}" for name, split in each.splits.items())
            notes.append(where + t("one raw file, split 98/1/1: {sizes}; the same samples each time", sizes=sizes))
    for name in ("validation", "test"):
        missing = [source.entry.name for source in dataset.mixture if name not in source.dataset.splits]
        if name not in dataset.splits:
            notes.append(t("no {name}.jsonl: there will be no {name} loss", name=name))
        elif missing:
            notes.append(t("no {name} data of {sources}: its loss there is not known", name=name, sources=", ".join(missing)))
    if config.save_every_n_steps == 0:
        notes.append(t("--save_every_n_steps 0: nothing can be resumed"))
    return notes
