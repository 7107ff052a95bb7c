"""Where a run starts: newest complete checkpoint of the experiment > --restore_config > the base model's weights."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetuning.checkpoint.files import Checkpoint, find_checkpoints, open_checkpoint
from finetuning.config.degrees import Degrees, degrees_of
from finetuning.config.run import read_run
from finetuning.config.settings import RunConfig
from finetuning.errors import InputError
from finetuning.formats.huggingface import door as huggingface
from finetuning.formats.peft import door as peft
from finetuning.formats.peft.files import ADAPTER_WEIGHTS_FILE
from finetuning.formats.recognize import format_at
from finetuning.i18n import t
from finetuning.runtime.status import FINISHED, read_status

# What a checkpoint cannot take over: other tensors are trained, or the frozen ones would be others.
FIXED = ("peft", "lora_rank", "lora_alpha", "lora_targets", "model_shape")
FIXED_STATES = "optimizer_states"  # nor this, where the optimizer goes on


@dataclass(frozen=True)
class Start:
    """Where the run starts, and what to tell the user about it."""

    checkpoint: Checkpoint | None  # resume here
    initial_weights: Path | None  # or start fresh from these weights
    finished_at: int | None  # the experiment has already done this many steps, all that were asked for
    messages: list[str]


def decide_start(config: RunConfig, experiment_dir: Path, identity: dict[str, Any], max_steps: int) -> Start:
    """Finds the start of the run; reads only.

    Raises:
        InputError: the experiment was started with other data, template, model or batch, or has done more steps than are
            asked for; or --restore_config does not fit.
    """
    complete, broken = find_checkpoints(experiment_dir / "checkpoints")
    messages = [t("ignored: {what}", what=what) for what in broken]
    status = read_status(experiment_dir)
    finished = status.get("state") == FINISHED and (experiment_dir / "export").is_dir()
    done = int(status.get("step", 0)) if finished else 0
    ended = done >= max_steps or (done > 0 and _ended_early(config, status))
    if complete:
        newest = complete[-1]
        refuse_changes(newest.info["identity"], identity, config)
        if ended:
            return Start(newest, None, done, messages)
        if newest.step > max_steps:
            raise InputError(
                t(
                    "experiment {name} has done {done} step{done:s} already; give --max_steps {done} or more, or "
                    "another --experiment "
                    "name",
                    name=config.experiment,
                    done=newest.step,
                )
            )
        return Start(newest, None, None, messages + _resume_messages(newest, config, max_steps))
    if ended and (experiment_dir / "run.yaml").is_file():
        refuse_changes(read_run(experiment_dir / "run.yaml").identity, identity, config)
        return Start(None, None, done, messages)
    if config.restore_config:
        weights, message = find_initial_weights(config, identity)
        return Start(None, weights, None, [*messages, message])
    return Start(
        None, None, None, [*messages, t("starts from the weights of {model}", model=config.nemo_model or config.hf_model_id)]
    )


def refuse_changes(before: dict[str, Any], now: dict[str, Any], config: RunConfig) -> None:
    """Compares what an experiment was started with to what is asked for now.

    Raises:
        InputError: with the differences side by side; `--accept_changes` lets pass those that can be taken over.
    """
    changed = [name for name in now if before.get(name) != now[name]]
    fixed = [name for name in changed if name in (*FIXED, FIXED_STATES)]
    if not changed or (config.accept_changes and not fixed):
        return
    lines = [t("{name}: was {before}, is now {now}", name=name, before=before.get(name), now=now[name]) for name in changed]
    if fixed:
        advice = t("these cannot change inside one experiment; give another --experiment name")
    else:
        advice = t("give another --experiment name, or --accept_changes to go on with the new ones")
    raise InputError(
        t(
            "experiment {name} was started with other settings:\n      {lines}\n    {advice}",
            name=config.experiment,
            lines="\n      ".join(lines),
            advice=advice,
        )
    )


def _ended_early(config: RunConfig, status: dict[str, Any]) -> bool:
    """It stopped by itself, and would again; with more patience, or without --early_stopping, it goes on."""
    patience = status.get("early_stopping")
    return isinstance(patience, int) and config.early_stopping is not None and config.early_stopping <= patience


def find_initial_weights(config: RunConfig, identity: dict[str, Any]) -> tuple[Path, str]:
    """The folder of --restore_config that holds weights for this run, and a message about it.

    Accepts a checkpoint, an experiment folder or its `checkpoints` folder (the newest checkpoint is taken), or, with LoRA,
    an adapter in PEFT format.

    Raises:
        InputError: there is nothing of this kind, or it does not fit the run.
    """
    assert config.restore_config is not None
    given = Path(config.restore_config)
    kind = format_at(given)
    if kind is peft:
        problems = _adapter_problems(given, config)
        if problems:
            raise InputError(problems)
        return given.resolve(), t("starts from the adapter {path}", path=given)
    if kind is huggingface:
        raise InputError(
            t("--restore_config {path}: this is a whole model in Hugging Face format; give it as --hf_model_id", path=given)
        )
    checkpoint = open_checkpoint(given)
    if not isinstance(checkpoint, Checkpoint):
        found = next((c for f in (given, given / "checkpoints") for c in reversed(find_checkpoints(f)[0])), None)
        if found is None:
            raise InputError(
                t(
                    "--restore_config {path}: neither a complete checkpoint, nor a folder with one, nor an adapter in PEFT "
                    "format",
                    path=given,
                )
            )
        checkpoint = found
    from finetuning.storage.dcp_reader import ShardedFiles  # with torch, which takes a second

    ShardedFiles(checkpoint.path)  # somebody else may have written it: refused here, and in the workers as well
    before = checkpoint.info["identity"]
    different = [name for name in FIXED if before.get(name) != identity[name]]
    if different:
        raise InputError(
            [
                t(
                    "--restore_config {path}: {name} of the checkpoint is {before}, of this run {now}",
                    path=given,
                    name=name,
                    before=before.get(name),
                    now=identity[name],
                )
                for name in different
            ]
        )
    return checkpoint.path.resolve(), t("starts from the weights of {model}", model=checkpoint.path)


def with_adapter_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run that starts from an adapter: rank, alpha and targets that were not given are the adapter's.

    Raises:
        InputError: the adapter's settings cannot be read.
    """
    start = settings.get("restore_config")
    if settings.get("peft") != "lora" or not isinstance(start, str) or not peft.is_here(Path(start)):
        return settings
    from finetuning.formats.peft.sharded import adapter_settings  # with torch, which takes a second

    return adapter_settings(Path(start)) | settings


def _adapter_problems(folder: Path, config: RunConfig) -> list[str]:
    if config.peft != "lora":
        return [t("--restore_config {path}: a LoRA adapter can only be the start of a run with --peft lora", path=folder)]
    if not (folder / ADAPTER_WEIGHTS_FILE).is_file():
        return [t("--restore_config {path}: {file} is missing", path=folder, file=ADAPTER_WEIGHTS_FILE)]
    from finetuning.formats.peft.sharded import check_adapter

    try:
        return check_adapter(folder, config)
    except InputError as error:
        return error.problems


def _resume_messages(checkpoint: Checkpoint, config: RunConfig, max_steps: int) -> list[str]:
    age = datetime.now(UTC) - datetime.fromisoformat(checkpoint.info["saved_at"])
    messages = [
        t(
            "resuming {name} at step {step} of {max_steps} (saved {age} ago)",
            name=config.experiment,
            step=checkpoint.step,
            max_steps=max_steps,
            age=_duration(age.total_seconds()),
        )
    ]
    before, now = Degrees(**checkpoint.info["layout"]), degrees_of(config)
    if before != now:
        messages.append(
            t("saved as {before}, goes on as {now}: the losses agree to rounding, not to the last bit", before=before, now=now)
        )
    planned = checkpoint.info["max_steps"]
    if planned not in (None, max_steps):
        messages.append(
            t(
                "the schedule changes from {planned} to {max_steps} step{max_steps:s}: the learning rate follows the "
                "new cosine, the order "
                "of the samples stays",
                planned=planned,
                max_steps=max_steps,
            )
        )
    if config.restore_config:
        messages.append(t("--restore_config is not used: the experiment's own checkpoint comes first"))
    return messages


def _duration(seconds: float) -> str:
    if seconds < 2 * 3600:
        return t("{count:.0f} minute{count:s}", count=max(0.0, seconds) / 60)
    if seconds < 48 * 3600:
        return t("{count:.0f} hour{count:s}", count=seconds / 3600)
    return t("{count:.0f} day{count:s}", count=seconds / 86400)
