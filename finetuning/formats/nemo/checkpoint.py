"""NeMo's and Megatron's checkpoints: found, recognized and opened; nothing but torch is needed.

- NeMo 2: a folder with `weights/` (torch_dist) and `context/` (settings, tokenizer).
- Megatron-Bridge and Megatron-LM: `iter_0000100/` (torch_dist, with `run_config.yaml` or arguments in `common.pt`) below a
  folder with `latest_…`.
- torch_dist alone: `.metadata`, `*.distcp`, `common.pt`, `metadata.json`.
- NeMo 1: a `.nemo` archive with `model_config.yaml` and `model_weights.ckpt`, or torch_dist files in `model_weights/`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuning.checkpoint.files import INFO_FILE
from finetuning.config.llama import LlamaConfig, read_llama_config, write_llama_config
from finetuning.errors import InputError
from finetuning.formats.huggingface.companions import CONFIG_FILE, copy_companions, copy_config, special_token_ids
from finetuning.formats.huggingface.files import sampled_digest
from finetuning.formats.inspection import TOKENIZER_FILES
from finetuning.formats.nemo.find import BACKEND_FILE, TRACKER_FILES, checkpoints_below, is_checkpoint
from finetuning.formats.nemo.settings import differences, llama_config, read_io_json, read_yaml
from finetuning.formats.nemo.weights import TABLE, MegatronSource, find_prefix
from finetuning.i18n import t
from finetuning.storage.dcp_reader import ShardedFiles
from finetuning.storage.file_parts import FilePart, FileParts, folder_parts
from finetuning.storage.safe_pickle import fields_of, read_torch_file
from finetuning.storage.signs import METADATA_FILE, is_archive
from finetuning.storage.stored_tensors import StoredTable, StoredTensor, TensorTable
from finetuning.storage.tar import archive_parts

NEMO_2, BRIDGE, TORCH_DIST, NEMO_1 = "NeMo 2", "Megatron-Bridge", "Megatron torch_dist", "NeMo 1"
COMMON_FILE = "common.pt"


@dataclass(frozen=True)
class NemoCheckpoint:
    """One checkpoint that has been opened: its table of contents and its settings, no weights."""

    path: Path  # the folder or the archive
    readable: Path  # the same, but of a compressed archive the decompressed one
    kind: str
    table: TensorTable
    prefix: str  # before Megatron's names
    settings: Mapping[str, Any] | None  # None: there are none
    settings_file: Path
    tokenizer: Path | None  # folder with a tokenizer in Hugging Face format
    step: int | None

    @property
    def rows(self) -> int:
        """Of the embedding: the vocabulary, padding included."""
        return self.table.sizes[self.prefix + TABLE][0]

    @property
    def dtype(self) -> str:
        return str(self.table.dtype(self.prefix + TABLE)).removeprefix("torch.")

    def own_config(self) -> LlamaConfig | None:
        """The shape as the checkpoint describes it; None when it does not.

        Raises:
            InputError: it is no Llama.
        """
        if self.settings is None:
            return None
        return llama_config(self.settings, self.rows, self.dtype, self.settings_file)


def open_nemo(given: Path, scratch: Path) -> NemoCheckpoint:
    """Opens the checkpoint at `given`, or the newest one below it.

    Args:
        given: as the user named it.
        scratch: folder for what has to be decompressed.

    Raises:
        InputError: there is none, it is damaged, or it is of another kind; with what was found.
    """
    if not given.exists():
        raise InputError(t("{path}: there is no such file or folder", path=given))
    try:
        path = given if given.is_file() else _find_folder(given)
        if path.is_file():
            return _open_archive(path, scratch)
        if (path / "weights").is_dir():
            return _open_nemo_2(path)
        return _open_torch_dist(path)
    except OSError as error:
        raise InputError(
            t("{file}: cannot be read: {error}", file=error.filename or given, error=error.strerror or error)
        ) from None


def nemo_source(checkpoint: NemoCheckpoint, config: LlamaConfig | None) -> MegatronSource:
    """The weights of a checkpoint; `config` (None: the checkpoint's own) has been compared with it.

    Raises:
        InputError: the two differ, there is no configuration at all, or the weights have other shapes.
    """
    own = checkpoint.own_config()
    if config is None:
        config = own
    elif own is not None and (found := differences(own, config)):
        raise InputError([f"{checkpoint.path}: {difference}" for difference in found])
    if config is None:
        raise InputError(
            t(
                "{path}: holds no settings of its model ({names}); give the model's config.json, by --hf_model_id or --base",
                path=checkpoint.path,
                names="context/model.yaml, run_config.yaml",
            )
        )
    source = MegatronSource(checkpoint.table, config, checkpoint.prefix)
    source.check()
    return source


def nemo_fingerprint(checkpoint: NemoCheckpoint) -> str:
    """Identifies the weights without reading them all."""
    path = checkpoint.path
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    weights = (file for file in files if file.suffix == ".distcp" or file.name == METADATA_FILE or file == path)
    return sampled_digest(b"", [file for file in weights if file.is_file()])


def describe_nemo(checkpoint: NemoCheckpoint, scratch: Path) -> Path:
    """A folder in Hugging Face format without weights: the checkpoint's own configuration and tokenizer.

    Raises:
        InputError: it lacks one of them.
    """
    config = checkpoint.own_config()
    if config is None or checkpoint.tokenizer is None:
        lacking = t("settings of its model") if config is None else t("tokenizer in Hugging Face format")
        raise InputError(
            t(
                "{path}: holds no {lacking}; give the model's folder or hub name as --hf_model_id or --base, for its "
                "configuration and tokenizer",
                path=checkpoint.path,
                lacking=lacking,
            )
        )
    target = scratch / f"{checkpoint.path.name}-{nemo_fingerprint(checkpoint)}"
    target.mkdir(parents=True, exist_ok=True)
    copy_companions(checkpoint.tokenizer, target, None)
    if (checkpoint.tokenizer / CONFIG_FILE).is_file():  # our export leaves it there
        kept = read_llama_config(checkpoint.tokenizer)
        if found := differences(config, kept):
            raise InputError([f"{checkpoint.path}: {difference}" for difference in found])
        copy_config(checkpoint.tokenizer, target, None if kept.dtype == config.dtype else config.dtype)
    else:
        write_llama_config(config, target, **special_token_ids(target))
    return target


def _find_folder(given: Path) -> Path:
    """The folder of the one checkpoint that is meant."""
    if (given / CONFIG_FILE).is_file():
        raise InputError(t("{path}: this is a model in Hugging Face format; give it as --hf_model_id", path=given))
    if (given / INFO_FILE).is_file():
        raise InputError(t("{path}: this is a checkpoint of this command; give it as --restore_config", path=given))
    if given.name == "weights" and (given.parent / "context").is_dir() and (given / METADATA_FILE).is_file():
        return given.parent
    if is_checkpoint(given):
        return given
    tracked = _tracked(given)
    if tracked is not None:
        if not tracked.is_dir():
            raise InputError(
                t("{path}: names {folder} as its newest checkpoint, which is not there", path=given, folder=tracked.name)
            )
        return tracked
    found = checkpoints_below(given)
    newest = [path for path in found if path.stem.endswith("-last")]
    if len(newest) == 1 or len(found) == 1:
        return (newest if len(newest) == 1 else found)[0]
    if found:
        raise InputError(
            t(
                "{path}: holds {count} checkpoint{count:s}; give one of them: {names}",
                path=given,
                count=len(found),
                names=", ".join(str(path.relative_to(given)) for path in found[:8]),
            )
        )
    names = ", ".join(sorted(path.name for path in given.iterdir())[:8]) or t("nothing")
    raise InputError(
        t(
            "{path}: no checkpoint of NeMo or Megatron (weights/ and context/, {metadata}, iter_…, or a .nemo file); found "
            "{names}",
            path=given,
            metadata=METADATA_FILE,
            names=names,
        )
    )


def _tracked(folder: Path) -> Path | None:
    """The folder that a tracker file names."""
    text, state = (folder / name for name in TRACKER_FILES)
    if text.is_file():
        name = text.read_text(encoding="utf-8", errors="replace").strip()
        if not re.fullmatch(r"release|\d{1,12}", name):
            raise InputError(t("{file}: holds {value!r} instead of a number", file=text, value=name[:40]))
        return folder / ("release" if name == "release" else f"iter_{int(name):07d}")
    if state.is_file():
        step = _step_of_train_state(state)
        return None if step is None else folder / f"iter_{step:07d}"
    return None


def _open_nemo_2(path: Path) -> NemoCheckpoint:
    table, common = _open_sharded(folder_parts(path / "weights"))
    context = path / "context"
    parts = folder_parts(context).files if context.is_dir() else {}
    settings, file = None, context / "model.yaml"
    if "model.yaml" in parts:
        inner = read_yaml(parts["model.yaml"])
        settings = inner.get("config", inner)
        if not isinstance(settings, dict):
            raise InputError(t("{file}: holds no settings", file=file))
    elif "io.json" in parts:
        settings, file = read_io_json(parts["io.json"]), context / "io.json"
    tokenizer = next((folder for folder in _folders(context) if _has_tokenizer(folder)), None)
    return NemoCheckpoint(path, path, NEMO_2, table, find_prefix(table), settings, file, tokenizer, _step(common, path))


def _open_torch_dist(path: Path) -> NemoCheckpoint:
    parts = folder_parts(path)
    table, common = _open_sharded(parts)
    settings: Mapping[str, Any] | None = None
    kind, file = TORCH_DIST, path / COMMON_FILE
    if "run_config.yaml" in parts.files:
        kind, file = BRIDGE, path / "run_config.yaml"
        settings = read_yaml(parts.files["run_config.yaml"]).get("model")
        if not isinstance(settings, dict):
            raise InputError(t("{file}: holds no settings", file=file))
    elif "args" in common:
        settings = fields_of(common["args"])
    tokenizer = path / "tokenizer" if _has_tokenizer(path / "tokenizer") else None
    return NemoCheckpoint(path, path, kind, table, find_prefix(table), settings, file, tokenizer, _step(common, path))


def _open_archive(path: Path, scratch: Path) -> NemoCheckpoint:
    if not is_archive(path):
        raise InputError(t("{file}: not an archive of NeMo (tar, or tar compressed by gzip)", file=path))
    parts = archive_parts(path, scratch)
    if "model_config.yaml" not in parts.files:
        found = ", ".join(sorted(parts.files)[:8]) or t("nothing")
        raise InputError(t("{file}: holds no model_config.yaml; found {found}", file=path, found=found))
    settings = read_yaml(parts.files["model_config.yaml"])
    table: TensorTable
    step = None
    if "model_weights.ckpt" in parts.files:
        weights = read_torch_file(parts.files["model_weights.ckpt"])
        weights = weights.get("state_dict", weights) if isinstance(weights, dict) else {}
        table = StoredTable(path, {name: value for name, value in weights.items() if isinstance(value, StoredTensor)})
    elif any(name.startswith("model_weights/") for name in parts.files):
        table, common = _open_sharded(parts.under("model_weights"))
        step = _step(common, path)
    else:
        ranks = sorted(name for name in parts.files if name.endswith("/model_weights.ckpt"))
        if ranks:
            raise InputError(
                t(
                    "{file}: was saved in {count} parts by model parallelism ({names}, …); merge them with NeMo's own script",
                    file=path,
                    count=len(ranks),
                    names=ranks[0],
                )
            )
        found = ", ".join(sorted(parts.files)[:8])
        raise InputError(t("{file}: holds no model_weights.ckpt; found {found}", file=path, found=found))
    readable = parts.files["model_config.yaml"].path
    return NemoCheckpoint(path, readable, NEMO_1, table, find_prefix(table), settings, path / "model_config.yaml", None, step)


def _open_sharded(parts: FileParts) -> tuple[ShardedFiles, dict[str, Any]]:
    """The tensors of a torch_dist folder, and what lies beside them."""
    backend: object = "torch_dist"
    if BACKEND_FILE in parts.files:
        try:
            backend = json.loads(parts.files[BACKEND_FILE].read())["sharded_backend"]
        except (ValueError, KeyError, TypeError):
            raise InputError(t("{file}: says nothing about the format", file=parts.where / BACKEND_FILE)) from None
    if backend != "torch_dist":
        raise InputError(
            t(
                "{path}: the weights are stored as {backend!r}; only 'torch_dist' can be read. Megatron's tools convert it",
                path=parts.where,
                backend=backend,
            )
        )
    common = read_torch_file(parts.files[COMMON_FILE]) if COMMON_FILE in parts.files else {}
    return ShardedFiles(parts), common if isinstance(common, dict) else {}


def _step(common: Mapping[str, Any], path: Path) -> int | None:
    """The optimizer steps done, from what is stored or from the folder's name."""
    for name in ("iteration", "global_step"):
        if isinstance(common.get(name), int):
            return common[name]
    named = re.search(r"(?:^iter_|step=)(\d+)", path.name)
    return int(named[1]) if named else None


def _step_of_train_state(file: Path) -> int | None:
    state = read_torch_file(FilePart(file, 0, file.stat().st_size))
    step = state.get("step") if isinstance(state, dict) else None
    if not isinstance(step, StoredTensor):
        return step if isinstance(step, int) else None
    return int(StoredTable(file, {"step": step}).read_block("step", [0] * len(step.size), step.size))


def _folders(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (path for path in sorted(folder.iterdir()) if path.is_dir())
        yield folder


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZER_FILES)
