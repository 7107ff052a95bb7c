"""Starts the real command in a process of its own, watches it from outside, and interrupts it."""

import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

from finetuning.runtime.status import read_status
from finetuning.training.metrics import read_metrics

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 240.0  # ten times what a launch takes on two idle cores
POLL_INTERVAL_S = 0.002


class Command:
    """A running `python finetune.py …` (or another program), with its output in a file.

    It has a terminal of its own and leads the process group in front of it, like a shell's foreground job; `ctrl_c` is the
    key on that terminal.
    """

    def __init__(self, folder: Path, *arguments: str, on_screen: bool = False):
        """With `on_screen` it prints to its terminal, which nobody reads, instead of the file."""
        self.output_file = folder / "output.txt"
        environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
        environment |= {"OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8", "COLUMNS": "200", "PYTHONPATH": str(ROOT)}
        self.keyboard, terminal = os.openpty()
        with self.output_file.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=folder,
                env=environment,
                stdin=terminal,
                stdout=terminal if on_screen else output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - one system call
            )
        os.close(terminal)

    def finish(self) -> tuple[int, str]:
        """Waits for the end; exit code and everything it has printed."""
        try:
            code = self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill_everything()
            raise AssertionError(f"did not end in {TIMEOUT_S:.0f} s:\n{self.output()}") from None
        return code, self.output()

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Returns as soon as the condition holds; the program must not have ended before."""
        deadline = time.monotonic() + TIMEOUT_S
        while not holds():
            assert self.process.poll() is None, f"ended too early with {self.process.returncode}:\n{self.output()}"
            if time.monotonic() > deadline:
                self.kill_everything()
                raise AssertionError(f"waited for {TIMEOUT_S:.0f} s:\n{self.output()}")
            time.sleep(POLL_INTERVAL_S)

    def output(self) -> str:
        return self.output_file.read_text(encoding="utf-8")

    def ctrl_c(self) -> None:
        os.write(self.keyboard, b"\x03")

    def close_terminal(self) -> None:
        """What happens when its window is closed: SIGHUP, and nothing can be printed any more."""
        os.close(self.keyboard)

    def workers(self) -> list[int]:
        """The worker processes below torchrun."""
        return [pid for pid in descendants(self.process.pid) if "finetuning.train" in arguments(pid)[:4]]

    def signal_workers(self, number: int) -> None:
        for pid in self.workers():
            os.kill(pid, number)

    def freeze_workers(self) -> None:
        """SIGSTOP, in force when this returns."""
        self.signal_workers(signal.SIGSTOP)
        self.wait_until(lambda: all(is_frozen(pid) for pid in self.workers()))

    def wait_until_pending(self, number: int) -> None:
        """Returns when the signal has reached every worker, which is frozen and cannot act on it (Linux)."""
        self.wait_until(lambda: all(is_pending(pid, number) for pid in self.workers()))

    def freeze_inside_a_save(self, checkpoints: Path) -> Path:
        """Stops the workers (SIGSTOP) while they write a checkpoint, however short that moment is; its unfinished folder."""
        while True:
            self.wait_until(lambda: any(checkpoints.glob(".incomplete-step=*")))
            self.freeze_workers()
            unfinished = list(checkpoints.glob(".incomplete-step=*"))
            if unfinished:
                return unfinished[0]
            self.signal_workers(signal.SIGCONT)  # too late, the next one

    def kill_everything(self) -> None:
        """SIGKILL for the command and all that it has started, as when a machine loses power or a job is cancelled."""
        pids = [self.process.pid, *descendants(self.process.pid)]
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # ended with its parent
        self.process.wait()
        deadline = time.monotonic() + TIMEOUT_S
        while not all(map(is_gone, pids)):
            assert time.monotonic() < deadline, f"survived SIGKILL: {pids}"
            time.sleep(POLL_INTERVAL_S)


def finetune(folder: Path, *flags: str, on_screen: bool = False) -> Command:
    """The specification's command, started in `folder`; experiments go below it."""
    return Command(folder, str(ROOT / "finetune.py"), *flags, on_screen=on_screen)


def start_verb(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """`finetune VERB …`, started in `folder`; what it prints goes to a pipe."""
    code = "import sys; from finetuning.cli.main import console; sys.argv[0] = 'finetune'; console()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def verb(folder: Path, *arguments: str) -> tuple[int, str]:
    """Runs it to its end; exit code and everything it has printed."""
    process = start_verb(folder, *arguments)
    output = process.communicate()[0]
    return process.returncode, output


def run_verb(folder: Path, *arguments: str) -> str:
    code, output = verb(folder, *arguments)
    assert code == 0, output
    return output


def steps_done(experiment: Path) -> int:
    rows = read_metrics(experiment / "metrics.csv")
    return int(rows[-1]["step"]) if rows else 0


def is_training(experiment: Path, after_step: int) -> bool:
    """Has it done at least one step more than `after_step`?"""
    return read_status(experiment).get("state") == "running" and steps_done(experiment) > after_step


def descendants(pid: int) -> list[int]:
    """All processes below `pid`, parents first (Linux)."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []
    return [found for child in children for found in (child, *descendants(child))]


def arguments(pid: int) -> list[str]:
    """Command line of a process; empty when it is gone (Linux)."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def is_frozen(pid: int) -> bool:
    """All its threads are stopped: one that is in a call of the system, as a rename, comes to its end first (Linux)."""
    try:
        return {thread.read_text().rpartition(")")[2].split()[0] for thread in Path("/proc").glob(f"{pid}/task/*/stat")} == {
            "T"
        }
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_gone(pid: int) -> bool:
    """It has ended, with all its threads: the files it had open, and locks on them, are let go only by the last one (Linux)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return fields[0] in "ZX" and int(fields[17]) <= 1  # state, …, number of threads


def is_pending(pid: int, number: int) -> bool:
    """Has the signal been sent to the process and not been handled (Linux)?"""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith("ShdPnd:"))
    return bool(mask >> (number - 1) & 1)
