"""A copy of a run's state in host memory, from which a checkpoint is written while the training goes on.

On a GPU the copying is queued beside the next step's work, on a stream of its own, and has to be done when that step changes
the weights (`before_update`). The memory is pinned, and kept for the next copy.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from finetuning.parallel.weights import local_part

# Tensors share memory of about so much. To pin it takes CUDA 0.1 s, in which steps wait for the same lock; more at once would
# make them wait for longer, and each tensor alone many times.
BYTES_AT_ONCE = 2**28
ALIGNMENT = 256  # bytes, of each tensor in it


class HostCopy:
    """Of this process's part of every tensor; one copy at a time."""

    def __init__(self, device: torch.device):
        self.tensors: dict[str, Tensor] = {}
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._copied: torch.cuda.Event | None = None  # on the stream; None: nobody has to wait for a copy

    def allocate(self, state: Mapping[str, Tensor]) -> None:
        """Takes the memory for a copy, as far as it is not there yet."""
        for group in _groups({name: tensor for name, tensor in state.items() if name not in self.tensors}):
            size = sum(map(_aligned, group.values()))
            memory, start = torch.empty(size, dtype=torch.uint8, pin_memory=self._stream is not None).numpy(), 0
            for name, local in group.items():
                # Not a view of one storage: torch writes a tensor with all of its storage.
                part = memory[start : start + local.nbytes]
                flat = torch.frombuffer(part, dtype=local.dtype) if local.numel() else torch.empty(0, dtype=local.dtype)
                self.tensors[name] = flat.view(local.shape)
                start += _aligned(local)

    @torch.no_grad()
    def take(self, state: Mapping[str, Tensor]) -> None:
        """Copies, or queues the copying; what lies in host memory, as all does on a CPU, is copied when this returns."""
        self.allocate(state)
        if self._stream is None:
            self._copy(state)
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._copy(state)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def _copy(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in state.items():
            self.tensors[name].copy_(local_part(tensor), non_blocking=True)

    def before_update(self) -> None:
        """Whatever the device is given from now on waits until it has copied."""
        if self._copied is not None:
            torch.cuda.current_stream().wait_event(self._copied)
            self._copied = None

    def wait(self) -> None:
        """Returns when the copy is complete. In the thread that reads it; `before_update` may come before or after."""
        if self._stream is not None:
            self._stream.synchronize()


def bytes_of(state: Mapping[str, Tensor]) -> int:
    """Host memory that a copy takes at most: pinned memory comes in powers of two."""
    sizes = [sum(map(_aligned, group.values())) for group in _groups(state)]
    return sum(1 << (size - 1).bit_length() for size in sizes if size)


def _groups(state: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """This process's parts, those together that share memory."""
    group: dict[str, Tensor] = {}
    size = 0
    for name, tensor in state.items():
        local = local_part(tensor)
        if group and size + _aligned(local) > BYTES_AT_ONCE:
            yield group
            group, size = {}, 0
        group[name] = local
        size += _aligned(local)
    yield group


def _aligned(tensor: Tensor) -> int:
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
