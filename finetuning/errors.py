"""Errors a user can act on, and the exit codes of the command.

`InputError` carries every problem found at once; it is raised on the launching machine before anything is
started. `RunError` is a failure while the job runs, with what to change. Programming errors stay ordinary exceptions.
"""

from __future__ import annotations  # Pythons that are too old read this file, to say so

from collections.abc import Sequence

EXIT_FINISHED = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: stopped on request, state saved, the same command goes on
EXIT_INTERRUPTED = (
    130  # 128 + SIGINT, a shell's own: nothing started yet, killed by a second Ctrl-C, or no longer watching a job
)


class InputError(Exception):
    """What the user gave cannot work; `problems` holds one message for each thing to change."""

    def __init__(self, problems: str | Sequence[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class RunError(Exception):
    """The job cannot go on; the message says what happened and what would help."""


class NoRoom(RunError):
    """A disk, or a quota, is full; nothing that was complete is lost."""


class StopRequested(BaseException):
    """SIGTERM or Ctrl-C arrived while there was nothing to save.

    No `Exception`, as `KeyboardInterrupt` is none: it arrives wherever the process happens to be, and libraries turn an
    `Exception` that passes through them into an error of their own.
    """
