"""The doors of checkpoints of NeMo and Megatron (finetuning.formats.found_model)."""

from pathlib import Path
from typing import TYPE_CHECKING

from finetuning.config.llama import read_llama_config
from finetuning.formats.found_model import FoundModel, cache_folder
from finetuning.formats.inspection import Inspection, StoredWeight
from finetuning.formats.nemo.find import check_archive, is_nemo

if TYPE_CHECKING:
    from finetuning.formats.nemo.checkpoint import NemoCheckpoint
    from finetuning.formats.nemo.weights import MegatronSource

NEEDS_BASE = False
AXES = {
    "tensor": "tensor_model_parallel_size",
    "pipeline": "pipeline_model_parallel_size",
    "context": "context_parallel_size",
}


def is_here(path: Path) -> bool:
    return is_nemo(path)


def named_base(path: Path) -> str | None:
    return None


def open(found: FoundModel) -> "MegatronSource":
    from finetuning.formats.nemo.checkpoint import describe_nemo, nemo_source  # with torch, which takes a second

    checkpoint = _checkpoint(found)
    folder = found.base.path if found.base is not None else describe_nemo(checkpoint, cache_folder())
    return nemo_source(checkpoint, read_llama_config(folder))


def describe(found: FoundModel) -> Path:
    """That of its base where the checkpoint has no settings or no tokenizer."""
    from finetuning.formats.nemo.checkpoint import describe_nemo

    return found.base.path if found.base is not None else describe_nemo(_checkpoint(found), cache_folder())


def fingerprint(found: FoundModel) -> str:
    from finetuning.formats.nemo.checkpoint import nemo_fingerprint

    return nemo_fingerprint(_checkpoint(found))


def inspect(found: FoundModel) -> Inspection:
    checkpoint = _checkpoint(found)
    from finetuning.formats.nemo.weights import model_keys

    table, settings = checkpoint.table, checkpoint.settings or {}
    layout = {axis: settings[name] for axis, name in AXES.items() if isinstance(settings.get(name), int)}
    return Inspection(
        str(checkpoint.path),
        checkpoint.kind,
        checkpoint.own_config(),
        {key: StoredWeight(tuple(table.sizes[key]), str(table.dtype(key)).removeprefix("torch.")) for key in model_keys(table)},
        checkpoint.step,
        str(checkpoint.tokenizer) if checkpoint.tokenizer is not None else None,
        layout or None,
        any(key.startswith("optimizer.") for key in table.sizes),
    )


def _checkpoint(found: FoundModel) -> "NemoCheckpoint":
    check_archive(found.path, cache_folder())
    from finetuning.formats.nemo.checkpoint import open_nemo  # with torch, which takes a second

    return open_nemo(found.path, cache_folder())
