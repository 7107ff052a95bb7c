"""Runs the workers of one machine through torchrun and sees them to their end.

torchrun lives in a session of its own, so Ctrl-C reaches this launcher only, which passes it on to the workers: they
finish their step, save and leave. torchrun itself would kill them after 30 seconds, in the middle of a long save.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import finetuning
from finetuning.failures import first_failure
from finetuning.lifeline import LAUNCHER_PID, end_with_parent
from finetuning.status import STARTING, read_status

POLL_INTERVAL_S = 0.1
# Workers need no token: the model is on this machine by then.
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "HF_API_TOKEN")
GRACE_AFTER_FAILURE_S = 15.0  # for ranks that wait for one that has failed


def torchrun_command(run_file: Path, num_processes: int) -> list[str]:
    """A free port is chosen by torchrun; loopback only, whatever the host name resolves to."""
    return [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc_per_node", str(num_processes),
        "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", "--local-addr", "127.0.0.1", "--max_restarts", "0",
        "-m", "finetuning.train", str(run_file),
    ]  # fmt: skip


def run_workers(run_file: Path, num_processes: int, logs: Path, lock_descriptor: int) -> tuple[int, bool]:
    """Starts the workers and passes signals on; once all are gone, torchrun's exit code and whether a stop was asked for.

    `lock_descriptor` stays open in torchrun, so that the experiment is locked while any worker may live.
    """
    signals = _Signals()
    with (logs / "torchrun.log").open("ab") as log:
        process = subprocess.Popen(
            torchrun_command(run_file, num_processes), stdin=subprocess.DEVNULL, stderr=log, env=_environment(num_processes),
            start_new_session=True, pass_fds=[lock_descriptor], preexec_fn=end_with_parent,
        )  # fmt: skip
    signals.torchrun_pid = process.pid
    failed_at = None
    try:
        while (code := process.poll()) is None:
            time.sleep(POLL_INTERVAL_S)
            if signals.received and read_status(logs.parent).get("state") == STARTING:
                signal_workers(process.pid, signal.SIGTERM)  # again: a process that is just becoming a worker loses it
            if failed_at is None and first_failure(logs) is not None:
                failed_at = time.monotonic()
            if failed_at is not None and time.monotonic() - failed_at > GRACE_AFTER_FAILURE_S:
                signal_workers(process.pid, signal.SIGKILL)
    finally:
        signals.restore()
        if process.poll() is None:
            signal_workers(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()
    return code, signals.received > 0


def signal_workers(torchrun_pid: int, number: int) -> None:
    """Sends a signal to every worker; to torchrun while it has none yet, or where the system does not tell its children."""
    try:
        children = Path(f"/proc/{torchrun_pid}/task/{torchrun_pid}/children").read_text().split()
    except FileNotFoundError:
        children = []
    for pid in children or [str(torchrun_pid)]:
        try:
            os.kill(int(pid), number)
        except ProcessLookupError:
            continue


class _Signals:
    """SIGINT and SIGTERM ask the workers to save and leave; the second one kills them."""

    def __init__(self) -> None:
        self.torchrun_pid: int | None = None  # not started yet
        self.received = 0
        self.previous = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received += 1
        if self.torchrun_pid is not None:
            signal_workers(self.torchrun_pid, signal.SIGTERM if self.received == 1 else signal.SIGKILL)


def _environment(num_processes: int) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name not in TOKEN_VARIABLES}
    environment[LAUNCHER_PID] = str(os.getpid())
    environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // num_processes)))
    root = str(Path(finetuning.__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    return environment
