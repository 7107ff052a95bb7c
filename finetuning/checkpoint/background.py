"""Checkpoints that are written beside the training: the state is copied to host memory, and a thread writes the copy.

One save at a time; whoever begins the next one, or leaves, waits for the one before. A checkpoint becomes complete, `latest`
and old ones go, when all ranks have written their parts, as in `checkpoint.store`, whose functions the thread calls; only that
its ranks agree in a process group of their own, because collectives of two threads in one group would meet each other's.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from finetuning.checkpoint.files import WEIGHTS
from finetuning.checkpoint.host_copy import HostCopy, bytes_of
from finetuning.checkpoint.store import write_checkpoint
from finetuning.errors import StopRequested
from finetuning.i18n import t
from finetuning.runtime.agreement import all_agree
from finetuning.runtime.host_memory import available_bytes
from finetuning.runtime.progress import Phase, Progress

SHARE_OF_MEMORY = 0.8  # of what is available on a machine, for the copies of all its processes


class Saved(NamedTuple):
    """A checkpoint that is on the disk."""

    step: int
    seconds: float  # from the beginning of the save
    blocked_s: float  # of them, that the training has waited for
    weights_only: bool


class BackgroundSaves:
    """Saves of one process. Every rank must call `save` and `finish` at the same places; the rest is each rank's own."""

    def __init__(
        self,
        device: torch.device,
        progress: Progress,
        say: Callable[[str], None],
        memory_bytes: Callable[[], int] = available_bytes,
    ):
        self.progress, self._say, self._memory_bytes = progress, say, memory_bytes
        self._group = dist.new_group(backend="gloo")
        self._pool = ThreadPoolExecutor(1, "save", initializer=partial(_use_device, device))
        self._copy = HostCopy(device)
        self._allocated: Future[bool] | None = None  # begun; is there memory for a copy on this rank?
        self._is_copied: bool | None = None  # is there on all ranks? None: they have not asked each other
        self._saving: Future[float] | None = None  # the time at which it was complete
        self._step, self._began_s, self._blocked_s, self._weights_only = 0, 0.0, 0.0, False

    def prepare(self, state: dict[str, Tensor]) -> None:
        """Begins to take the memory for copies, so that the first save does not wait for it."""
        needed = bytes_of(state) * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        fits = needed <= SHARE_OF_MEMORY * self._memory_bytes()
        self._allocated = self._pool.submit(self._allocate, state) if fits else _known(False)

    def save(self, path: Path, state: dict[str, Tensor], info: dict[str, Any], completed: Callable[[], None]) -> None:
        """Begins to save; when this returns the state may change, after `before_update`.

        `completed` is called on rank 0, in the thread, when the checkpoint is there. Without memory for a copy all of it is
        done when this returns.

        Raises:
            NoRoom, RunError: as `finish`, of the save before; without a copy of this one.
        """
        began_s = time.monotonic()
        with self.progress.during(Phase.SAVING):
            self.finish()
            self._step, self._began_s, self._weights_only = info["step"], began_s, path.name.startswith(WEIGHTS)
            if self._can_copy(state):
                self._copy.take(state)
                self.progress.save_begins()
                self._saving = self._pool.submit(self._write, path, state, info, completed)
                self._saving.add_done_callback(lambda _: self.progress.save_ends())
            else:
                write_checkpoint(path, state, info, completed=completed)
                self._saving = _known(time.monotonic())
        self._blocked_s = time.monotonic() - began_s

    def before_update(self) -> None:
        """To be called before weights or moments change: on the device they wait for the copy of them."""
        self._copy.before_update()

    @property
    def under_way(self) -> bool:
        return self._saving is not None and not self._saving.done()

    @property
    def has_begun(self) -> bool:
        """A checkpoint is being written, or is there and was not told of."""
        return self._saving is not None and not self.has_failed and not self._weights_only

    @property
    def has_failed(self) -> bool:
        """The save under way has, on this rank. All ranks should `finish` then, which raises on all of them."""
        return self._saving is not None and self._saving.done() and self._saving.exception() is not None

    def newly_saved(self) -> Saved | None:
        """The save under way where it is done and has not been told of; does not wait."""
        if self._saving is None or not self._saving.done() or self._saving.exception() is not None:
            return None
        saved = Saved(self._step, self._saving.result() - self._began_s, self._blocked_s, self._weights_only)
        self._saving = None
        facts = {"step": saved.step, "seconds": saved.seconds, "blocked": saved.blocked_s}
        if saved.weights_only:
            self._say(t("step {step}: best weights so far saved in {seconds:.1f} s", **facts))
        else:
            self.progress.saved(saved.step)
            self._say(
                t("step {step}: checkpoint saved in {seconds:.1f} s, of which the training waited {blocked:.1f} s", **facts)
            )
        return saved

    def finish(self) -> None:
        """Waits until the save under way, if there is one, is on the disk.

        Raises:
            NoRoom, RunError: on all ranks, where one of them could not write; nothing of it is left.
        """
        if self._saving is None:
            return
        waits_s = time.monotonic()
        with self.progress.during(Phase.SAVING):
            wait([self._saving])
        self._blocked_s += time.monotonic() - waits_s
        if self.newly_saved() is None:
            failed, self._saving = self._saving, None
            failed.result()

    def __enter__(self) -> "BackgroundSaves":
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Whatever ended the work, the save under way is seen to its end; a stop that arrives meanwhile waits as well."""
        if self._saving is not None:
            with self.progress.held():
                wait([self._saving])
        if error is None or isinstance(error, StopRequested):
            self.finish()

    def _can_copy(self, state: dict[str, Tensor]) -> bool:
        """Whether all ranks have memory for a copy; it is said where they have not."""
        if self._is_copied is None:
            if self._allocated is None:
                self.prepare(state)
            assert self._allocated is not None
            self._is_copied = all_agree(self._allocated.result())
            if not self._is_copied:
                self._say(
                    t(
                        "the training waits for each checkpoint to be written: a copy of what it holds takes {needed:.1f} GiB "
                        "of each process, and {free:.1f} GiB of host memory are available here",
                        needed=bytes_of(state) / 2**30,
                        free=self._memory_bytes() / 2**30,
                    )
                )
        return self._is_copied

    def _allocate(self, state: dict[str, Tensor]) -> bool:
        try:
            self._copy.allocate(state)
        except RuntimeError:  # there is memory, but not so much of it can be pinned
            return False
        return True

    def _write(self, path: Path, state: dict[str, Tensor], info: dict[str, Any], completed: Callable[[], None]) -> float:
        self._copy.wait()
        write_checkpoint(path, state, info, copies=self._copy.tensors, group=self._group, completed=completed)
        return time.monotonic()


def _use_device(device: torch.device) -> None:
    """Each thread has a GPU of its own that it uses when it is not told which, at first that of rank 0."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


T = TypeVar("T")


def _known(value: T) -> Future[T]:
    found: Future[T] = Future()
    found.set_result(value)
    return found
