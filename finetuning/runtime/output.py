"""Where a process prints: standard output that may go away or be full, which ends no training, and the log of a worker."""

import errno
import io
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from typing_extensions import override

from finetuning.files.atomic import NO_ROOM
from finetuning.i18n import t
from finetuning.terminal import SafeConsole

GONE = (errno.EIO, errno.EPIPE)


def open_output(descriptor: int, encoding: str = "utf-8") -> TextIO:
    """A text stream that writes to `descriptor`, and nowhere once nobody can read there any more, or while a disk is full.

    A terminal without Chinese shows question marks.
    """
    raw = _Output(descriptor, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors="replace", line_buffering=os.isatty(descriptor))


def redirect_output(log_file: Path) -> Console:
    """Sends everything this process prints to its log and returns a console on the real standard output.

    Libraries warn about things a user can do nothing about; those belong in the log. Works on file descriptors, so it
    also catches what C libraries print.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    terminal = open_output(os.dup(1))
    descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    return SafeConsole(file=terminal)


def what_was_lost(stream: TextIO) -> str | None:
    """Of a stream of `open_output`: why a part of what was printed is not there; None: all is, or nobody wanted to read it."""
    stream.flush()
    raw = stream.buffer.raw if isinstance(stream, io.TextIOWrapper) and isinstance(stream.buffer, io.BufferedWriter) else None
    if not isinstance(raw, _Output) or raw.lost is None:
        return None
    return t("no room left for what is printed ({reason}); a part of it is missing", reason=raw.lost.strerror)


class _Output(io.FileIO):
    lost: OSError | None = None  # why a part was

    @override
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno in NO_ROOM:
                self.lost = error
            elif error.errno not in GONE:
                raise
            return memoryview(data).nbytes
