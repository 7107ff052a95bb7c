"""Where a run starts: newest complete checkpoint of the experiment > --restore_config > the base model's weights."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuning.checkpoint.adapters import CONFIG_FILE as ADAPTER_CONFIG_FILE
from finetuning.checkpoint.adapters import check_adapter
from finetuning.checkpoint.store import Checkpoint, find_checkpoints, open_checkpoint
from finetuning.config import RunConfig, read_run
from finetuning.errors import InputError
from finetuning.i18n import t
from finetuning.status import FINISHED, read_status

# What a checkpoint cannot take over: other tensors are trained, or the frozen ones would be others.
FIXED = ("peft", "lora_rank", "lora_alpha", "lora_targets", "model_shape")


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
        InputError: the experiment was started with other data, template, model or batch; or --restore_config does not fit.
    """
    complete, broken = find_checkpoints(experiment_dir / "checkpoints")
    messages = [t("ignored: {what}", what=what) for what in broken]
    status = read_status(experiment_dir)
    done = int(status.get("step", 0)) if status.get("state") == FINISHED else 0
    if complete:
        newest = complete[-1]
        refuse_changes(newest.info["identity"], identity, config)
        if done >= max_steps:
            return Start(newest, None, done, messages)
        return Start(newest, None, None, messages + _resume_messages(newest, config, max_steps))
    if done >= max_steps and (experiment_dir / "run.yaml").is_file():
        refuse_changes(read_run(experiment_dir / "run.yaml").identity, identity, config)
        return Start(None, None, done, messages)
    if config.restore_config:
        weights, message = find_initial_weights(config, identity)
        return Start(None, weights, None, [*messages, message])
    return Start(None, None, None, [*messages, t("starts from the weights of {model}", model=config.hf_model_id)])


def refuse_changes(before: dict[str, Any], now: dict[str, Any], config: RunConfig) -> None:
    """Compares what an experiment was started with to what is asked for now.

    Raises:
        InputError: with the differences side by side; `--accept_changes` lets pass those that can be taken over.
    """
    changed = [name for name in now if before.get(name) != now[name]]
    fixed = [name for name in changed if name in FIXED]
    if not changed or (config.accept_changes and not fixed):
        return
    lines = [t("{name}: was {before}, is now {now}", name=name, before=before.get(name), now=now[name]) for name in changed]
    if fixed:
        advice = t("these cannot change inside one experiment; give another --experiment name")
    else:
        advice = t("give another --experiment name, or --accept_changes to go on with the new ones")
    raise InputError(
        t("experiment {name} was started with other settings:\n      {lines}\n    {advice}", name=config.experiment,
          lines="\n      ".join(lines), advice=advice)
    )  # fmt: skip


def find_initial_weights(config: RunConfig, identity: dict[str, Any]) -> tuple[Path, str]:
    """The folder of --restore_config that holds weights for this run, and a message about it.

    Accepts a checkpoint, an experiment folder or its `checkpoints` folder (the newest checkpoint is taken), a model in
    Hugging Face format, or, with LoRA, an adapter in PEFT format.
    """
    assert config.restore_config is not None
    given = Path(config.restore_config)
    if (given / ADAPTER_CONFIG_FILE).is_file():
        problems = check_adapter(given, config) if config.peft == "lora" else [
            t("--restore_config {path}: a LoRA adapter can only be the start of a run with --peft lora", path=given)
        ]  # fmt: skip
        if problems:
            raise InputError(problems)
        return given.resolve(), t("starts from the adapter {path}", path=given)
    if (given / "config.json").is_file():
        if config.peft == "lora":
            raise InputError(
                t("--restore_config {path}: a whole model is the base of a LoRA run; give it as --hf_model_id", path=given)
            )
        return given.resolve(), t("starts from the weights of {model}", model=given)
    checkpoint = open_checkpoint(given)
    if not isinstance(checkpoint, Checkpoint):
        found = next((c for f in (given, given / "checkpoints") for c in reversed(find_checkpoints(f)[0])), None)
        if found is None:
            raise InputError(
                t("--restore_config {path}: neither a complete checkpoint, nor a folder with one, nor a model or adapter in "
                  "Hugging Face format", path=given)
            )  # fmt: skip
        checkpoint = found
    before = checkpoint.info["identity"]
    different = [name for name in FIXED if before.get(name) != identity[name]]
    if different:
        raise InputError([
            t("--restore_config {path}: {name} of the checkpoint is {before}, of this run {now}", path=given, name=name,
              before=before.get(name), now=identity[name])
            for name in different
        ])  # fmt: skip
    return checkpoint.path.resolve(), t("starts from the weights of {model}", model=checkpoint.path)


def _resume_messages(checkpoint: Checkpoint, config: RunConfig, max_steps: int) -> list[str]:
    saved = time.mktime(time.strptime(checkpoint.info["saved_at"][:19], "%Y-%m-%dT%H:%M:%S"))
    messages = [
        t("resuming {name} at step {step} of {max_steps} (saved {minutes:.0f} minutes ago)", name=config.experiment,
          step=checkpoint.step, max_steps=max_steps, minutes=max(0.0, time.time() - saved) / 60)
    ]  # fmt: skip
    planned = checkpoint.info["max_steps"]
    if planned != max_steps:
        messages.append(
            t("the schedule changes from {planned} to {max_steps} steps: the learning rate follows the new cosine, the order "
              "of the samples stays", planned=planned, max_steps=max_steps)
        )  # fmt: skip
    if config.restore_config:
        messages.append(t("--restore_config is not used: the experiment's own checkpoint comes first"))
    return messages
