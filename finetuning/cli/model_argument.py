"""The model that a command is given: a folder, the name of an experiment, or a hub name; its base is found as well."""

from dataclasses import replace
from pathlib import Path

from finetuning.errors import InputError
from finetuning.formats.recognize import format_at, recognize, recognize_base
from finetuning.formats.stored_model import StoredModel, open_found
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
    found = recognize(find_folder(given), find_folder(base) if base is not None else None)
    if found.base is None and (named := found.kind.named_base(found.path)) is not None:
        found = replace(found, base=recognize_base(_find_base(found.path, named)))
    return open_found(found)


def find_folder(given: str) -> Path:
    """The folder of a model, downloaded where it is a hub name."""
    for folder in (Path(given), Path(DEFAULT_FOLDER) / given):
        if folder.is_dir() or (folder.is_file() and format_at(folder) is not None):
            return folder
    if given.startswith((".", "/", "~")) or not MODEL_ID.fullmatch(given) or given.count("/") != 1:
        raise InputError(
            t(
                "{path}: neither a folder, nor an experiment in {experiments}, nor a hub name",
                path=given,
                experiments=DEFAULT_FOLDER,
            )
        )
    return find_model(given, None, with_weights=True)


def _find_base(path: Path, named: str) -> Path:
    try:
        return find_folder(named)
    except InputError as error:
        raise InputError(
            [
                t(
                    "{path}: the model that it was trained from is not here ({named}); give it as --base",
                    path=path,
                    named=named,
                ),
                *error.problems,
            ]
        ) from None
