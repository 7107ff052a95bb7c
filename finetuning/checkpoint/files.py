"""Checkpoints of this command as they lie on disk: which are complete, and what they say of themselves.

Imports no torch, so that a launch answers soon. Reading tensors is left to `store`.
"""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec

from finetuning.config.degrees import Degrees
from finetuning.config.run import Run, read_run
from finetuning.errors import InputError
from finetuning.files.documents import as_schema, read_json
from finetuning.i18n import t

INFO_FILE = "checkpoint.json"
WEIGHTS = "best-"  # how the name of one without the optimizer's state begins


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    step: int  # optimizer steps done
    val_loss: float | None  # when the step was validated
    info: dict[str, Any]


def checkpoint_name(step: int) -> str:
    return f"step={step:06d}"


def weights_name(step: int) -> str:
    """Of a checkpoint that holds the trainable weights only: to be exported, or to start another run from."""
    return WEIGHTS + checkpoint_name(step)


def find_weights(folder: Path) -> list[Checkpoint]:
    """Complete checkpoints of weights only, in any order."""
    return [found for path in folder.glob(f"{WEIGHTS}step=*") if isinstance(found := open_checkpoint(path), Checkpoint)]


def find_checkpoints(folder: Path) -> tuple[list[Checkpoint], list[str]]:
    """Complete checkpoints, oldest first, and a message for each folder that is not complete."""
    complete, broken = [], []
    for path in _named(folder):
        found = _open_named(path)
        if isinstance(found, Checkpoint):
            complete.append(found)
        else:
            broken.append(found)
    return complete, broken


def newest_complete(folder: Path) -> Checkpoint | None:
    """The last that `find_checkpoints` finds, without reading those before it."""
    opened = (_open_named(path) for path in reversed(_named(folder)))
    return next((found for found in opened if isinstance(found, Checkpoint)), None)


def _named(folder: Path) -> list[Path]:
    """Folders that are named like checkpoints, in the order of their steps."""
    return sorted(folder.glob("step=*"), key=lambda path: (len(path.name), path.name))


def _open_named(path: Path) -> Checkpoint | str:
    """As `open_checkpoint`; one that is of another step than its name says counts as none."""
    found = open_checkpoint(path)
    if isinstance(found, Checkpoint) and path.name != checkpoint_name(found.step):
        return t("{path}: says that it is of step {step}", path=path, step=found.step)
    return found


def open_checkpoint(path: Path) -> Checkpoint | str:
    """The checkpoint in this folder, or why it is not complete."""
    file = path / INFO_FILE
    try:
        info = read_json(file, dict[str, Any])
    except (OSError, InputError):
        return t("{path}: not a complete checkpoint (no readable {file})", path=path, file=INFO_FILE)
    try:
        known = as_schema(info, _Info, file)
        saved_at = known.saved_at or datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat()
        if datetime.fromisoformat(saved_at).tzinfo is None:
            raise InputError(t("{file}: {key} has no time zone", file=file, key="saved_at"))
        if known.lightning is not None and known.lightning.global_step not in (None, known.step):
            steps = {"one": known.step, "other": known.lightning.global_step}
            raise InputError(t("{file}: names two steps, {one} and {other}", file=file, **steps))
    except InputError as error:
        return t("not a complete checkpoint: {reason}", reason=error)
    except ValueError as error:
        return t("not a complete checkpoint: {reason}", reason=f"{file}: saved_at: {error}")
    for name, size in known.files.items():
        part = path / name
        if Path(name).name != name or not part.is_file() or part.stat().st_size != size:
            return t("{path}: not a complete checkpoint ({file} is missing or has the wrong size)", path=path, file=name)
    info |= {
        "identity": msgspec.to_builtins(_Identity()) | info.get("identity", {}),
        "layout": asdict(known.layout or Degrees()),
        "max_steps": known.max_steps,
        "saved_at": saved_at,
    }
    return Checkpoint(path, known.step, known.val_loss, info)


class _Identity(msgspec.Struct):
    """What is asked of it; a launch compares all of it with its own."""

    peft: str = "none"
    lora_rank: int | None = None
    lora_alpha: float | None = None


class _Lightning(msgspec.Struct):
    epoch: int = 0
    global_step: int | None = None
    loops: dict[str, dict[str, Any]] | None = None


class _Info(msgspec.Struct):
    """What checkpoint.json may hold. What earlier versions did not write has a default."""

    step: Annotated[int, msgspec.Meta(ge=0)]
    files: dict[str, int]
    val_loss: float | None = None
    saved_at: str | None = None
    max_steps: int | None = None
    identity: _Identity = msgspec.field(default_factory=_Identity)
    layout: Degrees | None = None
    lightning: _Lightning | None = None
    origin: dict[str, Any] | None = None


def run_of(checkpoint: Path) -> Run | None:
    """The run that wrote a checkpoint, while it is in its experiment's folder."""
    file = checkpoint.resolve().parent.parent / "run.yaml"
    return read_run(file) if file.is_file() else None
