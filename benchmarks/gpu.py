"""Clocks and power of the GPU while something runs, and its driver, from nvidia-smi; nothing where there is none."""

import os
import shutil
import subprocess
import threading
import time
from typing import Self

import numpy as np

QUERY = "clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu"


def _first_gpu() -> str:
    """That of the processes started from here."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


class GpuSampler:
    """Reads clocks and power five times a second while a case runs; nothing where there is no nvidia-smi."""

    def __enter__(self) -> Self:
        self.readings: list[tuple[float, list[float]]] = []
        self.process: subprocess.Popen[str] | None = None
        if shutil.which("nvidia-smi"):
            self.process = subprocess.Popen(
                ["nvidia-smi", f"--id={_first_gpu()}", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits", "-lms=200"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            self.reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
            self.reader.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.process is not None:
            self.process.terminate()
            self.reader.join(timeout=5)

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            values = [
                float(value) if value.strip().replace(".", "", 1).isdigit() else float("nan") for value in line.split(",")
            ]
            self.readings.append((time.time(), values))

    def means(self, begin: float, end: float) -> dict[str, object]:
        """Means over the timed steps."""
        inside = [values for at, values in self.readings if begin <= at <= end and len(values) == len(QUERY.split(","))]
        if not inside:
            return {}
        sm, memory, power, temperature, busy = (round(float(value), 1) for value in np.nanmean(np.array(inside), 0))
        return {
            "sm_mhz": sm,
            "memory_mhz": memory,
            "power_w": power,
            "temperature_c": temperature,
            "busy_percent": busy,
            "readings": len(inside),
        }


def driver() -> dict[str, object]:
    if not shutil.which("nvidia-smi"):
        return {}
    query = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader", "--id=0"]
    return {
        "driver, power limit, largest clock": subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    }
