"""The screens a user reads on the launching machine: before the start, and at the end."""

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from finetuning.cli.course_lines import course_lines
from finetuning.cli.plan_screens import beside_words, outlook_lines
from finetuning.config.memory import plan_memory, trainable_parameters
from finetuning.config.run import Run
from finetuning.config.settings import RunConfig
from finetuning.config.strategy import Strategy
from finetuning.data.batches.order import samples_of_step
from finetuning.data.batches.packing import plan_rows
from finetuning.data.prompts.prompt_format import PromptFormat
from finetuning.data.reading.columns import described, parse_columns
from finetuning.data.reading.records import Sample
from finetuning.data.report.shares import share_lines
from finetuning.data.report.terminal import finding_summary
from finetuning.data.tokens.tokenized import MixedSplit
from finetuning.i18n import t
from finetuning.launch.disk import WORTH_PROBING, bytes_written_per_s, describe
from finetuning.launch.expected import expected_and_used
from finetuning.launch.prepare import Prepared
from finetuning.launch.run_data import samples_of_epoch
from finetuning.runtime.status import read_status
from finetuning.runtime.time_spent import in_words
from finetuning.training.metrics import read_metrics

LABEL_WIDTH = 12
EXAMPLE_CHARACTERS = 160


def show_start(console: Console, prepared: Prepared) -> None:
    """Everything that is about to happen, on one screen."""
    run, config, model = prepared.run, prepared.run.config, prepared.model
    trained = trainable_parameters(run.strategy, model)
    total = model.num_parameters + (trained if config.peft == "lora" else 0)
    method = f"LoRA r={config.lora_rank}" if config.peft == "lora" else t("all weights")
    _line(
        console,
        t("model"),
        t(
            "{name} · Llama, {layers} layer{layers:s} · {total} parameters, {trained} trainable ({method})",
            name=config.nemo_model or config.hf_model_id,
            layers=model.num_hidden_layers,
            total=_count(total),
            trained=_count(trained),
            method=method,
        ),
    )
    if config.columns is not None:
        _line(console, t("columns"), described(parse_columns(config.columns)))
    for name, split in prepared.dataset.splits.items():
        _line(
            console,
            t("data") if name == "training" else "",
            t(
                "{split}: {samples:,} sample{samples:s}, {tokens:,} token{tokens:s}, {answers:,} of them answers, "
                "longest {longest:,} · {file}",
                split=name,
                samples=len(split),
                tokens=split.num_tokens,
                answers=int(split.answer_tokens.sum()),
                longest=int(split.lengths.max()) + 1,
                file=_files_of(run, name),
            ),
        )
    training = prepared.dataset.splits["training"]
    if isinstance(training, MixedSplit):
        for number, line in enumerate(share_lines(training.names, training.shares, run.max_steps * config.global_batch_size)):
            _line(console, t("mixture") if number == 0 else "", line)
    if summary := finding_summary(prepared.dataset.report):
        _line(console, t("checked"), t("{summary} · see data/report.html in the folder below", summary=summary))
    if prepared.dataset.example is not None:
        sources = [source.dataset for source in prepared.dataset.mixture] or [prepared.dataset]
        _line(console, t("example"), _example(prepared.dataset.example, sources[0].prompt_format))
    _line(console, t("layout"), _layout(prepared))
    _line(console, t("strategy"), _strategy(run.strategy))
    _line(console, t("schedule"), _schedule(prepared))
    _line(console, "", t("learning rate {peak:.3g}: {source}", peak=run.learning_rate, source=prepared.learning_rate.source))
    if prepared.gpu_memory is not None:
        gpu = prepared.gpu_memory
        needed = plan_memory(run.strategy, model).total_gib
        text = t("about {needed:.0f} GiB of each GPU's {there:.0f} GiB", needed=needed, there=gpu.gib)
        _line(console, t("memory"), text if gpu.source is None else f"{text} ({gpu.source})")
    for label, value in outlook_lines(prepared.outlook, run):
        _line(console, label, value)
    _line(console, t("disk"), describe(prepared.disk, _disk_speed(prepared)))
    _line(console, t("folder"), run.experiment_dir)
    for message in prepared.start.messages:
        _line(console, t("start"), message)
    for note in prepared.notes:
        _line(console, t("note"), note)


def show_end(console: Console, run: Run) -> None:
    """Losses before and after, sample answers, where the result is, how to load it, what to do next."""
    folder, config = Path(run.experiment_dir), run.config
    results = folder / "results"
    losses = _losses(folder, run)
    if losses:
        console.print()
        _line(console, t("losses"), losses[0])
        for line in losses[1:]:
            _line(console, "", line)
    packing = _packing(folder)
    if packing:
        _line(console, t("packing"), packing)
    if spent := read_status(folder).get("spent"):
        _line(console, t("time"), in_words(spent))
    if (both := expected_and_used(folder)) is not None:
        _line(console, t("plan"), beside_words(*both))
    _show_answers(console, results)
    console.print()
    _line(console, t("result"), f"{folder / 'export'} · {_taken(run, read_status(folder))}")
    _line(console, t("load it"), _load_line(config, folder / "export"))
    _line(console, t("records"), f"{folder}/: metrics.csv, results/, logs/, tensorboard/, checkpoints/")
    _line(
        console,
        t("next"),
        t("train on: the same command with {flags}", flags=_more(run, read_status(folder))),
    )
    _line(console, "", t("curves: tensorboard --logdir {folder}", folder=config.experiments_dir))


def _taken(run: Run, status: dict[str, Any]) -> str:
    """Whose weights the result has."""
    last = status.get("step", run.max_steps)
    step = status.get("exported_step", last)
    if run.config.takes_best:
        return t("the weights of step {step} of {last}, whose validation loss was the lowest", step=step, last=last)
    return t("the weights of the last step, {step}", step=step)


def _more(run: Run, status: dict[str, Any]) -> str:
    """The flag that lets a finished run go on."""
    patience = status.get("early_stopping")
    return f"--max_steps {run.max_steps * 2}" if patience is None else f"--early_stopping {patience * 2}"


def _example(sample: Sample, prompt_format: PromptFormat) -> Text:
    """The first training sample; what is trained stands in brackets and in color."""
    text = Text(t("line {line} · trained in brackets: ", line=sample.line))
    prompt = prompt_format.prompt_text(sample)
    text.append(_short_in_the_middle(prompt), style="dim")
    answer = _short(prompt_format.whole_text(sample)[len(prompt) :])
    text.append(*(("[" + answer + "]", "bold green") if prompt_format.trained_answers(sample)[-1] else (answer, "dim")))
    return text


def _files_of(run: Run, split: str) -> str:
    """The names of the files of a split."""
    mixed = [f"{source.name}/{Path(source.sources[split]).name}" for source in run.mixture if split in source.sources]
    return ", ".join(mixed) or Path(run.sources[split]).name


def _layout(prepared: Prepared) -> str:
    run, config, split = prepared.run, prepared.run.config, prepared.dataset.splits["training"]
    samples = samples_of_step(0, config.global_batch_size, len(split), config.seed, split.shares)
    lengths = split.lengths[samples]
    rows = plan_rows(lengths, config.data_parallel_size, run.strategy.packs)
    world = config.world_size
    processes = (
        t("{world} GPU{world:s}", world=world) if run.device == "cuda" else t("{world} CPU process{world:es}", world=world)
    )
    return t(
        "{processes} = {axes} · {samples} sample{samples:s} per step in {rows} pack{rows:s} of at most {length:,} tokens, "
        "about {tokens:,} token{tokens:s}",
        length=run.strategy.packs.capacity,
        processes=processes,
        axes=_axes(config),
        samples=config.global_batch_size,
        rows=sum(map(len, rows)),
        tokens=int(lengths.sum()),
    )


def _strategy(strategy: Strategy) -> str:
    """What every `auto` became."""
    texts = [
        t("{blocks} blocks", blocks=strategy.blocks.replace("_", "-")),
        strategy.compute_dtype + (t(", products in fp8") if strategy.fp8 else ""),
        t("sharding {sharding}", sharding=strategy.sharding) if strategy.degrees.world_size > 1 else "",
        t("recomputation {mode}", mode=strategy.activation_checkpointing),
        t("optimizer states {states}", states=strategy.optimizer_states) if strategy.trains_all else "",
        t("schedule {schedule}", schedule=strategy.pipeline_schedule) if strategy.degrees.pp > 1 else "",
    ]
    return " · ".join(filter(None, texts))


def _axes(config: RunConfig) -> str:
    """The axes that are more than one process wide, and data parallel in any case."""
    named = {
        t("tensor parallel"): config.tensor_model_parallel_size,
        t("context parallel"): config.context_parallel_size,
        t("pipeline parallel"): config.pipeline_model_parallel_size,
    }
    texts = [f"{name} {degree}" for name, degree in named.items() if degree > 1]
    return " × ".join([*texts, t("data parallel") + f" {config.data_parallel_size}"])


def _schedule(prepared: Prepared) -> str:
    run, config = prepared.run, prepared.run.config
    epochs = run.max_steps * config.global_batch_size / samples_of_epoch(prepared.dataset.splits["training"])
    text = t(
        "{steps} step{steps:s} = {epochs:.2f} epochs · learning rate {peak:.3g} after {warmup} warm-up step{warmup:s}, "
        "{course}",
        steps=run.max_steps,
        epochs=epochs,
        peak=run.learning_rate,
        warmup=run.warmup_steps,
        course=_course(config),
    )
    if "validation" in prepared.dataset.splits:
        text += t(" · validation every {every}", every=run.val_check_interval)
    if run.save_every_n_steps is None:
        text += t(" · checkpoints for at most 3 % of the time, every 30 minutes at least, and at the end")
    elif run.save_every_n_steps:
        text += t(" · checkpoint every {every}", every=run.save_every_n_steps)
    return text


def _disk_speed(prepared: Prepared) -> float | None:
    """Bytes a second, where a checkpoint is large enough to take time; None also where nothing can be written (yet)."""
    folder = Path(prepared.run.experiment_dir)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if prepared.disk.checkpoint < WORTH_PROBING:
        return None
    try:
        return bytes_written_per_s(existing)
    except OSError:
        return None


def _course(config: RunConfig) -> str:
    """Of the learning rate after the warm-up."""
    if config.lr_schedule == "constant":
        return t("constant")
    if config.lr_schedule == "wsd":
        return t("constant, in the last fifth down to {low:g}", low=config.min_lr)
    return t("{schedule} to {low:g}", schedule=config.lr_schedule, low=config.min_lr)


def _losses(folder: Path, run: Run) -> list[str]:
    rows = read_metrics(folder / "metrics.csv")
    lines = []
    if rows:
        lines.append(
            t("training {first:.4f} → {last:.4f}", first=float(rows[0]["train_loss"]), last=float(rows[-1]["train_loss"]))
        )
    validated = [float(row["val_loss"]) for row in rows if row["val_loss"]]
    before = _read_json(folder / "results" / "before.json").get("val_loss")
    if validated and before is not None:
        lines.append(
            t(
                "validation {before:.4f} → {after:.4f} (perplexity {before_perplexity:.1f} → {after_perplexity:.1f}; not "
                "trained on)",
                before=before,
                after=validated[-1],
                before_perplexity=_perplexity(before),
                after_perplexity=_perplexity(validated[-1]),
            )
        )
        lines += course_lines(rows, run)
    test = _read_json(folder / "results" / "test.json")
    if test:
        lines.append(
            t(
                "test {loss:.4f} (perplexity {perplexity:.1f}, {samples} sample{samples:s})",
                loss=test["loss"],
                perplexity=test["perplexity"],
                samples=test["samples"],
            )
        )
    return lines


def _packing(folder: Path) -> str | None:
    """How well the steps of the run were packed: mean and worst."""
    rows = read_metrics(folder / "metrics.csv")
    if not rows:
        return None
    fill, imbalance = ([float(row[name]) for row in rows] for name in ("fill", "imbalance"))
    return t(
        "{fill:.1%} of the computed positions were real tokens · the slowest rank had {imbalance:.1%} more work than the mean, "
        "in the worst step {worst:.1%}",
        fill=sum(fill) / len(fill),
        imbalance=sum(imbalance) / len(imbalance),
        worst=max(imbalance),
    )


def _show_answers(console: Console, results: Path) -> None:
    after = _read_rows(results / "predictions.jsonl")
    before = _read_rows(results / "answers_before.jsonl")
    for index, row in enumerate(after):
        console.print()
        _line(console, t("question"), _short(row["input"]))
        if index < len(before):
            _line(console, t("before"), _short(before[index]["prediction"]))
        _line(console, t("after"), _short(row["prediction"]))
        _line(console, t("expected"), _short(row["label"]))


def _load_line(config: RunConfig, export: Path) -> str:
    if config.peft == "lora":
        return f'peft.AutoPeftModelForCausalLM.from_pretrained("{export}")'
    return f'transformers.AutoModelForCausalLM.from_pretrained("{export}")'


def _line(console: Console, label: str, value: str | Text) -> None:
    # Padded by display width: a Chinese character takes two columns.
    head = Text(label, style="cyan")
    head.align("left", LABEL_WIDTH)
    console.print(head + (Text(value) if isinstance(value, str) else value), highlight=False, soft_wrap=True)


def _short(text: str) -> str:
    text = " ".join(text.split()) or t("(nothing)")
    return text if len(text) <= EXAMPLE_CHARACTERS else text[:EXAMPLE_CHARACTERS] + " …"


def _short_in_the_middle(text: str) -> str:
    """Keeps both ends: a prompt begins with the template's tokens and ends with the question."""
    text = " ".join(text.split())
    if len(text) <= EXAMPLE_CHARACTERS:
        return text
    head = EXAMPLE_CHARACTERS // 4
    return f"{text[:head]} … {text[head - EXAMPLE_CHARACTERS :]}"


def _count(number: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="\n") as file:  # an answer may hold what else is taken for a line end
        return [json.loads(line) for line in file]
