"""What the driver is asked about GPUs, with a driver that this test compiles (no machine of the tests has a GPU)."""

import dataclasses
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from finetuning.config.rules import check_capability
from finetuning.config.settings import RunConfig
from finetuning.launch import gpus
from finetuning.launch.gpus import GpuMemory, count_gpus, find_gpu_capability, find_gpu_memory

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler"),
    pytest.mark.skipif(gpus.AMD_DEVICE.exists(), reason="an AMD GPU"),
]

DRIVER = """
int cuInit(unsigned flags) { return %(init)d; }
int cuDriverGetVersion(int *version) { *version = %(version)d; return 0; }
int cuDeviceGetCount(int *count) { *count = %(count)d; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 7 + ordinal; return 0; }
int cuDeviceTotalMem_v2(unsigned long *bytes, int device) { *bytes = device == 7 ? 80UL << 30 : 0; return 0; }
int cuDeviceGetAttribute(int *found, int attribute, int device) { *found = attribute == 75 ? 8 : 0; return device != 7; }
int cuDeviceGetName(char *name, int size, int device) { __builtin_strncpy(name, "NVIDIA H100 80GB HBM3", size); return 0; }
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    def make(built_with: str | None = "13.0", **changed: int) -> None:
        source, library = tmp_path / "driver.c", tmp_path / f"libcuda-{len(list(tmp_path.iterdir()))}.so"
        source.write_text(DRIVER % ({"init": 0, "version": 13000, "count": 2} | changed))
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
        monkeypatch.setattr(gpus, "CUDA_DRIVER", str(library))
        monkeypatch.setattr(gpus, "_cuda_of_torch", lambda: built_with)

    return make


def test_the_driver_says_how_many_gpus_there_are_and_how_large(install: Install) -> None:
    install()
    assert (count_gpus(), find_gpu_memory()) == (2, GpuMemory(80.0, name="NVIDIA H100 80GB HBM3"))
    install(count=0)
    assert (count_gpus(), find_gpu_memory()) == (0, None)


def test_fp8_is_refused_for_a_gpu_without_it(install: Install) -> None:
    install()
    assert find_gpu_capability() == (8, 0)
    config = RunConfig(hf_model_id="m", dataset_path="d", fp8=True, peft="lora")
    (problem,) = check_capability(config, find_gpu_capability())
    assert problem.startswith("--fp8 needs a GPU of compute capability 8.9 or newer (Ada, Hopper), and this one has 8.0")
    assert check_capability(dataclasses.replace(config, fp8=False), (8, 0)) == []
    assert check_capability(config, (8, 9)) == check_capability(config, None) == []
    install(init=100)
    assert find_gpu_capability() is None


def test_a_driver_that_torch_cannot_use_is_none(install: Install) -> None:
    install(version=12080)  # too old for CUDA 13
    assert count_gpus() == 0
    install(built_with="12.8", version=13000)
    assert count_gpus() == 2
    install(init=100)  # no device
    assert count_gpus() == 0
    install(built_with=None)  # a torch for CPUs
    assert (count_gpus(), find_gpu_memory()) == (0, None)


def test_which_cuda_torch_was_built_with_is_read_without_importing_it() -> None:
    import torch

    assert gpus._cuda_of_torch() == torch.version.cuda


def test_a_machine_without_a_driver_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "CUDA_DRIVER", "libcuda-is-not-here.so")
    monkeypatch.setattr(gpus, "_cuda_of_torch", lambda: "13.0")
    assert count_gpus() == 0
