"""The CUDA GPUs of this machine, as torch sees them; where there is no driver, torch is not even imported."""

import ctypes
from dataclasses import dataclass
from pathlib import Path

AMD_DEVICE = Path("/dev/kfd")  # torch for AMD calls its GPUs CUDA as well


@dataclass(frozen=True)
class GpuMemory:
    """Of each GPU that a run will have."""

    gib: float
    source: str | None = None  # who says so, where it is not this machine


def count_gpus() -> int:
    """GPUs that processes on this machine can use."""
    if not _has_driver():
        return 0
    import torch  # takes seconds, which a login node can do without

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def find_gpu_memory() -> GpuMemory | None:
    """Of the first GPU of this machine; None without any."""
    if count_gpus() == 0:
        return None
    import torch

    return GpuMemory(torch.cuda.get_device_properties(0).total_memory / 2**30)


def _has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")  # what torch itself looks for
    except OSError:
        return AMD_DEVICE.exists()
    return True
