"""The doors of folders in Hugging Face format (finetuning.formats.found_model)."""

from pathlib import Path
from typing import TYPE_CHECKING

from finetuning.config.llama import LlamaConfig, read_llama_config
from finetuning.errors import InputError
from finetuning.formats.found_model import FoundModel
from finetuning.formats.huggingface import files
from finetuning.formats.huggingface.companions import CONFIG_FILE
from finetuning.formats.inspection import Inspection, stored_weights, tokenizer_file
from finetuning.i18n import t

if TYPE_CHECKING:
    from finetuning.formats.weight_source import HuggingFaceSource

NEEDS_BASE = False


def is_here(path: Path) -> bool:
    return (path / CONFIG_FILE).is_file()


def named_base(path: Path) -> str | None:
    return None


def open(found: FoundModel) -> "HuggingFaceSource":
    from finetuning.formats.weight_source import HuggingFaceSource  # with torch, which takes a second

    source = HuggingFaceSource(found.path)
    source.shapes()
    if found.base is not None:
        _check_lender(found.path, source.config, found.base)
    return source


def describe(found: FoundModel) -> Path:
    """The folder itself, also where it has no tokenizer: a base then lends its own (StoredModel.tokenizer_folder)."""
    return found.path


def fingerprint(found: FoundModel) -> str:
    return files.fingerprint(found.path)


def inspect(found: FoundModel) -> Inspection:
    model, problems = None, files.unreadable_dtypes(found.path)  # says more than that config.json calls them quantized
    try:
        if not problems:
            model = read_llama_config(found.path)
            files.check_weights(found.path, model)
    except InputError as error:
        problems = error.problems
    weights = stored_weights(files.read_headers(found.path))
    return Inspection(
        str(found.path), "Hugging Face", model, weights, tokenizer=tokenizer_file(found.path), problems=tuple(problems)
    )


def _check_lender(path: Path, config: LlamaConfig, lender: FoundModel) -> None:
    """Whether a tokenizer can be another one's, of which the table of embeddings tells most."""
    rows = read_llama_config(lender.kind.describe(lender)).vocab_size
    if rows != config.vocab_size:
        raise InputError(
            t(
                "--base {base}: its tokenizer is for {theirs:,} token{theirs:s}, and {path} has {ours:,}",
                base=lender.path,
                theirs=rows,
                path=path,
                ours=config.vocab_size,
            )
        )
