"""The two files of an adapter in PEFT's format: the settings by a schema, the weights by their header; imports no torch."""

import math
import re
from pathlib import Path
from typing import Any

import msgspec

from finetuning.errors import InputError
from finetuning.files.documents import as_schema, read_json
from finetuning.formats.huggingface.files import TensorHeader, dtype_problems, read_header
from finetuning.i18n import t

ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
MAX_RANK = 2**16
# Keys of alpha_pattern are regular expressions, and somebody else's: without groups, and with few repetitions, none takes long.
QUICK_PATTERN = re.compile(r"[^()*+{}]*(?:[*+][^()*+{}]*){0,3}")


class _AnyAdapter(msgspec.Struct, kw_only=True):
    peft_type: str | None = None
    base_model_name_or_path: str | None = None


class _Lora(_AnyAdapter, kw_only=True):
    """What is read of LoRA's settings; what may be null is as in PEFT."""

    r: int
    lora_alpha: float
    target_modules: str | list[str] | None = None
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
                t("{file}: alpha_pattern {pattern!r} is not understood; name the layers", file=file, pattern=pattern)
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


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True
