"""No process outlives its parent: torchrun ends with the launcher, workers with torchrun (Linux only).

Whoever kills the launcher in a way that it cannot pass on — SIGKILL, the out-of-memory killer — must not leave workers
behind that hold the GPUs. Nor do workers wait for one that has failed.
"""

import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from finetuning.errors import EXIT_FAILED
from finetuning.runtime.garbage import begin_imports

SIBLINGS_GRACE_S = 5.0  # for a worker that does not hang to end by itself
LAUNCHER_PID = "FINETUNE_LAUNCHER_PID"  # environment variable of the workers
SHOW_STACKS = signal.SIGUSR2  # makes a worker write where each of its threads is, also while it hangs in C
PR_SET_PDEATHSIG = 1  # prctl(2)


def begin_worker() -> None:
    """What a worker does before the imports that take it seconds: it learns to end with torchrun, and to show where it is.

    Ends the process at once where torchrun, or the launcher above it, has ended already. `end_imports` is to follow.
    """
    begin_imports()
    end_with_parent()
    if launcher_is_gone():
        sys.exit(EXIT_FAILED)
    faulthandler.register(SHOW_STACKS, all_threads=True)


def end_with_parent(parent: int | None = None) -> None:
    """Asks Linux to kill this process when its parent dies; ends it where `parent`, if given, has died before that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if parent is not None and os.getppid() != parent:
            os._exit(EXIT_FAILED)


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


def end_with_siblings(trains: Callable[[], bool]) -> None:
    """Ends this process soon when SIGTERM arrives while it trains and another worker of its torchrun is gone (Linux).

    That is how torchrun tells that a worker has failed; it kills the others 30 s later. By then they hang in a message to the
    lost one, where no handler written in Python runs. But the signal's number is written for a thread to read. Those that
    fail for themselves at the same time have a few seconds to say so. To be called by the main thread, after SIGTERM was
    given a handler.
    """
    if sys.platform != "linux":
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def watch() -> None:
        while numbers := os.read(read, 64):
            if signal.SIGTERM in numbers and trains() and _has_lost_siblings():
                time.sleep(SIBLINGS_GRACE_S)
                if trains():
                    os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="siblings", daemon=True).start()


def leave(code: int) -> NoReturn:
    """Ends this process, which has nothing left to write, without taking down the interpreter.

    Threads of C++ libraries that meet its end abort the process, which then looks like one that was killed. What others have
    registered for the end of the interpreter is left out: processes that a library has started end with this one.
    """
    with suppress(OSError):  # of a log on a full disk, which has been told
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _has_lost_siblings() -> bool:
    """Whether fewer workers live than torchrun has started here; no, where the system does not tell."""
    parent, living = os.getppid(), 0
    try:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    for pid in children:
        with suppress(FileNotFoundError, ProcessLookupError):  # reaped a moment ago
            living += Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return living < int(os.environ["LOCAL_WORLD_SIZE"])
