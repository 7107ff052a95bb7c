"""`status.json` of an experiment: what the run is doing, or how it ended; replaced whole, so always readable."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec

from finetuning.errors import InputError
from finetuning.files.atomic import write_text
from finetuning.files.documents import as_schema, parse_json, read_text
from finetuning.files.reserve import write_anyhow
from finetuning.i18n import t

STATUS_FILE = "status.json"
UPDATE_INTERVAL_S = 1.0
MAX_STATUS_BYTES = 2**20

QUEUED, STARTING, RUNNING, STOPPED, FINISHED, FAILED = "queued", "starting", "running", "stopped", "finished", "failed"
LIVE_STATES = (QUEUED, STARTING, RUNNING)


class _Facts(msgspec.Struct):
    """Those that other commands go by; the file may be of another user, or damaged."""

    state: str
    updated_at: str = ""
    reason: str | None = None
    step: int = 0
    max_steps: int | None = None
    train_loss: float | None = None
    job_id: Annotated[str, msgspec.Meta(pattern=r"^[0-9]+([_+][0-9]+)?$")] | None = None  # Slurm's commands are given it
    launcher_pid: Annotated[int, msgspec.Meta(ge=1)] | None = None  # gets signals
    host: str | None = None
    restarts: int = 0
    doing: str | None = None  # of a run, e.g. "saving step 63"
    spent: dict[str, float] | None = None  # seconds of each part of `runtime.time_spent`
    stall: str | None = None  # that it does not get on


def read_status(experiment_dir: Path) -> dict[str, Any]:
    """The last status, empty when there is none.

    Raises:
        InputError: it cannot be read, or somebody else has written to the file.
    """
    file = experiment_dir / STATUS_FILE
    try:
        text = read_text(file, MAX_STATUS_BYTES)
    except FileNotFoundError:
        return {}
    try:
        status = parse_json(text, file)
        as_schema(status, _Facts, file)
    except InputError as error:
        raise InputError(t("{problem}; remove the file, it is written anew", problem=error)) from None
    return dict(status)


def write_status(experiment_dir: Path, state: str, **facts: Any) -> None:
    """Sets the state and updates the given facts; earlier facts stay, unless the file is damaged, or they no longer hold.

    Raises:
        NoRoom: the disk is full, and the room that was kept aside is gone.
    """
    try:
        before = read_status(experiment_dir)
    except InputError:  # no reason to end a run
        before = {}
    passing = {"stall": None} if state == RUNNING else {"stall": None, "doing": None}
    status = {**before, **passing, "state": state, "updated_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **facts}
    text = json.dumps(status, indent=1, ensure_ascii=False)
    # While it runs the next one follows soon, and no step waits for the disk.
    durable = state != RUNNING
    write_anyhow(experiment_dir, lambda: write_text(experiment_dir / STATUS_FILE, text, durable=durable))
