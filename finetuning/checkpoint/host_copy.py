"""A copy of a run's state in host memory, from which a checkpoint is written while the training goes on.

On a GPU the copying is queued beside the next step's work, on a stream of its own, and has to be done when that step changes
the weights (`before_update`). The memory is pinned, and kept for the next copy.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from finetuning.parallel.weights import local_part


class HostCopy:
    """Of this process's part of every tensor; one copy at a time."""

    def __init__(self, device: torch.device):
        self.tensors: dict[str, Tensor] = {}
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._copied: torch.cuda.Event | None = None  # on the stream; None: nobody has to wait for a copy

    def allocate(self, state: Mapping[str, Tensor]) -> None:
        """Takes the memory for a copy, as far as it is not there yet; pinning it takes the system a second for some GiB."""
        for name, tensor in state.items():
            local = local_part(tensor)
            known = self.tensors.get(name)
            if known is None or known.shape != local.shape or known.dtype != local.dtype:
                self.tensors[name] = torch.empty(local.shape, dtype=local.dtype, device="cpu", pin_memory=local.is_cuda)

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
    """Host memory that a copy takes. Pinned memory comes in powers of two."""
    sizes = [(local_part(tensor).nbytes, local_part(tensor).is_cuda) for tensor in state.values()]
    return sum(1 << (size - 1).bit_length() if pinned and size else size for size, pinned in sizes)
