"""The signals by which a run is asked to end, while its launcher waits for it.

Every signal asks the workers to save and leave, and no number of them does more; only a second Ctrl-C on the terminal, and
SIGQUIT (`finetune cancel --now`, or Ctrl-\\ on the terminal), kill.
"""

import os
import signal
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Self

KILL_SIGNAL = signal.SIGQUIT


class StopRequests:
    """Listens in a `with` block, in the main thread; nobody is told until `pass_on` is set."""

    def __init__(self, numbers: Sequence[int], *, can_kill: bool):
        self.numbers = [*numbers, *([KILL_SIGNAL] if can_kill else [])]
        self.received: list[int] = []
        self.presses = 0  # of Ctrl-C on the terminal
        self.kill = False  # at once, without saving
        self.pass_on: Callable[[], object] = lambda: None  # called at once with each of them

    def __enter__(self) -> Self:
        heard = [
            number for number in self.numbers if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
        ]  # nohup
        self._previous = {number: signal.signal(number, self._receive) for number in heard}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        if number == signal.SIGINT and KILL_SIGNAL in self.numbers and is_in_front():
            self.presses += 1
        self.kill = self.kill or number == KILL_SIGNAL or self.presses > 1
        self.pass_on()


def is_in_front() -> bool:
    """This process is what its terminal's keys reach. One without a terminal, or in the background, gets no Ctrl-C."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:  # it has none, or it was closed
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
