"""An adapter in PEFT's format as the start of a run: whether it fits, its settings, its weights into the sharded model."""

from pathlib import Path
from typing import Any

from finetuning.config.settings import LORA_TARGETS, RunConfig
from finetuning.errors import InputError
from finetuning.formats.peft.adapter import read_tensors
from finetuning.formats.peft.files import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    PLAIN_SETTINGS,
    PREFIX,
    check_layers,
    read_adapter_header,
    read_settings,
)
from finetuning.formats.peft.settings import unsupported_settings
from finetuning.i18n import t
from finetuning.model.lora import initial_adapter, is_adapter
from finetuning.parallel.parallelize import ParallelLlama, adapter_parameters
from finetuning.parallel.weights import fill


def initialize_adapters(model: ParallelLlama, seed: int) -> None:
    """Fills the adapters with their start values, the same in every layout; every rank must call it."""
    for name, parameter in adapter_parameters(model).items():
        view = model.view(name, parameter.data)
        fill(view, initial_adapter(name, view.shape, seed))


def check_adapter(folder: Path, config: RunConfig) -> list[str]:
    """What keeps this PEFT adapter from being the start of the run; empty when it fits.

    Raises:
        InputError: a file is damaged, or its weights are not those that its settings name.
    """
    settings = read_settings(folder)
    problems = [
        t(
            "{folder}: {name} is {value!r}; only {supported!r} is supported",
            folder=folder,
            name=name,
            value=settings[name],
            supported=plain,
        )
        for name, plain in PLAIN_SETTINGS.items()
        if settings.get(name) and settings[name] != plain
    ] or unsupported_settings(folder, settings)
    if problems:
        return problems
    found = adapter_settings(folder)
    wanted = {
        "lora_rank": config.lora_rank,
        "lora_alpha": config.alpha,
        "lora_scaling": config.lora_scaling,
        "lora_targets": config.lora_targets,
    }
    same = {
        "lora_rank": found["lora_rank"] == config.lora_rank,
        "lora_alpha": found["lora_alpha"] == config.alpha,
        "lora_scaling": found["lora_scaling"] == config.lora_scaling,
        "lora_targets": sorted(found["lora_targets"]) == sorted(config.lora_targets),
    }
    different = [
        t(
            "{folder}: the adapter has --{name} {found}, but the run asks for {wanted}; give the same, or leave it out",
            folder=folder,
            name=name,
            found=_shown(found[name]),
            wanted=_shown(wanted[name]),
        )
        for name, is_same in same.items()
        if not is_same
    ]
    if different:
        return different
    stored = _stored_targets(folder)
    if stored != set(found["lora_targets"]):
        return [
            t(
                "{folder}: {settings} names the layers {named}, but {weights} holds {stored}",
                folder=folder,
                settings=ADAPTER_CONFIG_FILE,
                named=_shown(tuple(sorted(found["lora_targets"]))),
                weights=ADAPTER_WEIGHTS_FILE,
                stored=_shown(tuple(sorted(stored))),
            )
        ]
    check_layers(folder, settings, read_adapter_header(folder))
    return []


def adapter_settings(folder: Path) -> dict[str, Any]:
    """The run's settings that an adapter in PEFT format brings with it: rank, alpha, scaling and targets.

    Raises:
        InputError: a file is missing or damaged.
    """
    settings = read_settings(folder)
    if settings.get("peft_type") != "LORA":
        raise InputError(unsupported_settings(folder, settings))
    rank, alpha = int(settings["r"]), float(settings["lora_alpha"])
    targets = settings.get("target_modules")
    if not isinstance(targets, list):  # "all-linear" or a pattern: what there is says it
        targets = _stored_targets(folder)
    known = [target for target in LORA_TARGETS if target in targets]
    others = sorted(set(targets) - set(known))
    return {
        "lora_rank": rank,
        "lora_alpha": alpha,
        "lora_scaling": "rslora" if settings.get("use_rslora") else "standard",
        "lora_targets": tuple(known + others),
    }


def load_adapters(folder: Path, model: ParallelLlama) -> None:
    """Fills the adapters from a PEFT folder; every rank must call it.

    Raises:
        InputError: the file lacks an adapter of this model, or holds more than that.
    """
    stored = read_tensors(folder)
    wanted = [name for name in model.all_shapes() if is_adapter(name)]
    for name in wanted:
        if PREFIX + name not in stored:
            raise InputError(t("{folder}: holds no adapter {name}", folder=folder, name=name))
    if others := sorted(stored.keys() - {PREFIX + name for name in wanted}):
        raise InputError(t("{folder}: holds what this run would not use: {names}", folder=folder, names=", ".join(others[:3])))
    for name, parameter in adapter_parameters(model).items():
        fill(model.view(name, parameter.data), stored[PREFIX + name])


def _stored_targets(folder: Path) -> set[str]:
    """The linear layers that adapters are stored for, whatever the settings say."""
    return {name.split(".")[-3] for name in read_adapter_header(folder) if name.endswith(".lora_A.weight")}


def _shown(value: object) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)
