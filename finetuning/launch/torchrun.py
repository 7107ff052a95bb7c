"""Runs the workers of one machine through torchrun and sees them to their end.

torchrun lives in a session of its own, so Ctrl-C reaches this launcher only, which passes it on to the workers: they
finish their step, save and leave. torchrun itself would kill them after 30 seconds, in the middle of a long save.
"""

import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

import finetuning
from finetuning.runtime.failures import first_failure, write_killed
from finetuning.runtime.process_lifetime import LAUNCHER_PID, end_with_parent
from finetuning.runtime.status import STARTING, read_status

POLL_INTERVAL_S = 0.1
# Workers need no token: the model is on this machine by then.
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "HF_API_TOKEN")
GRACE_AFTER_FAILURE_S = 15.0  # for ranks that wait for one that has failed
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Of torchrun's report about the workers that failed.
FAILED_WORKER = re.compile(r"^\s*rank +: (\d+) .*\n\s*exitcode +: -(\d+) ", re.MULTILINE)


@dataclass(frozen=True)
class Ended:
    """How the workers of this machine ended."""

    code: int  # torchrun's exit code
    asked: int | None = None  # the first signal that asked them to stop
    killed: bool = False  # a second signal came


def torchrun_command(run_file: Path, num_processes: int) -> list[str]:
    return [*torchrun_options(num_processes), "-m", "finetuning.train", str(run_file)]


def torchrun_options(num_processes: int) -> list[str]:
    """A free port is chosen by torchrun; loopback only, whatever the host name resolves to."""
    return [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc_per_node", str(num_processes),
        "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", "--local-addr", "127.0.0.1", "--max_restarts", "0",
    ]  # fmt: skip


def torchrun_command_of_node(
    run_file: Path, num_processes: int, *, num_nodes: int, node: str, first_node: str, port: int
) -> list[str]:
    """One of several machines; `node` counts from 0, and the first one must be reachable as `first_node`."""
    return [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", str(num_nodes), "--node_rank", node,
        "--nproc_per_node", str(num_processes), "--master_addr", first_node, "--master_port", str(port),
        "--max_restarts", "0", "-m", "finetuning.train", str(run_file),
    ]  # fmt: skip


def run_workers(run_file: Path, num_processes: int, logs: Path, lock_descriptor: int) -> Ended:
    """Starts the workers of a run on this machine alone and returns when all are gone.

    `lock_descriptor` stays open in torchrun, so that the experiment is locked while any worker may live.
    """
    environment = worker_environment(num_processes)
    if sys.platform == "linux":  # whatever the host name resolves to, also while a VPN comes and goes
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    command = torchrun_command(run_file, num_processes)
    return supervise(command, environment, logs, "torchrun.log", STOP_SIGNALS, [lock_descriptor])


def supervise(
    command: Sequence[str], environment: dict[str, str], logs: Path, log_name: str, stop_signals: Sequence[int],
    descriptors: Sequence[int] = (), *, kill_on_second: bool = True,
) -> Ended:  # fmt: skip
    """Runs torchrun, passes signals on to its workers, ends those that wait in vain for a failed one."""
    signals = _Signals(stop_signals, kill_on_second)
    with (logs / log_name).open("ab") as log:
        log_start = log.tell()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=log, env=environment, start_new_session=True,
            pass_fds=descriptors, preexec_fn=partial(end_with_parent, os.getpid()),
        )  # fmt: skip
    signals.torchrun_pid = process.pid
    failed_at = None
    given_up = False
    try:
        while (code := process.poll()) is None:
            time.sleep(POLL_INTERVAL_S)
            if signals.received and read_status(logs.parent).get("state") == STARTING:
                signals.pass_on()  # again: a process that is just becoming a worker loses it
            if failed_at is None and (first_failure(logs) is not None or not logs.parent.is_dir()):
                failed_at = time.monotonic()
            if failed_at is not None and (signals.received or time.monotonic() - failed_at > GRACE_AFTER_FAILURE_S):
                given_up = True
                signal_workers(process.pid, signal.SIGKILL)
    finally:
        signals.restore()
        if process.poll() is None:
            signal_workers(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()
    killed = kill_on_second and signals.received > 1
    if code != 0 and not given_up and not killed:
        _record_killed(logs, log_name, log_start)
    return Ended(code, signals.first, killed)


def run_to_the_end(command: Sequence[str], environment: dict[str, str]) -> int:
    """Runs torchrun in the foreground and returns its exit code; it ends with this process, whatever ends that."""
    return subprocess.run(command, env=environment, check=False, preexec_fn=partial(end_with_parent, os.getpid())).returncode


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


def worker_environment(num_processes: int) -> dict[str, str]:
    """This environment for the workers, without the hub's token."""
    environment = {name: value for name, value in os.environ.items() if name not in TOKEN_VARIABLES}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // num_processes)))
    root = str(Path(finetuning.__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    environment[LAUNCHER_PID] = str(os.getpid())
    if (cache := kernel_cache()) is not None:
        environment.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
        environment.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", str(cache))
    return environment


def kernel_cache() -> Path | None:
    """Where FlashAttention-4 keeps its compiled kernels, about ten seconds of the first step, from one run to the next.

    On a local disk, because it locks files; None where somebody else could put kernels there.
    """
    folder = Path(tempfile.gettempdir()) / f"llama-finetuning-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
    return folder if ours else None


class _Signals:
    """The first signal asks the workers to save and leave; the second one kills them, where that is wanted."""

    def __init__(self, numbers: Sequence[int], kill_on_second: bool):
        self.kill_on_second = kill_on_second
        self.torchrun_pid: int | None = None  # not started yet
        self.received = 0
        self.first: int | None = None
        heard = [number for number in numbers if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]  # nohup
        self.previous = {number: signal.signal(number, self._receive) for number in heard}

    def restore(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def pass_on(self) -> None:
        kill = self.kill_on_second and self.received > 1
        if self.torchrun_pid is not None:
            signal_workers(self.torchrun_pid, signal.SIGKILL if kill else signal.SIGTERM)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received += 1
        self.first = number if self.first is None else self.first
        self.pass_on()


def _record_killed(logs: Path, log_name: str, start: int) -> None:
    """Leaves a failure for each worker that a signal ended from outside, which could not write its own."""
    if not (logs / log_name).is_file():  # somebody has removed the experiment's folder
        return
    with (logs / log_name).open("rb") as log:
        log.seek(start)
        report = log.read().decode(errors="replace")
    for rank, number in FAILED_WORKER.findall(report):
        if int(number) != signal.SIGTERM:  # torchrun sends that to the others itself
            write_killed(logs, int(rank), signal.Signals(int(number)).name)
