"""`status.json` of an experiment: what the run is doing, or how it ended; replaced whole, so always readable."""

import json
import os
import time
from pathlib import Path
from typing import Any

from finetuning.errors import InputError
from finetuning.i18n import t

STATUS_FILE = "status.json"
UPDATE_INTERVAL_S = 1.0

QUEUED, STARTING, RUNNING, STOPPED, FINISHED, FAILED = "queued", "starting", "running", "stopped", "finished", "failed"
LIVE_STATES = (QUEUED, STARTING, RUNNING)


def read_status(experiment_dir: Path) -> dict[str, Any]:
    """The last status, empty when there is none.

    Raises:
        InputError: somebody else has written to the file.
    """
    file = experiment_dir / STATUS_FILE
    try:
        status = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        status = None
    if not isinstance(status, dict):
        raise InputError(t("{file}: not a status; remove the file, it is written anew", file=file))
    return status


def write_status(experiment_dir: Path, state: str, **facts: Any) -> None:
    """Sets the state and updates the given facts; earlier facts stay."""
    status = {**read_status(experiment_dir), "state": state, "updated_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **facts}
    temporary = experiment_dir / f".{STATUS_FILE}-{os.getpid()}"
    temporary.write_text(json.dumps(status, indent=1, ensure_ascii=False), encoding="utf-8")
    temporary.replace(experiment_dir / STATUS_FILE)
