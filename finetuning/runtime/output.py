"""Standard output that may go away: a closed terminal, or a pipe whose reader has ended, ends no training."""

import errno
import io
import os
from typing import Any, TextIO

from typing_extensions import override

GONE = (errno.EIO, errno.EPIPE)


def open_output(descriptor: int, encoding: str = "utf-8") -> TextIO:
    """A text stream that writes to `descriptor`, and nowhere once nobody can read there any more.

    A terminal without Chinese shows question marks.
    """
    raw = _Output(descriptor, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors="replace", line_buffering=os.isatty(descriptor))


class _Output(io.FileIO):
    @override
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in GONE:
                raise
            return memoryview(data).nbytes
