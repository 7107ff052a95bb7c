"""The CUDA GPUs of this machine, as torch will see them.

The driver is asked: to import torch takes seconds, which a launch can do without.
"""

import ctypes
import importlib.util
import runpy
from dataclasses import dataclass
from pathlib import Path

AMD_DEVICE = Path("/dev/kfd")  # torch for AMD calls its GPUs CUDA as well
NAME_BYTES = 256
CAPABILITY = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h
CUDA_DRIVER = "libcuda.so.1"  # what torch itself looks for


@dataclass(frozen=True)
class GpuMemory:
    """Of each GPU that a run will have."""

    gib: float
    source: str | None = None  # who says so, where it is not this machine
    name: str | None = None  # of the GPU, as its driver or Slurm has it


def count_gpus() -> int:
    """GPUs that processes on this machine can use."""
    if (driver := _cuda_driver()) is not None:
        count = ctypes.c_int()
        return count.value if driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0
    if not AMD_DEVICE.exists():
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def find_gpu_memory() -> GpuMemory | None:
    """Of the first GPU of this machine; None without any."""
    if count_gpus() == 0:
        return None
    if (driver := _cuda_driver()) is not None:
        device, size = ctypes.c_int(), ctypes.c_size_t()
        if driver.cuDeviceGet(ctypes.byref(device), 0) == 0 == driver.cuDeviceTotalMem_v2(ctypes.byref(size), device):
            name = ctypes.create_string_buffer(NAME_BYTES)
            has_name = driver.cuDeviceGetName(name, NAME_BYTES, device) == 0
            return GpuMemory(size.value / 2**30, name=name.value.decode(errors="replace") if has_name else None)
        return None
    import torch

    properties = torch.cuda.get_device_properties(0)
    return GpuMemory(properties.total_memory / 2**30, name=properties.name)


def find_gpu_capability() -> tuple[int, int] | None:
    """CUDA's compute capability of the first GPU of this machine, e.g. (9, 0) of a Hopper; None without one of NVIDIA."""
    driver, device = _cuda_driver(), ctypes.c_int()
    if driver is None or driver.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return None
    numbers = ctypes.c_int(), ctypes.c_int()
    for number, attribute in zip(numbers, CAPABILITY, strict=True):
        if driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device) != 0:
            return None
    return numbers[0].value, numbers[1].value


def _cuda_driver() -> ctypes.CDLL | None:
    """NVIDIA's driver, where it is there, works, and is new enough for the CUDA that torch was built with."""
    built_with = _cuda_of_torch()
    if built_with is None:
        return None
    try:
        driver = ctypes.CDLL(CUDA_DRIVER)
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    # Within a major version any driver will do; the number is 1000 for each, e.g. 13020.
    return driver if version.value // 1000 >= int(built_with.partition(".")[0]) else None


def _cuda_of_torch() -> str | None:
    """E.g. "13.0"; None: this torch knows no CUDA."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    found = runpy.run_path(str(Path(spec.origin).with_name("version.py"))).get("cuda")
    return str(found) if found else None
