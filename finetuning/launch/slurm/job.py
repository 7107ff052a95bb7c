"""One Slurm job: submit it, ask how it is, signal it. Works without accounting; `sacct` is asked where it exists."""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from finetuning.config.secrets import is_secret
from finetuning.errors import InputError
from finetuning.i18n import t
from finetuning.launch.slurm.cluster import ask

ENDED_STATES = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
)


@dataclass(frozen=True)
class JobState:
    """As Slurm has it; UNKNOWN: Slurm has forgotten the job, or does not answer at the moment."""

    name: str  # PENDING, RUNNING, …
    reason: str = ""  # why it waits or ended
    nodes: str = ""
    restarts: int = 0

    @property
    def has_ended(self) -> bool:
        return self.name in ENDED_STATES


UNREACHABLE = JobState("UNREACHABLE")
FORGOTTEN = JobState("FORGOTTEN")


def submit(script: Path) -> str:
    """Submits a job script and returns the job's id.

    Raises:
        InputError: Slurm refused it; with its own words.
    """
    try:
        result = subprocess.run(
            ["sbatch", "--parsable", str(script)],
            capture_output=True,
            text=True,
            check=False,
            env=job_environment(),
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise InputError(t("Slurm's command {command} is not on this machine", command="sbatch")) from None
    if result.returncode != 0:
        reason = " ".join(result.stderr.replace("sbatch: error:", " ").split())
        raise InputError(t("Slurm refused the job: {reason} (script: {script})", reason=reason, script=script))
    return result.stdout.strip().partition(";")[0]


def job_environment() -> dict[str, str]:
    """This environment without what must not reach the job: secrets, which Slurm would keep on its disk, and the traces of an
    allocation that this command may itself run in."""
    return {
        name: value
        for name, value in os.environ.items()
        if not is_secret(name, value) and (name == "SLURM_CONF" or not name.startswith("SLURM_"))
    }


def secret_variables() -> list[str]:
    """Names of the variables that `job_environment` holds back, but the hub's token, which no job needs."""
    hub = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    return sorted(name for name, value in os.environ.items() if value and is_secret(name, value) and name not in hub)


def job_state(job_id: str) -> JobState:
    """The job's state, from the controller, or from the accounting once the controller has forgotten it."""
    try:
        return parse_job(ask("scontrol", "show", "job", "--oneliner", job_id))
    except InputError as error:
        if "Invalid job id" not in str(error):
            return UNREACHABLE
    try:
        answer = ask("sacct", "--jobs", job_id, "--allocations", "--noheader", "--parsable2", "--format", "State,NodeList")
    except InputError:
        return FORGOTTEN
    state, _, nodes = (answer.splitlines() or [""])[-1].partition("|")
    return JobState(state.split()[0], nodes=nodes) if state else FORGOTTEN


def parse_job(text: str) -> JobState:
    """The fields of `scontrol show job --oneliner`."""
    fields = dict(re.findall(r"(?:^| )(JobState|Reason|NodeList|Restarts)=(\S*)", text))
    reason = fields.get("Reason", "None").removeprefix("None")
    nodes = fields.get("NodeList", "").replace("(null)", "")
    return JobState(fields["JobState"], reason, nodes, int(fields.get("Restarts", 0)))


def is_live(job_id: str) -> bool:
    """The job waits or runs, or nobody can say that it does not."""
    state = job_state(job_id)
    return not state.has_ended and state != FORGOTTEN


def signal_job(job_id: str, signal_name: str) -> None:
    """Sends a signal to the processes of the job's steps, not to its script."""
    ask("scancel", f"--signal={signal_name}", job_id)


def cancel(job_id: str) -> None:
    """Ends the job; Slurm gives its processes KillWait seconds to save."""
    ask("scancel", job_id)
