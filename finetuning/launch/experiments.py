"""The experiments of a folder and how they are now, for the verbs list, status, logs and cancel.

`status.json` says what the run wrote last; whether that still holds is asked of the lock of a local run and of Slurm for a
job. Nothing is written here.
"""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuning.config.settings import RunConfig
from finetuning.errors import InputError
from finetuning.i18n import t
from finetuning.launch.outcome import decide_outcome
from finetuning.launch.slurm.follow import explain_reason
from finetuning.launch.slurm.job import FORGOTTEN, JobState, job_state
from finetuning.launch.slurm.submit import job_log, outcome_of_job
from finetuning.runtime.status import LIVE_STATES, QUEUED, RUNNING, STATUS_FILE, read_status

LOCK_FILE = ".lock"
DEFAULT_FOLDER = RunConfig.experiments_dir
BROKEN = "broken"  # beside the states of a status


@dataclass(frozen=True)
class Experiment:
    """An experiment as it is now."""

    folder: Path
    status: dict[str, Any]  # what status.json says
    state: str  # as in status.json, corrected where that is out of date
    reason: str
    job: JobState | None  # of a Slurm run that has not ended

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def job_id(self) -> str | None:
        return self.status.get("job_id")

    @property
    def is_live(self) -> bool:
        return self.state in LIVE_STATES

    @property
    def progress(self) -> str:
        return f"{self.status.get('step', 0)}/{self.status.get('max_steps', '?')}"

    @property
    def place(self) -> str:
        return f"slurm {self.job_id}" if self.job_id else "local"

    @property
    def log(self) -> Path:
        """What its first process prints; of a job, what the whole job does."""
        return job_log(self.folder, self.job_id) if self.job_id else self.folder / "logs" / "train.log"


def find_experiments(folder: Path) -> list[Experiment]:
    """All experiments of a folder, the latest first, also those of others and damaged ones.

    Raises:
        InputError: the folder cannot be read.
    """
    return [look(path) for path in sorted(_experiment_folders(folder), key=_changed_at, reverse=True)]


def find_experiment(folder: Path, name: str) -> Experiment:
    """
    Raises:
        InputError: there is none of this name, or the folder cannot be read.
    """
    folders = {path.name: path for path in _experiment_folders(folder)}
    if name not in folders:
        names = ", ".join(folders) or t("none")
        raise InputError(
            t("no experiment {name} in {folder}; there are: {names} (--experiments_dir)", name=name, folder=folder, names=names)
        )
    return look(folders[name])


def look(folder: Path) -> Experiment:
    """How an experiment is now; `BROKEN`, with the reason, where that cannot be read."""
    folder = folder.absolute()
    try:
        return _look(folder)
    except InputError as error:
        return Experiment(folder, {}, BROKEN, str(error), None)
    except OSError as error:
        reason = t("{file}: cannot be read: {reason}", file=error.filename or folder, reason=error.strerror or error)
        return Experiment(folder, {}, BROKEN, reason, None)


def is_locked(folder: Path) -> bool:
    """A local run of the experiment, or a process of one, is alive, or nobody may look whether one is."""
    try:
        lock = os.open(folder / LOCK_FILE, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except PermissionError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _look(folder: Path) -> Experiment:
    status = read_status(folder)
    if not status:
        raise InputError(t("{file}: a link to nowhere", file=folder if folder.is_symlink() else folder / STATUS_FILE))
    state, reason = status["state"], status.get("reason") or ""
    if state == RUNNING:
        reason = status.get("stall") or ""
    if state not in LIVE_STATES:
        return Experiment(folder, status, state, reason, None)
    if status.get("job_id"):
        job = job_state(status["job_id"])
        if job.has_ended or job == FORGOTTEN:
            outcome = outcome_of_job(folder, status["job_id"], job)
            return Experiment(folder, status, outcome.state, outcome.reason or "", None)
        waits = explain_reason(job.reason) if job.name == "PENDING" else reason
        return Experiment(folder, status, QUEUED if job.name == "PENDING" else state, waits, job)
    if status.get("launcher_pid") and not is_locked(folder):
        log = folder / "logs" / "torchrun.log"
        outcome = decide_outcome(
            folder, log=log, unexplained=t("its launcher died without saying why; run the same command again")
        )
        return Experiment(folder, status, outcome.state, outcome.reason or "", None)
    return Experiment(folder, status, state, reason, None)


def _experiment_folders(folder: Path) -> list[Path]:
    try:
        return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and _is_experiment(path)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(t("{file}: cannot be read: {reason}", file=folder, reason=error.strerror or error)) from None


def _is_experiment(path: Path) -> bool:
    """It has a status, or may have one that cannot be seen."""
    try:
        (path / STATUS_FILE).lstat()
    except FileNotFoundError:
        return path.is_symlink() and not path.exists()
    except NotADirectoryError:
        return False
    except OSError:
        return True
    return True


def _changed_at(path: Path) -> float:
    try:
        return (path / STATUS_FILE).lstat().st_mtime
    except OSError:
        return 0.0
