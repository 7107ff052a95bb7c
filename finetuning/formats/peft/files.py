"""The two files of an adapter in PEFT's format: the settings by a schema, the weights by their header; imports no torch."""

import math
import re
from pathlib import Path
from typing import Any

import msgspec

from finetuning.errors import InputError
from finetuning.files.documents import as_schema, read_json
from finetuning.formats.huggingface.files import TensorHeader, dtype_problems, read_header, refuse_embedded_adapter
from finetuning.formats.peft.targets import untargeted
from finetuning.i18n import t

PREFIX = "base_model.model."  # PEFT's wrapper in front of our names
ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
MAX_RANK = 2**16
# Keys of alpha_pattern are regular expressions, and somebody else's: without groups, and with few repetitions, none takes long.
QUICK_PATTERN = re.compile(r"[^()*+{}]*(?:[*+][^()*+{}]*){0,3}")
# What training computes; any other value is refused. Merging and generating know more: finetuning.formats.peft.adapter.
PLAIN_SETTINGS: dict[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "fan_in_fan_out": False,
    "layers_to_transform": None,
    "rank_pattern": {},
    "alpha_pattern": {},
}


class _AnyAdapter(msgspec.Struct, kw_only=True):
    peft_type: str | None = None
    base_model_name_or_path: str | None = None


class _Lora(_AnyAdapter, kw_only=True):
    """What is read of LoRA's settings; what may be null is as in PEFT."""

    r: int
    lora_alpha: float
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    use_rslora: bool | None = None
    use_dora: bool | None = None
    init_lora_weights: bool | str | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None


def read_settings(folder: Path) -> dict[str, Any]:
    """adapter_config.json.

    Raises:
        InputError: it is missing or damaged, or a value has the wrong type.
    """
    refuse_embedded_adapter(folder)
    file = folder / ADAPTER_CONFIG_FILE
    try:
        settings = read_json(file, dict[str, Any])
    except FileNotFoundError:
        raise InputError(t("{folder}: holds no {file}", folder=folder, file=ADAPTER_CONFIG_FILE)) from None
    if settings.get("peft_type") != "LORA":  # others are refused by their type, and inspected
        as_schema(settings, _AnyAdapter, file)
        return settings
    lora = as_schema(settings, _Lora, file)
    alphas = {"lora_alpha": lora.lora_alpha, **(lora.alpha_pattern or {})}
    problems = [
        t("{file}: {name} is {value}, but must be {rule}", file=file, name=name, value=alpha, rule=t("a finite number"))
        for name, alpha in alphas.items()
        if not math.isfinite(alpha)
    ]
    if not 0 < lora.r <= MAX_RANK:
        rule = t("between {least} and {most}", least=1, most=MAX_RANK)
        problems.append(t("{file}: {name} is {value}, but must be {rule}", file=file, name="r", value=lora.r, rule=rule))
    for pattern in lora.alpha_pattern or {}:
        if not QUICK_PATTERN.fullmatch(pattern) or not _is_pattern(pattern):
            problems.append(
                t(
                    "{file}: {name} {pattern!r} is not understood; name the layers",
                    file=file,
                    name="alpha_pattern",
                    pattern=pattern,
                )
            )
    if problems:
        raise InputError(problems)
    return settings


def read_adapter_header(folder: Path) -> dict[str, TensorHeader]:
    """What adapter_model.safetensors holds, by PEFT's names.

    Raises:
        InputError: it is missing or damaged, or holds what is no plain number.
    """
    file = folder / ADAPTER_WEIGHTS_FILE
    if not file.is_file():
        there = ", ".join(sorted(path.name for path in folder.glob("*.bin"))) or t("nothing")
        raise InputError(
            t("{file} is missing (other weight files: {there}); weights must be in safetensors format", file=file, there=there)
        )
    found = read_header(file)
    if problems := dtype_problems({(file, name): header.dtype for name, header in found.items()}):
        raise InputError(problems)
    return found


def check_layers(folder: Path, settings: dict[str, Any], header: dict[str, TensorHeader]) -> None:
    """
    Raises:
        InputError: an adapter is stored for a layer that the settings do not name, where PEFT would pass over it, or with
            another rank than theirs.
    """
    file, ranks = folder / ADAPTER_CONFIG_FILE, {settings["r"], *(settings.get("rank_pattern") or {}).values()}
    wrong = [
        t(
            "{folder}: {name} has the shape {found}, which is no adapter of rank {ranks}",
            folder=folder,
            name=name,
            found=list(tensor.shape),
            ranks=", ".join(map(str, sorted(ranks))),
        )
        for name, tensor in header.items()
        for dim, end in ((0, ".lora_A.weight"), (1, ".lora_B.weight"))
        if name.endswith(end) and not (len(tensor.shape) == 2 and tensor.shape[dim] in ranks)
    ]
    # A and B may both have a rank that is allowed, and not the same.
    ranks_of_b = {
        name.replace(".lora_B.", ".lora_A."): tensor.shape[-1:] for name, tensor in header.items() if ".lora_B." in name
    }
    wrong += [
        t("{folder}: {name} and its lora_B have ranks that differ", folder=folder, name=name)
        for name, tensor in header.items()
        if name in ranks_of_b and not wrong and ranks_of_b[name] != tensor.shape[:1]
    ]
    if wrong:
        raise InputError(wrong[:3])
    modules = [name.removeprefix(PREFIX).removesuffix(".lora_A.weight") for name in header if name.endswith(".lora_A.weight")]
    if unused := untargeted(settings, modules, file):
        raise InputError(
            t(
                "{file}: names no adapter of {names}, but {weights} holds one, which PEFT would pass over",
                file=file,
                names=", ".join(unused[:3]) + (f", … ({len(unused)})" if len(unused) > 3 else ""),
                weights=ADAPTER_WEIGHTS_FILE,
            )
        )


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True
