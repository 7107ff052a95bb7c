"""Which tokens in `experiments/.tokens` nobody needs any more, and removing them.

Tokens stay when the run.yaml of an experiment beside them names them, when they were used in the last day (a run that is just
being prepared has no run.yaml yet), and when they are among the newest ones that no experiment names.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from finetuning.data.tokens.tokenized import tokens_of_mixture
from finetuning.errors import InputError
from finetuning.files.atomic import DELETED, INCOMPLETE, delete
from finetuning.i18n import t

TOKENS_FOLDER = ".tokens"
SAFE_AGE_S = 24 * 3600
UNFINISHED = (".incomplete", ".deleted")  # endings of folders that a killed process of before 0.2 has left


@dataclass(frozen=True)
class Unused:
    """A folder of tokens that can go."""

    folder: Path
    size: int  # bytes


def find_unused(experiments_dir: Path, keep: int) -> list[Unused]:
    """The folders that can be removed, oldest first; reads only.

    Args:
        keep: how many of the newest ones that no experiment names stay.

    Raises:
        InputError: there are no tokens, or a run.yaml cannot be read, so that what it needs is not known.
    """
    tokens_dir = experiments_dir / TOKENS_FOLDER
    if not tokens_dir.is_dir():
        raise InputError(t("{folder}: there are no tokens; is --experiments_dir right?", folder=tokens_dir))
    named = {_tokens_of(file) for file in experiments_dir.glob("*/run.yaml")}
    used = named.union(*(tokens_of_mixture(tokens_dir / name) for name in named))
    used |= {name for file in experiments_dir.glob("*/run.yaml") for name in _fetched(file)}
    last_used = {folder: folder.stat().st_mtime for folder in tokens_dir.iterdir() if folder.is_dir()}
    left_over = [folder for folder in last_used if folder.name.startswith((INCOMPLETE, DELETED)) or folder.suffix in UNFINISHED]
    unnamed = sorted((f for f in last_used if f not in left_over and f.name not in used), key=last_used.__getitem__)
    candidates = left_over + unnamed[: max(0, len(unnamed) - keep)]
    old = [folder for folder in candidates if last_used[folder] < time.time() - SAFE_AGE_S]
    return [Unused(folder, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())) for folder in old]


def remove_unused(unused: Unused) -> None:
    """Removes a folder of tokens; no process ever finds half of it, and who has it mapped keeps what is mapped."""
    delete(unused.folder)


def _fetched(run_file: Path) -> list[str]:
    """The folders of data that were fetched for a run."""
    run = yaml.safe_load(run_file.read_text(encoding="utf-8"))
    each = [run.get("sources") or {}, *(source["sources"] for source in run.get("mixture") or ())]
    return [Path(file).parent.name for files in each for file in files.values()]


def _tokens_of(run_file: Path) -> str:
    try:
        return Path(yaml.safe_load(run_file.read_text(encoding="utf-8"))["tokens_dir"]).name
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(
            t(
                "{file}: cannot be read ({error}), so it is not known which tokens it needs; nothing is removed",
                file=run_file,
                error=" ".join(str(error).split()),
            )
        ) from None
