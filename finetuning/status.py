"""`status.json` of an experiment: what the run is doing, or how it ended; replaced whole, so always readable."""

import json
import os
import time
from pathlib import Path
from typing import Any

STATUS_FILE = "status.json"
UPDATE_INTERVAL_S = 1.0

STARTING, RUNNING, STOPPED, FINISHED, FAILED = "starting", "running", "stopped", "finished", "failed"


def read_status(experiment_dir: Path) -> dict[str, Any]:
    """The last status, empty when there is none."""
    try:
        return json.loads((experiment_dir / STATUS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def write_status(experiment_dir: Path, state: str, **facts: Any) -> None:
    """Sets the state and updates the given facts; earlier facts stay."""
    status = {**read_status(experiment_dir), "state": state, "updated_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **facts}
    temporary = experiment_dir / f".{STATUS_FILE}-{os.getpid()}"
    temporary.write_text(json.dumps(status, indent=1, ensure_ascii=False), encoding="utf-8")
    temporary.replace(experiment_dir / STATUS_FILE)
