"""A model as it lies on disk, recognised: base weights, adapter, tokenizer folder, and where it comes from.

In: a folder in Hugging Face format, an adapter in PEFT format, a checkpoint of NeMo or Megatron, a GGUF file, a checkpoint of
ours, or an experiment, of which the newest checkpoint is taken, else its export. Out: what export, merge, evaluate and
generate need to know. Reads headers only.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuning.checkpoint.files import INFO_FILE, Checkpoint, find_checkpoints, open_checkpoint, run_of
from finetuning.config.llama import read_llama_config
from finetuning.data.prompts.prompt_format import PromptFormat, load_prompt_format
from finetuning.data.prompts.prompt_record import open_prompt_format
from finetuning.errors import InputError
from finetuning.formats.gguf.header import is_gguf
from finetuning.formats.gguf.weights import open_gguf
from finetuning.formats.nemo.checkpoint import cache_folder, describe_nemo, is_nemo, nemo_source, open_nemo
from finetuning.formats.peft.adapter import Adapter, MergedSource, checkpoint_adapter, read_adapter
from finetuning.formats.peft.files import ADAPTER_CONFIG_FILE as ADAPTER_FILE
from finetuning.formats.peft.files import read_settings
from finetuning.formats.provenance import check_base, make_origin, read_origin
from finetuning.formats.weight_source import CheckpointSource, HuggingFaceSource, WeightSource
from finetuning.i18n import t
from finetuning.storage.dcp_reader import ShardedFiles

HUGGING_FACE, ADAPTER, CHECKPOINT, NEMO, GGUF = "model folder", "adapter", "checkpoint", "NeMo checkpoint", "GGUF file"


@dataclass(frozen=True)
class StoredModel:
    """One model; with an adapter, `base` holds the weights that it goes on."""

    path: Path
    kind: str  # one of the constants above
    base: WeightSource
    base_folder: Path  # with config.json, and the tokenizer of a checkpoint
    adapter: Adapter | None
    origin: dict[str, Any] | None
    base_is_checked: bool  # its fingerprint is that of the training; without an adapter there is nothing to check

    def weights(self) -> WeightSource:
        """All weights, with the adapter merged into them."""
        return self.base if self.adapter is None else MergedSource(self.base, self.adapter)

    @property
    def tokenizer_folder(self) -> Path:
        own = self.kind != CHECKPOINT and (self.path / "tokenizer.json").is_file()
        return self.path if own else self.base_folder

    def prompt_format(self, prompt_template: str | None = None, system_prompt: str | None = None) -> PromptFormat:
        """How the model was prompted in training; where that is not known, as asked for, or by its chat template.

        Raises:
            InputError: tokenizer or template have changed since training, or another template is asked for.
        """
        record = (self.origin or {}).get("prompt")
        if record is None:
            return load_prompt_format(self.tokenizer_folder, prompt_template, system_prompt)
        for name, given in (("prompt_template", prompt_template), ("system_prompt", system_prompt)):
            if given is not None and given != record[name]:
                raise InputError(
                    t("--{name} {given!r}: the model was trained with {trained!r}; leave the flag out", name=name, given=given,
                      trained=record[name])
                )  # fmt: skip
        return open_prompt_format(self.tokenizer_folder, record)

    def chat_template(self) -> str | None:
        """The chat template for an export, where the tokenizer folder's own does not write the trained prompts."""
        if (self.origin or {}).get("prompt") is None or self.kind != CHECKPOINT:
            return None
        return self.prompt_format().chat_template()


def open_source(path: Path, base: Path | None = None) -> WeightSource:
    """The weights of any model that `open_model` knows, an adapter merged into its base."""
    return open_model(path, base).weights()


def open_model(path: Path, base: Path | None = None) -> StoredModel:
    """Recognises what lies at `path`.

    Args:
        path: model folder, adapter, checkpoint, experiment or GGUF file.
        base: the model that an adapter or checkpoint was trained from; None: the one that it names.

    Raises:
        InputError: it is none of these, it is damaged, or the base is missing or another one.
    """
    path = find_model_in(path)
    if path.is_file() and is_gguf(path):
        return _open_gguf(path, base)
    if (path / ADAPTER_FILE).is_file():
        return _open_adapter(path, base)
    if (path / INFO_FILE).is_file():
        return _open_checkpoint(path, base)
    if not (path / "config.json").is_file() and is_nemo(path):
        return _open_nemo(path, base)
    if base is not None:
        raise InputError(t("--base {base}: {path} is a whole model and has none", base=base, path=path))
    source = HuggingFaceSource(path)
    assert source.headers
    return StoredModel(path, HUGGING_FACE, source, path, None, read_origin(path), True)


def find_model_in(path: Path) -> Path:
    """The folder that holds the model itself: of an experiment, its newest complete checkpoint, else its export.

    Raises:
        InputError: there is no such folder, or nothing in it that is known.
    """
    if path.is_file() and (is_gguf(path) or is_nemo(path)):
        return path
    if not path.is_dir():
        raise InputError(t("{path}: there is no such folder", path=path))
    if any((path / name).is_file() for name in (ADAPTER_FILE, INFO_FILE, "config.json")):
        return path
    for folder in (path, path / "checkpoints"):
        complete, _ = find_checkpoints(folder)
        if complete:
            return complete[-1].path
    if (path / "export").is_dir():
        return find_model_in(path / "export")
    if is_nemo(path):
        return path
    found = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or t("nothing")
    raise InputError(
        t("{path}: neither a model in Hugging Face format (config.json), nor an adapter ({adapter}), nor a complete checkpoint "
          "({checkpoint}) or an experiment with one; found {found}", path=path, adapter=ADAPTER_FILE, checkpoint=INFO_FILE,
          found=found)
    )  # fmt: skip


def named_base(path: Path) -> str | None:
    """The base model, folder or hub name, that an adapter or a checkpoint names; None: it names none, or needs none."""
    if (path / ADAPTER_FILE).is_file():
        return read_settings(path).get("base_model_name_or_path") or None
    if (path / INFO_FILE).is_file():
        origin = read_origin(path) or {}
        run = run_of(path)
        folders = [str(origin["base_path"])] if "base_path" in origin else []
        folders += [run.model_path] if run is not None else []
        hub_name = origin.get("base_model") or (run.config.hf_model_id if run is not None else None)
        return next((folder for folder in folders if Path(folder).is_dir()), hub_name)
    return None


def _base_folder(path: Path, base: Path | None) -> Path:
    if base is not None:
        return base
    named = named_base(path)
    if named is None or not Path(named).is_dir():
        raise InputError(
            t("{path}: the model that it was trained from is not here ({named}); give it as --base", path=path,
              named=named or t("none is named"))
        )  # fmt: skip
    return Path(named)


def _open_adapter(path: Path, base: Path | None) -> StoredModel:
    adapter, origin = read_adapter(path), read_origin(path)
    given = _base_folder(path, base)
    source, folder = _open_base(given)
    adapter.check(source.shapes(), path)
    return StoredModel(path, ADAPTER, source, folder, adapter, origin, check_base(path, origin, given))


def _open_base(given: Path) -> tuple[WeightSource, Path]:
    """The weights of a base model, and a folder with its config.json and tokenizer."""
    if (given / "config.json").is_file() or not is_nemo(given):
        return HuggingFaceSource(given), given
    model = _open_nemo(given, None)
    return model.base, model.base_folder


def _open_nemo(path: Path, base: Path | None) -> StoredModel:
    """`base`: a folder with config.json and tokenizer, where the checkpoint lacks them."""
    checkpoint = open_nemo(path, cache_folder())
    folder = base if base is not None else describe_nemo(checkpoint, cache_folder())
    source = nemo_source(checkpoint, read_llama_config(folder))
    return StoredModel(path, NEMO, source, folder, None, read_origin(path), True)


def _open_gguf(path: Path, base: Path | None) -> StoredModel:
    """`base`: a folder with config.json and tokenizer, where the file's own tokenizer cannot be read."""
    found = open_gguf(path)
    source = found.source(read_llama_config(base) if base is not None else None)
    folder = base if base is not None else found.describe(cache_folder())
    return StoredModel(path, GGUF, source, folder, None, None, True)


def _open_checkpoint(path: Path, base: Path | None) -> StoredModel:
    checkpoint = open_checkpoint(path)
    if not isinstance(checkpoint, Checkpoint):
        raise InputError(checkpoint)
    given = _base_folder(path, base)
    source, folder = _open_base(given)
    config, files, identity = read_llama_config(folder), ShardedFiles(path), checkpoint.info["identity"]
    origin = read_origin(path) or _origin_of_run(path, folder)
    if identity["peft"] == "none":
        trained = CheckpointSource(path, config)
        trained.shapes()
        return StoredModel(path, CHECKPOINT, trained, folder, None, origin, True)
    adapter = checkpoint_adapter(files, identity["lora_alpha"], identity["lora_rank"])
    adapter.check(source.shapes(), path)
    known = check_base(path, {**(origin or {}), "base_fingerprint": identity.get("base_model")}, given)
    return StoredModel(path, CHECKPOINT, source, folder, adapter, origin, known)


def _origin_of_run(path: Path, folder: Path) -> dict[str, Any] | None:
    """Of checkpoints that an earlier version wrote: what their run.yaml says."""
    run = run_of(path)
    if run is None:
        return None
    has_text = not run.sources["training"].endswith(".bin")
    prompt = load_prompt_format(folder, run.config.prompt_template, run.config.system_prompt, has_text=has_text)
    return make_origin(run, prompt)
