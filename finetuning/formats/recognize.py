"""What lies at a path: a folder in Hugging Face format, an adapter in PEFT format, a checkpoint of NeMo or Megatron, a GGUF
file, a checkpoint of ours, or an experiment, of which the newest checkpoint (or the best) is taken, else its export.

Every question about a path is answered here, by a `FoundModel`; it is opened by `open_model` or by the doors of its kind.
Imports no torch, so that a launch answers soon.
"""

from pathlib import Path

from finetuning.checkpoint.files import INFO_FILE
from finetuning.errors import InputError
from finetuning.formats.found_model import Format, FoundModel
from finetuning.formats.gguf import door as gguf
from finetuning.formats.huggingface import door as huggingface
from finetuning.formats.inspection import Inspection
from finetuning.formats.nemo import door as nemo
from finetuning.formats.own import door as own
from finetuning.formats.peft import door as peft
from finetuning.formats.peft.files import ADAPTER_CONFIG_FILE
from finetuning.formats.provenance import read_origin
from finetuning.i18n import t

# The first that is here counts: an experiment holds files that torch.distributed.checkpoint writes, as NeMo's do.
FORMATS: tuple[Format, ...] = (gguf, peft, huggingface, own, nemo)


def format_at(path: Path) -> Format | None:
    """The format of what lies at this path itself; an experiment is of our own."""
    return next((kind for kind in FORMATS if kind.is_here(path)), None)


def recognize(path: Path, base: Path | None = None) -> FoundModel:
    """
    Args:
        path: a model folder, adapter, checkpoint, experiment, archive or GGUF file.
        base: the model that an adapter or checkpoint was trained from (None: the one that it names, if it is here); or a
            model with config.json and tokenizer, for what lacks them, a model folder without a tokenizer too.

    Raises:
        InputError: there is nothing, or nothing that is known, with what was found; or `base` would have no effect.
    """
    kind = format_at(path)
    if kind is own and (inner := own.model_in(path)) is not None:
        return recognize(inner, base)
    if kind is None:
        raise InputError(_unknown(path))
    if base is not None and kind is huggingface and (path / "tokenizer.json").is_file():
        raise InputError(t("--base {base}: {path} is a whole model and has none", base=base, path=path))
    if base is None and (named := kind.named_base(path)) is not None and Path(named).is_dir():
        base = Path(named)
    return FoundModel(kind, path, recognize_base(base) if base is not None else None, read_origin(path))


def recognize_base(path: Path) -> FoundModel:
    """A whole model; opening refuses what is none."""
    kind = format_at(path)
    whole = huggingface if kind is None or kind.NEEDS_BASE else kind
    return FoundModel(whole, path, None, None)


def inspect(path: Path) -> Inspection:
    """Everything that can be told about what lies at `path` without reading weights; errors as of `recognize`."""
    found = recognize(path)
    return found.kind.inspect(found)


def _unknown(path: Path) -> str:
    if not path.exists():
        return t("{path}: there is no such file or folder", path=path)
    if not path.is_dir():
        return t("{file}: not an archive of NeMo (tar, or tar compressed by gzip)", file=path)
    found = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or t("nothing")
    return t(
        "{path}: neither a model in Hugging Face format (config.json), nor an adapter ({adapter}), nor a complete checkpoint "
        "({checkpoint}) or an experiment with one; found {found}",
        path=path,
        adapter=ADAPTER_CONFIG_FILE,
        checkpoint=INFO_FILE,
        found=found,
    )
