"""GPU memory of a cluster's nodes, which the login node need not have.

From the flag, else as `finetune doctor --slurm` has measured it, else from the names of GPUs in Slurm's generic resources;
never guessed. Sizes of models are what their driver reports, in GiB, rounded down.
"""

import re
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from finetuning.config.settings import RunConfig
from finetuning.files.atomic import write_text
from finetuning.files.documents import read_json
from finetuning.i18n import t
from finetuning.launch.gpus import GpuMemory
from finetuning.launch.slurm.cluster import Partition

MEASURED_FILE = ".gpu_memory.json"  # in the folder of experiments
# Models that come with one size; those with several (A100, V100, GH200) need it in the name.
MODELS = {
    "b200": 178,
    "gb200": 184,
    "h200": 139,
    "h100": 79,
    "h800": 79,
    "h20": 95,
    "a10": 22,
    "a10g": 22,
    "a30": 23,
    "a40": 44,
    "a6000": 47,
    "l4": 22,
    "l40": 44,
    "l40s": 44,
    "3090": 23,
    "4090": 23,
    "5090": 31,
    "mi210": 63,
    "mi300x": 191,
    "mi325x": 255,
}
SLICE = re.compile(r"\d+g\.(\d+)gb")  # of a GPU that MIG has divided
SIZE = re.compile(r"(?<![a-z0-9])(\d{1,3})gi?b?(?![a-z0-9])")
LAST_NUMBER = re.compile(r"[-_](16|20|24|32|40|48|64|80|94|96|128|141|144|192|256|288)$")
ASKED_TYPE = re.compile(r"(?:--gres=(?:.*,)?gpu:|--gpus(?:-per-node|-per-task)?=|-G)([^:,=]+):\d+")


class _Measured(msgspec.Struct):
    gib: float
    name: str
    at: str


def find_gpu_memory(config: RunConfig, partition: Partition | None, options: Iterable[str]) -> GpuMemory | None:
    """Of one GPU of the job's nodes, the least where they differ; None: nothing says it.

    Args:
        options: of sbatch, which may ask for one type of GPU.
    """
    if config.gpu_memory_gib is not None:
        return GpuMemory(config.gpu_memory_gib, "--gpu_memory_gib")
    if partition is None:
        return None
    measured = _read_measured(Path(config.experiments_dir)).get(partition.name)
    if measured is not None:
        return GpuMemory(
            measured.gib,
            t("{name}, measured by finetune doctor --slurm on {day}", name=measured.name, day=measured.at),
            measured.name,
        )
    asked = next((match[1] for option in options if (match := ASKED_TYPE.match(option))), None)
    types = [asked] if asked is not None else list(partition.gpu_types)
    sizes = [memory_of_type(name) for name in types]
    known = [size for size in sizes if size is not None]
    if not known or len(known) < len(sizes):
        return None
    name = types[0] if len(types) == 1 else None
    return GpuMemory(min(known), t("Slurm's name of the GPUs: {names}", names=", ".join(types)), name)


def memory_of_type(name: str) -> float | None:
    """GiB of a GPU by its name in Slurm, such as `h200`, `nvidia_a100-sxm4-40gb` or `a100_1g.5gb`; None: not known."""
    name = name.lower()
    for pattern in (SLICE, SIZE, LAST_NUMBER):
        if match := pattern.search(name):
            return float(match[1])
    sizes = {MODELS[word] for word in re.split(r"[^a-z0-9]+", name) if word in MODELS}
    return float(sizes.pop()) if len(sizes) == 1 else None


def unknown_gpu_memory(partition: Partition | None, asked: str) -> str:
    """What to do where `find_gpu_memory` finds nothing."""
    types = ", ".join(name or "gpu" for name in partition.gpu_types) if partition else ""
    return t(
        "--gpu_memory_gib is needed: Slurm does not say how much memory the GPUs of partition {partition} have (it calls them "
        "{types}). Give it, as in --gpu_memory_gib 80, or let finetune doctor --slurm -p {partition} measure it",
        partition=partition.name if partition else asked,
        types=types or t("nothing"),
    )


def record_measured(experiments_dir: Path, partition: str, gib: float, name: str) -> None:
    """Keeps what a node has said, for the runs to come."""
    measured = _read_measured(experiments_dir) | {partition: _Measured(gib, name, time.strftime("%Y-%m-%d"))}
    write_text(experiments_dir / MEASURED_FILE, msgspec.json.format(msgspec.json.encode(measured), indent=1).decode() + "\n")


def _read_measured(experiments_dir: Path) -> dict[str, _Measured]:
    try:
        return read_json(experiments_dir / MEASURED_FILE, dict[str, _Measured])
    except FileNotFoundError:
        return {}
