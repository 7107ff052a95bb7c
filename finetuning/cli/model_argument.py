"""The model that a command is given: a folder, the name of an experiment, or a hub name; its base is found as well."""

from dataclasses import replace
from pathlib import Path

from finetuning.checkpoint.files import checkpoint_name, find_checkpoints
from finetuning.config.run import read_run
from finetuning.errors import InputError
from finetuning.formats.recognize import format_at, recognize, recognize_base
from finetuning.formats.stored_model import StoredModel, open_found
from finetuning.i18n import t
from finetuning.launch.experiments import DEFAULT_FOLDER
from finetuning.launch.hub import MODEL_ID, find_model

LINKS = ("best", "latest")  # of finetuning.checkpoint.store


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
    """The folder of a model, downloaded where it is a hub name; `NAME@best` and `NAME@STEP` are checkpoints of one."""
    experiment, _, chosen = given.rpartition("@")
    if experiment and not Path(given).exists():
        for folder in (Path(experiment), Path(DEFAULT_FOLDER) / experiment):
            if folder.is_dir():
                return _checkpoint(folder, chosen)
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


def test_file_of(path: Path) -> tuple[Path | None, str | None]:
    """The test split of the experiment that a checkpoint or an export lies in, else its validation split; and its columns."""
    for folder in list(path.resolve().parents)[:2]:
        if (folder / "run.yaml").is_file():
            run = read_run(folder / "run.yaml")
            found = [each for name in ("test", "validation") for each in run.files_of(name).values()]
            readable = [(Path(file), columns) for file, columns in found if Path(file).is_file() and not file.endswith(".bin")]
            return next(iter(readable), (None, run.config.columns))
    return None, None


def _checkpoint(experiment: Path, chosen: str) -> Path:
    folder = experiment / "checkpoints"
    name = checkpoint_name(int(chosen)) if chosen.isascii() and chosen.isdigit() else chosen
    is_known = chosen in LINKS or name != chosen
    if not (is_known and (folder / name).is_dir()):
        complete, _ = find_checkpoints(folder)
        there = [f"@{checkpoint.step}" for checkpoint in complete]
        there += [f"@{link}" for link in LINKS if (folder / link).is_dir()]
        raise InputError(
            t(
                "{path}: has no checkpoint @{chosen}; there are: {there}",
                path=experiment,
                chosen=chosen,
                there=", ".join(there) or t("none"),
            )
        )
    return (folder / name).resolve()


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
