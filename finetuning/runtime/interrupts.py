"""Signals that end a command while it works in its own process, before any worker has been started.

SIGTERM (a scheduler, `kill`, `timeout`) and SIGHUP (a terminal that is closed) raise an exception, as Ctrl-C does, so that
whatever is half written is cleaned up on the way out. Once workers run, `finetuning.launch.torchrun` listens instead.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from finetuning.errors import EXIT_INTERRUPTED

END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Terminated(SystemExit):
    """SIGTERM or SIGHUP has arrived. No `except KeyboardInterrupt` takes it for a Ctrl-C that ends a part of the work only."""

    def __init__(self) -> None:
        super().__init__(EXIT_INTERRUPTED)


def raise_on_end_signals() -> None:
    """From now on SIGTERM and SIGHUP raise `Terminated`, once; a SIGHUP that is ignored (nohup) stays so."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _terminate)


def _terminate(number: int, frame: FrameType | None) -> None:
    for other in (signal.SIGTERM, signal.SIGHUP):  # both may come, and the second must not end the cleaning up
        if signal.getsignal(other) == _terminate:
            signal.signal(other, signal.SIG_IGN)
    raise Terminated


@contextmanager
def end_signals_wait() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP act at the end of the block; processes that are started in it begin with them blocked.

    For what would leave processes behind if it were interrupted half-way. Main thread only; in another one, only what is
    started is protected.
    """
    arrived: list[int] = []
    handlers = {}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)
    if threading.current_thread() is threading.main_thread():
        # Blocking is not enough: threads of libraries take the signal, and Python then runs its handler in this one.
        handlers = {number: signal.signal(number, lambda received, _: arrived.append(received)) for number in END_SIGNALS}
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for taken in arrived:
            os.kill(os.getpid(), taken)
