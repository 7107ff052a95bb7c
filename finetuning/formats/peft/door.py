"""The doors of adapters in PEFT format (finetuning.formats.found_model)."""

from pathlib import Path
from typing import TYPE_CHECKING

from finetuning.errors import InputError
from finetuning.formats.found_model import FoundModel, describe_base, fingerprint_base
from finetuning.formats.huggingface.files import read_header
from finetuning.formats.inspection import Inspection, stored_weights, tokenizer_file
from finetuning.formats.peft.files import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    check_layers,
    read_adapter_header,
    read_settings,
)
from finetuning.formats.peft.settings import unsupported_settings
from finetuning.formats.provenance import check_base

if TYPE_CHECKING:
    from finetuning.formats.peft.adapter import MergedSource

NEEDS_BASE = True


def is_here(path: Path) -> bool:
    return (path / ADAPTER_CONFIG_FILE).is_file()


def named_base(path: Path) -> str | None:
    return read_settings(path).get("base_model_name_or_path") or None


def open(found: FoundModel) -> "MergedSource":
    from finetuning.formats.peft.adapter import MergedSource, read_adapter  # with torch, which takes a second

    adapter, base = read_adapter(found.path), found.required_base()
    source = base.kind.open(base)
    adapter.check(source.shapes(), found.path)
    return MergedSource(source, adapter, check_base(found, (found.origin or {}).get("base_fingerprint")))


describe, fingerprint = describe_base, fingerprint_base


def inspect(found: FoundModel) -> Inspection:
    settings = read_settings(found.path)
    problems = unsupported_settings(found.path, settings)
    try:
        if not problems:
            check_layers(found.path, settings, read_adapter_header(found.path))
    except InputError as error:
        problems = error.problems
    return Inspection(
        str(found.path),
        f"PEFT {settings.get('peft_type', '?')}, r = {settings.get('r', '?')}",
        None,
        stored_weights(read_header(found.path / ADAPTER_WEIGHTS_FILE)),
        tokenizer=tokenizer_file(found.path),
        base=settings.get("base_model_name_or_path"),
        problems=tuple(problems),
    )
