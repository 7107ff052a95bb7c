"""The doors of GGUF files (finetuning.formats.found_model)."""

from pathlib import Path
from typing import TYPE_CHECKING

from finetuning.config.llama import read_llama_config
from finetuning.formats.found_model import FoundModel, cache_folder
from finetuning.formats.gguf.header import GGUF_NAMES, MAGIC, read_gguf_header
from finetuning.formats.inspection import Inspection, StoredWeight

if TYPE_CHECKING:
    from finetuning.formats.gguf.weights import GgufModel, GgufSource

NEEDS_BASE = False


def is_here(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def named_base(path: Path) -> str | None:
    return None


def open(found: FoundModel) -> "GgufSource":
    return _model(found).source(read_llama_config(found.base.path) if found.base is not None else None)


def describe(found: FoundModel) -> Path:
    """That of its base where the file's own tokenizer cannot be read."""
    return found.base.path if found.base is not None else _model(found).describe(cache_folder())


def fingerprint(found: FoundModel) -> str:
    return _model(found).fingerprint()


def inspect(found: FoundModel) -> Inspection:
    header = read_gguf_header(found.path)
    weights = {name: StoredWeight(tensor.shape, tensor.type_name) for name, tensor in header.tensors.items()}
    architecture = str(header.settings.get("general.architecture", "?"))
    values = {ours: header.settings.get(f"{architecture}.{theirs}") for theirs, ours in GGUF_NAMES.items()}
    shown = ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
    tokenizer = [str(header.settings[key]) for name in ("model", "pre") if (key := f"tokenizer.ggml.{name}") in header.settings]
    return Inspection(
        str(found.path),
        f"GGUF {header.version}, {architecture} ({shown})",
        _model(found).config if architecture == "llama" else None,
        weights,
        tokenizer=", ".join(tokenizer) or None,
    )


def _model(found: FoundModel) -> "GgufModel":
    from finetuning.formats.gguf.weights import open_gguf  # with torch, which takes a second

    return open_gguf(found.path)
