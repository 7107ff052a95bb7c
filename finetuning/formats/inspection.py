"""What lies at a path: format, model, weights, step, tokenizer. Reads headers and tables of contents, no weights."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finetuning.checkpoint.files import INFO_FILE, Checkpoint, open_checkpoint, run_of
from finetuning.config.llama import LlamaConfig, read_llama_config
from finetuning.errors import InputError
from finetuning.formats.gguf.header import GGUF_NAMES, is_gguf, read_gguf_header
from finetuning.formats.gguf.weights import GgufModel
from finetuning.formats.huggingface.files import DTYPE_OF_CODE, TensorHeader, read_header, read_headers
from finetuning.formats.nemo.checkpoint import TOKENIZER_FILES, NemoCheckpoint, is_nemo, open_nemo
from finetuning.formats.nemo.weights import model_keys
from finetuning.formats.peft.files import ADAPTER_CONFIG_FILE as ADAPTER_FILE
from finetuning.formats.peft.files import ADAPTER_WEIGHTS_FILE, read_settings
from finetuning.formats.recognize import find_model_in
from finetuning.formats.weight_source import HuggingFaceSource
from finetuning.i18n import t
from finetuning.storage.dcp_reader import ShardedFiles


@dataclass(frozen=True)
class StoredWeight:
    shape: tuple[int, ...]
    dtype: str

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Inspection:
    """What was found; None: not known, or it has none."""

    path: str
    format: str
    model: LlamaConfig | None
    weights: Mapping[str, StoredWeight]  # under the names that they are stored with
    step: int | None = None  # optimizer steps done
    tokenizer: str | None = None
    layout: Mapping[str, int] | None = None  # parallel degrees that it was saved with
    optimizer_states: bool = False
    base: str | None = None  # the model that an adapter or checkpoint goes back to
    problems: tuple[str, ...] = ()  # why no command takes it

    @property
    def parameters(self) -> int:
        return sum(weight.numel for weight in self.weights.values())

    @property
    def dtypes(self) -> dict[str, int]:
        """dtype -> number of tensors."""
        return dict(Counter(weight.dtype for weight in self.weights.values()))

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        values = dataclasses.asdict(self)
        return values | {"parameters": self.parameters, "dtypes": self.dtypes}


def inspect(path: Path, scratch: Path) -> Inspection:
    """Recognises what lies at `path`; `scratch` is a folder for what has to be decompressed.

    Raises:
        InputError: nothing that is known, with what was found; or it is damaged.
    """
    if not path.exists():
        raise InputError(t("{path}: there is no such file or folder", path=path))
    if path.is_file() and is_gguf(path):
        return _gguf(path)
    if path.is_file() or _is_only_nemo(path):
        return _nemo(open_nemo(path, scratch))
    path = find_model_in(path)
    if (path / ADAPTER_FILE).is_file():
        return _adapter(path)
    if (path / INFO_FILE).is_file():
        return _checkpoint(path)
    return _hugging_face(path)


def _is_only_nemo(path: Path) -> bool:
    ours = any((path / name).exists() for name in ("config.json", ADAPTER_FILE, INFO_FILE, "run.yaml"))
    return not ours and is_nemo(path)


def _nemo(checkpoint: NemoCheckpoint) -> Inspection:
    table, settings = checkpoint.table, checkpoint.settings or {}
    axes = {
        "tensor": "tensor_model_parallel_size",
        "pipeline": "pipeline_model_parallel_size",
        "context": "context_parallel_size",
    }
    layout = {axis: settings[name] for axis, name in axes.items() if isinstance(settings.get(name), int)}
    weights = {key: StoredWeight(tuple(table.sizes[key]), _name(table.dtype(key))) for key in model_keys(table)}
    return Inspection(
        str(checkpoint.path), checkpoint.kind, checkpoint.own_config(), weights, checkpoint.step,
        str(checkpoint.tokenizer) if checkpoint.tokenizer is not None else None, layout or None,
        any(key.startswith("optimizer.") for key in table.sizes),
    )  # fmt: skip


def _hugging_face(path: Path) -> Inspection:
    source, model, problems = HuggingFaceSource(path), None, []
    try:
        model = source.config
        assert source.headers
    except InputError as error:
        problems = error.problems
    weights = _from_headers(read_headers(path))
    return Inspection(str(path), "Hugging Face", model, weights, tokenizer=_tokenizer(path), problems=tuple(problems))


def _from_headers(headers: Mapping[str, TensorHeader]) -> dict[str, StoredWeight]:
    return {name: StoredWeight(header.shape, DTYPE_OF_CODE.get(header.dtype, header.dtype)) for name, header in headers.items()}


def _adapter(path: Path) -> Inspection:
    settings = read_settings(path)
    weights = _from_headers(read_header(path / ADAPTER_WEIGHTS_FILE))
    kind = f"PEFT {settings.get('peft_type', '?')}, r = {settings.get('r', '?')}"
    return Inspection(str(path), kind, None, weights, tokenizer=_tokenizer(path), base=settings.get("base_model_name_or_path"))


def _checkpoint(path: Path) -> Inspection:
    checkpoint = open_checkpoint(path)
    if not isinstance(checkpoint, Checkpoint):
        raise InputError(checkpoint)
    files, run = ShardedFiles(path), run_of(path)
    weights = {
        name.removeprefix("model."): StoredWeight(tuple(size), _name(files.dtype(name)))
        for name, size in files.sizes.items()
        if name.startswith("model.")
    }
    folder = Path(run.model_path) if run is not None else None
    known = folder is not None and (folder / "config.json").is_file()
    trained = checkpoint.info["identity"]["peft"]
    return Inspection(
        str(path), "finetune, " + ("LoRA" if trained == "lora" else "all weights"),
        read_llama_config(folder) if known and folder is not None else None, weights, checkpoint.step,
        _tokenizer(folder) if folder is not None else None, checkpoint.info.get("layout"),
        any(name.startswith("optimizer.") for name in files.sizes), str(folder) if folder is not None else None,
    )  # fmt: skip


def _gguf(path: Path) -> Inspection:
    header = read_gguf_header(path)
    weights = {name: StoredWeight(tensor.shape, tensor.type_name) for name, tensor in header.tensors.items()}
    architecture = str(header.settings.get("general.architecture", "?"))
    found = {ours: header.settings.get(f"{architecture}.{theirs}") for theirs, ours in GGUF_NAMES.items()}
    shown = ", ".join(f"{name} {value}" for name, value in found.items() if value is not None)
    tokenizer = [str(header.settings[key]) for name in ("model", "pre") if (key := f"tokenizer.ggml.{name}") in header.settings]
    return Inspection(
        str(path), f"GGUF {header.version}, {architecture} ({shown})",
        GgufModel(path, header).config if architecture == "llama" else None, weights, tokenizer=", ".join(tokenizer) or None,
    )  # fmt: skip


def _tokenizer(folder: Path) -> str | None:
    return next((str(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()), None)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
