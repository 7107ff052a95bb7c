"""No process outlives its parent: torchrun ends with the launcher, workers with torchrun (Linux only).

Whoever kills the launcher in a way that it cannot pass on — SIGKILL, the out-of-memory killer — must not leave workers
behind that hold the GPUs.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

LAUNCHER_PID = "FINETUNE_LAUNCHER_PID"  # environment variable of the workers
PR_SET_PDEATHSIG = 1  # prctl(2)


def end_with_parent() -> None:
    """Asks Linux to kill this process when its parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def launcher_is_gone() -> bool:
    """Has torchrun, or the launcher above it, ended before `end_with_parent` could take effect?

    The seconds in which a worker imports its libraries are long enough for that. False where torchrun was started by hand.
    """
    launcher = os.environ.get(LAUNCHER_PID)
    if launcher is None or sys.platform != "linux":
        return False
    try:
        fields = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return True
    return fields[1] != launcher  # state, parent's pid, …
