"""A process for what foreign files make this program do: it has limits of time and memory, and can be ended.

A chat template is a program, and a tokenizer holds regular expressions; either may take for ever, take all memory, or end its
process. `LimitedProcess` runs functions of one module elsewhere, one call at a time; requests and answers are plain JSON, so
that nothing of what comes back is run. A pool of processes limits its own by `limit_this_process` and `cpu_limit`.
"""

import json
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from finetuning.errors import InputError
from finetuning.i18n import language, set_language, t
from finetuning.runtime.process_lifetime import end_with_parent
from finetuning.runtime.secrets import without_secrets

MEMORY_BYTES = 1 << 30  # above what the process has when it starts
MAX_MESSAGE_BYTES = 1 << 28
IDLE_S = 60.0  # after which a process ends that nobody asks any more; the next call starts another
WALL_FACTOR = 20  # of the CPU time that a call may take: machines are busy, and a process that waits for ever is ended, too
MAX_ERROR = 300  # characters of an error that are told
LENGTH = struct.Struct("<Q")

_is_limited = False


class NoAnswer(Exception):
    """What was called has a limit exceeded, failed, or ended its process; says which, as the end of a sentence about it."""


def is_limited() -> bool:
    """Whether this process may run what foreign files say."""
    return _is_limited


def limit_this_process(memory_bytes: int = MEMORY_BYTES) -> None:
    """Bounds the memory of this process, and hushes what libraries write to its standard error."""
    global _is_limited
    _is_limited = True
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        wanted = size + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """The system ends this process when the block takes more CPU time, also within code that Python cannot interrupt."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)


class LimitedProcess:
    """The process of one module, which calls `serve` with its function; started when it is needed."""

    def __init__(self, module: str):
        self.module = module
        self.process: subprocess.Popen[bytes] | None = None

    def call(self, request: Any, cpu_s: float) -> Any:
        """What the module's function returns for a request, both plain JSON values.

        Raises:
            InputError: as the function raised it.
            NoAnswer: it took more than `cpu_s` of CPU time, or more memory than there is for it, or failed.
        """
        message = json.dumps({"request": request, "cpu_s": cpu_s, "language": language()}).encode()
        try:
            try:
                answer = self._exchange(message, WALL_FACTOR * cpu_s)
            except _NotThere:  # it was idle for long
                answer = self._exchange(message, WALL_FACTOR * cpu_s)
        except TimeoutError:
            self.end()
            raise NoAnswer(t("takes too much time")) from None
        except OSError as error:  # no memory for another process, no room for its pipes
            self.end()
            raise NoAnswer(t("could not be run ({error})", error=error.strerror or error)) from None
        except BaseException:  # also Ctrl-C: the next answer would be that of another request
            self.end()
            raise
        if "problems" in answer:
            raise InputError(answer["problems"])
        if "error" in answer:
            raise NoAnswer(t("fails ({error})", error=answer["error"]))
        if "result" not in answer:
            raise NoAnswer(t("takes too much memory"))
        return answer["result"]

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def _exchange(self, message: bytes, wall_s: float) -> dict[str, Any]:
        is_new = self.process is None
        process = self.process = self.process or self._start()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(LENGTH.pack(len(message)) + message)
            process.stdin.flush()
            deadline = time.monotonic() + wall_s
            length = LENGTH.unpack(_read(process.stdout.fileno(), LENGTH.size, deadline))[0]
            if length > MAX_MESSAGE_BYTES:
                raise NoAnswer(t("makes a text of more than {most} MiB", most=MAX_MESSAGE_BYTES >> 20))
            answer: dict[str, Any] = json.loads(_read(process.stdout.fileno(), length, deadline))
        except (BrokenPipeError, EOFError):
            with suppress(subprocess.TimeoutExpired):
                process.wait(1.0)  # it has closed its ends and is about to end
            self.end()
            if is_new or process.returncode != 0:
                raise NoAnswer(_why_it_ended(process.returncode)) from None
            raise _NotThere from None
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        with without_secrets():
            return subprocess.Popen(
                [sys.executable, "-m", self.module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"},
            )


def serve(answer: Callable[[Any], Any]) -> None:
    """The loop of the process: answers requests on its standard output until there are no more for a while."""
    end_with_parent()
    # A terminal and Slurm send them to every process of a run; its end is the parent's, which may still need answers.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    replies = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print is no reply
    limit_this_process()
    while True:
        try:
            length = LENGTH.unpack(_read(0, LENGTH.size, time.monotonic() + IDLE_S))[0]
            message = json.loads(_read(0, length, time.monotonic() + IDLE_S))
        except (EOFError, TimeoutError):
            sys.exit(0)
        set_language(message["language"])
        reply: dict[str, Any]
        try:
            with cpu_limit(message["cpu_s"]):
                reply = {"result": answer(message["request"])}
                content = json.dumps(reply).encode()
        except InputError as error:
            content = json.dumps({"problems": error.problems}).encode()
        except MemoryError:
            content = b"{}"
        except BaseException as error:  # of any kind: foreign files decide what libraries, also those in Rust, run into
            content = json.dumps({"error": f"{type(error).__name__}: {error}"[:MAX_ERROR]}).encode()
        sys.stdout.flush()
        sent = memoryview(LENGTH.pack(len(content)) + content)
        while sent:
            sent = sent[os.write(replies, sent) :]


def _why_it_ended(code: int) -> str:
    """Of a process that sent no answer."""
    if code >= 0:
        return t("ended the process that it ran in (exit code {code})", code=code)
    if -code == signal.SIGPROF:
        return t("takes too much time")
    if -code == signal.SIGABRT:  # libraries in C++ and Rust that get no memory
        return t("takes too much memory")
    return t("ended the process that it ran in ({signal})", signal=signal.Signals(-code).name)


class _NotThere(Exception):
    """The process had ended by itself before the request came."""


def _read(descriptor: int, count: int, deadline: float) -> bytes:
    """Raises EOFError where the other side is gone, TimeoutError (an OSError) at the deadline."""
    parts, missing = [], count
    while missing:
        if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        part = os.read(descriptor, min(missing, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
