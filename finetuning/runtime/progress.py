"""What each worker of this machine is doing, where its launcher can see it at any moment, whatever hangs.

The launcher makes a `ProgressBoard`, memory that it shares with its workers; each worker writes into its own slot of it
through a `Progress`. A worker that torchrun started by hand writes into memory of its own.
"""

import mmap
import os
import statistics
import struct
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from finetuning.files.atomic import tells_no_room, temporary_folder
from finetuning.i18n import t
from finetuning.runtime.time_spent import END, SAVES, START, STEPS, VALIDATION, TimeSpent, command_age_s

BOARD_FILE = "FINETUNE_PROGRESS"  # environment variable of the workers
SLOT = struct.Struct("=QQBBQd")
SLOT_BYTES = 64  # a cache line each
STEPS_REMEMBERED = 50


class Phase(IntEnum):
    STARTING = 0  # imports, and the meeting of all processes
    LOADING = 1
    FIRST_STEP = 2  # of this process: kernels are compiled, libraries open their connections
    TRAINING = 3
    VALIDATING = 4
    SAVING = 5
    TESTING = 6
    ANSWERING = 7
    EXPORTING = 8
    LEAVING = 9


# What time counts for once the first step is done; other phases are of the end.
SPENT_ON = {Phase.TRAINING: STEPS, Phase.SAVING: SAVES, Phase.VALIDATING: VALIDATION}


def in_words(phase: Phase, step: int) -> str:
    """What a run in this phase is doing; `step` is the last one that is done."""
    return {
        Phase.STARTING: t("starting"),
        Phase.LOADING: t("loading the model"),
        Phase.FIRST_STEP: t("in its first step, {step}", step=step + 1),
        Phase.TRAINING: t("in step {step}", step=step + 1),
        Phase.VALIDATING: t("validating after step {step}", step=step),
        Phase.SAVING: t("saving step {step}", step=step),
        Phase.TESTING: t("computing the test loss"),
        Phase.ANSWERING: t("generating answers"),
        Phase.EXPORTING: t("writing the result"),
        Phase.LEAVING: t("leaving"),
    }[phase]


def stop_reason(step: int, max_steps: float) -> str:
    """Why a run has ended that was asked to."""
    if step >= max_steps:
        return t("asked to stop after the last step; test loss, answers and export are still to be done")
    return t("asked to stop")


class Slot(NamedTuple):
    """What one worker has written last."""

    pid: int  # 0: it has not come to its first line of ours
    beats: int  # grows with every sign of progress
    phase: int
    trains: bool  # from its first update to its last, and while a checkpoint is being written: it has something to save
    step: int  # the last one that is done
    usual_s: float  # median seconds of its last steps; 0: it has done too few


class ProgressBoard:
    """The launcher's side: memory with a slot for each worker of this machine, until `close`."""

    def __init__(self, num_workers: int):
        """
        Raises:
            NoRoom: the disk with the temporary files is full.
        """
        self.num_workers = num_workers
        with tells_no_room(temporary_folder()):
            descriptor, self.file = tempfile.mkstemp(prefix="finetune-progress-")
            with os.fdopen(descriptor, "r+b") as file:
                file.write(bytes(num_workers * SLOT_BYTES))
                file.flush()
                self._memory = mmap.mmap(file.fileno(), num_workers * SLOT_BYTES)

    def read(self) -> list[Slot]:
        """By local rank."""
        slots = [Slot._make(SLOT.unpack_from(self._memory, rank * SLOT_BYTES)) for rank in range(self.num_workers)]
        if all(slot.pid for slot in slots):
            self._unlink()  # nobody has to open it any more, so nothing is left whatever ends this process
        return slots

    def close(self) -> None:
        self._memory.close()
        self._unlink()

    def _unlink(self) -> None:
        with suppress(FileNotFoundError):
            Path(self.file).unlink()


class Progress:
    """A worker's side. Each call is a sign of progress and costs a few microseconds."""

    def __init__(self) -> None:
        self.phase, self.step, self.saved_step = Phase.STARTING, 0, 0
        self.trains = False  # from its first update to its last: a stop has to wait for a checkpoint, and all ranks agree on it
        self.saves = False  # a checkpoint is being written beside the work
        self.spent = TimeSpent(command_age_s())
        self._has_begun = False  # its first step is done
        self.told: Callable[[], object] = lambda: None  # called with each new phase
        self._beats = 0
        self.usual_s = 0.0  # median seconds of the last steps; 0: it has done too few
        self._seconds: deque[float] = deque(maxlen=STEPS_REMEMBERED)
        self._memory, self._start = _open_slot()
        self.beat()

    @property
    def in_words(self) -> str:
        return in_words(self.phase, self.step)

    def starts_at(self, step: int) -> None:
        """The run goes on from a checkpoint of this step."""
        self.step = self.saved_step = step

    def enter(self, phase: Phase) -> None:
        self._turn_to(phase)
        self.beat()
        self.told()

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """A phase within another, which goes on afterwards."""
        before = self.phase
        self.enter(phase)
        yield
        self.enter(before)

    def beat(self) -> None:
        """A part of the work is done: a row, a token, a file."""
        self._beats += 1
        has_to_save = self.trains or self.saves
        SLOT.pack_into(self._memory, self._start, os.getpid(), self._beats, self.phase, has_to_save, self.step, self.usual_s)

    def step_is_certain(self) -> None:
        """All ranks have its gradients and go on to update the weights: there will be something to save."""
        self.trains = True
        self.beat()

    def step_done(self, step: int, seconds: float) -> None:
        self.step, self._has_begun = step, True
        if self.phase is Phase.TRAINING:  # the first one is no measure
            self._seconds.append(seconds)
            self.usual_s = statistics.median(self._seconds)
        self._turn_to(Phase.TRAINING)
        self.beat()

    def save_begins(self) -> None:
        self.saves = True
        self.beat()

    def save_ends(self) -> None:
        """Called by the thread that saves."""
        self.saves = False
        self.beat()

    def saved(self, step: int) -> None:
        """A checkpoint of this step is complete."""
        self.saved_step = step
        self.beat()

    @contextmanager
    def held(self) -> Iterator[None]:
        """A checkpoint is waited for, at the end or after an error, and so does a stop that arrives meanwhile."""
        before, self.trains = self.trains, True
        self._turn_to(Phase.SAVING)
        self.beat()
        yield
        self.trains = before
        self.beat()

    def _turn_to(self, phase: Phase) -> None:
        self.phase = phase
        self.spent.goes_to(SPENT_ON.get(phase, END) if self._has_begun else START)

    def training_ends(self) -> None:
        """From now on nothing is left to save."""
        self.trains = False
        self.beat()


def _open_slot() -> tuple[mmap.mmap, int]:
    """Memory, and where in it this worker's slot begins."""
    file = os.environ.get(BOARD_FILE)
    if file is None:
        return mmap.mmap(-1, SLOT_BYTES), 0
    with Path(file).open("r+b") as board:
        return mmap.mmap(board.fileno(), 0), int(os.environ["LOCAL_RANK"]) * SLOT_BYTES
