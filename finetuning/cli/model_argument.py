"""The model that a command is given: a folder, the name of an experiment, or a hub name; its base is found as well."""

from pathlib import Path

from finetuning.errors import InputError
from finetuning.formats.gguf.header import is_gguf
from finetuning.formats.nemo.checkpoint import is_nemo
from finetuning.formats.recognize import StoredModel, find_model_in, named_base, open_model
from finetuning.i18n import t
from finetuning.launch.experiments import DEFAULT_FOLDER
from finetuning.launch.hub import MODEL_ID, find_model


def open_given_model(given: str, base: str | None = None) -> StoredModel:
    """
    Args:
        given: a folder, an experiment of `experiments/`, or the name of a model or adapter on the hub.
        base: the model that an adapter or checkpoint was trained from; None: the one that it names, downloaded if need be.

    Raises:
        InputError: there is nothing of this name, or it cannot be used.
    """
    path = find_model_in(find_folder(given))
    if base is None:
        named = named_base(path)
        base_path = _find_base(path, named) if named is not None else None
    else:
        base_path = find_folder(base)
    return open_model(path, base_path)


def find_folder(given: str) -> Path:
    """The folder of a model, downloaded where it is a hub name."""
    for folder in (Path(given), Path(DEFAULT_FOLDER) / given):
        if folder.is_dir() or (folder.is_file() and (is_gguf(folder) or is_nemo(folder))):
            return folder
    if given.startswith((".", "/", "~")) or not MODEL_ID.fullmatch(given) or given.count("/") != 1:
        raise InputError(
            t("{path}: neither a folder, nor an experiment in {experiments}, nor a hub name", path=given,
              experiments=DEFAULT_FOLDER)
        )  # fmt: skip
    return find_model(given, None, with_weights=True)


def _find_base(path: Path, named: str) -> Path:
    try:
        return find_folder(named)
    except InputError as error:
        raise InputError([
            t("{path}: the model that it was trained from is not here ({named}); give it as --base", path=path, named=named),
            *error.problems,
        ]) from None  # fmt: skip
