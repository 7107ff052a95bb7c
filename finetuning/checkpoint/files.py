"""Checkpoints of this command as they lie on disk: which are complete, and what they say of themselves.

Imports no torch, so that a launch answers soon. Reading tensors is left to `store`.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuning.config.run import Run, read_run
from finetuning.i18n import t

INFO_FILE = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    step: int  # optimizer steps done
    val_loss: float | None  # when the step was validated
    info: dict[str, Any]


def find_checkpoints(folder: Path) -> tuple[list[Checkpoint], list[str]]:
    """Complete checkpoints, oldest first, and a message for each folder that is not complete."""
    complete, broken = [], []
    for path in sorted(folder.glob("step=*")):
        found = open_checkpoint(path)
        if isinstance(found, Checkpoint):
            complete.append(found)
        else:
            broken.append(found)
    return sorted(complete, key=lambda checkpoint: checkpoint.step), broken


def open_checkpoint(path: Path) -> Checkpoint | str:
    """The checkpoint in this folder, or why it is not complete."""
    try:
        info = json.loads((path / INFO_FILE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return t("{path}: not a complete checkpoint (no readable {file})", path=path, file=INFO_FILE)
    for name, size in info["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            return t("{path}: not a complete checkpoint ({file} is missing or has the wrong size)", path=path, file=name)
    return Checkpoint(path, int(info["step"]), info.get("val_loss"), info)


def remove_incomplete(folder: Path) -> None:
    """Clears what interrupted saves and deletions left behind; only while no job of the experiment runs."""
    for pattern in (".incomplete-*", ".deleted-*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path)


def run_of(checkpoint: Path) -> Run | None:
    """The run that wrote a checkpoint, while it is in its experiment's folder."""
    file = checkpoint.resolve().parent.parent / "run.yaml"
    return read_run(file) if file.is_file() else None
