"""torchrun: its command, the environment of its workers, and runs that need this machine only."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import finetuning
from finetuning.launch.stop_requests import StopRequests
from finetuning.launch.workers import Ended, Workers
from finetuning.runtime.process_lifetime import LAUNCHER_PID, end_with_parent

# Workers need no token: the model is on this machine by then.
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "HF_API_TOKEN")
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def torchrun_command(run_file: Path, num_processes: int) -> list[str]:
    return [*torchrun_options(num_processes), "-m", "finetuning.train", str(run_file)]


def torchrun_options(num_processes: int) -> list[str]:
    """A free port is chosen by torchrun; loopback only, whatever the host name resolves to."""
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes",
        "1",
        "--nproc_per_node",
        str(num_processes),
        "--rdzv_backend",
        "c10d",
        "--rdzv_endpoint",
        "localhost:0",
        "--local-addr",
        "127.0.0.1",
        "--max_restarts",
        "0",
    ]


def torchrun_command_of_node(
    run_file: Path, num_processes: int, *, num_nodes: int, node: str, first_node: str, port: int
) -> list[str]:
    """One of several machines; `node` counts from 0, and the first one must be reachable as `first_node`."""
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes",
        str(num_nodes),
        "--node_rank",
        node,
        "--nproc_per_node",
        str(num_processes),
        "--master_addr",
        first_node,
        "--master_port",
        str(port),
        "--max_restarts",
        "0",
        "-m",
        "finetuning.train",
        str(run_file),
    ]


def run_workers(
    run_file: Path, num_processes: int, logs: Path, lock_descriptor: int, stop: StopRequests, stall_timeout_s: float | None
) -> Ended:
    """Starts the workers of a run on this machine alone and returns when all are gone.

    `lock_descriptor` stays open in torchrun, so that the experiment is locked while any worker may live.
    """
    environment = worker_environment(num_processes)
    if sys.platform == "linux":  # whatever the host name resolves to, also while a VPN comes and goes
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    workers = Workers(num_processes, logs, "torchrun.log", stop, stall_timeout_s)
    return workers.run(torchrun_command(run_file, num_processes), environment, [lock_descriptor])


def run_to_the_end(command: Sequence[str], environment: dict[str, str]) -> int:
    """Runs torchrun in the foreground and returns its exit code; it ends with this process, whatever ends that."""
    return subprocess.run(command, env=environment, check=False, preexec_fn=partial(end_with_parent, os.getpid())).returncode


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
