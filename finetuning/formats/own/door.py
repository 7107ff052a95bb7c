"""The doors of checkpoints and experiments of this command (finetuning.formats.found_model)."""

from pathlib import Path
from typing import TYPE_CHECKING

from finetuning.checkpoint.files import INFO_FILE, Checkpoint, newest_complete, open_checkpoint, run_of
from finetuning.config.llama import read_llama_config
from finetuning.errors import InputError
from finetuning.formats.found_model import FoundModel, describe_base, fingerprint_base
from finetuning.formats.huggingface.companions import CONFIG_FILE
from finetuning.formats.inspection import Inspection, StoredWeight, tokenizer_file
from finetuning.formats.provenance import check_base, read_origin

if TYPE_CHECKING:
    from finetuning.formats.weight_source import WeightSource

NEEDS_BASE = True
EXPORT = "export"  # the folder of an experiment's result


def is_here(path: Path) -> bool:
    return (path / INFO_FILE).is_file() or _newest_in(path) is not None


def model_in(path: Path) -> Path | None:
    """The model of an experiment or its `checkpoints` folder: the newest complete checkpoint, else the export; the best
    one of a run whose result that is.

    None: it is a checkpoint itself, or holds neither.
    """
    newest = _newest_in(path)
    if newest is None or newest.name == EXPORT:
        return newest
    run, best = run_of(newest), newest.parent / "best"
    takes_best = run is not None and run.config.takes_best and isinstance(open_checkpoint(best), Checkpoint)
    return best.resolve() if takes_best else newest


def _newest_in(path: Path) -> Path | None:
    if not path.is_dir() or (path / INFO_FILE).is_file():
        return None
    for folder in (path, path / "checkpoints"):
        if (newest := newest_complete(folder)) is not None:
            return newest.path
    return path / EXPORT if (path / EXPORT).is_dir() else None


def named_base(path: Path) -> str | None:
    """Its folder while that is here, else its name on the hub."""
    origin, run = read_origin(path) or {}, run_of(path)
    folders = [str(origin["base_path"])] if "base_path" in origin else []
    folders += [run.model_path] if run is not None else []
    hub_name = origin.get("base_model") or (run.config.hf_model_id if run is not None else None)
    return next((folder for folder in folders if Path(folder).is_dir()), hub_name)


def open(found: FoundModel) -> "WeightSource":
    """A checkpoint of all weights needs its base as well, for config.json and the tokenizer."""
    from finetuning.formats.own.weights import CheckpointSource, checkpoint_adapter  # with torch, which takes a second
    from finetuning.formats.peft.adapter import MergedSource
    from finetuning.storage.dcp_reader import ShardedFiles

    identity, base = _complete(found.path).info["identity"], found.required_base()
    if identity["peft"] == "none":
        trained = CheckpointSource(found.path, read_llama_config(base.kind.describe(base)))
        trained.shapes()
        return trained
    source = base.kind.open(base)
    adapter = checkpoint_adapter(ShardedFiles(found.path), identity["lora_alpha"], identity["lora_rank"])
    adapter.check(source.shapes(), found.path)
    return MergedSource(source, adapter, check_base(found, identity.get("base_model")))


describe, fingerprint = describe_base, fingerprint_base


def inspect(found: FoundModel) -> Inspection:
    from finetuning.storage.dcp_reader import ShardedFiles

    checkpoint = _complete(found.path)
    files, run = ShardedFiles(found.path), run_of(found.path)
    folder = Path(run.model_path) if run is not None else None
    return Inspection(
        str(found.path),
        "finetune, " + ("LoRA" if checkpoint.info["identity"]["peft"] == "lora" else "all weights"),
        read_llama_config(folder) if folder is not None and (folder / CONFIG_FILE).is_file() else None,
        {
            name.removeprefix("model."): StoredWeight(tuple(size), str(files.dtype(name)).removeprefix("torch."))
            for name, size in files.sizes.items()
            if name.startswith("model.")
        },
        checkpoint.step,
        tokenizer_file(folder) if folder is not None else None,
        checkpoint.info.get("layout"),
        any(name.startswith("optimizer.") for name in files.sizes),
        str(folder) if folder is not None else None,
    )


def _complete(path: Path) -> Checkpoint:
    checkpoint = open_checkpoint(path)
    if not isinstance(checkpoint, Checkpoint):
        raise InputError(checkpoint)
    return checkpoint
