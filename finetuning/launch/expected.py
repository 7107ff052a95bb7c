"""What a run is expected to use and to take, for its first screen; kept in its folder, and held against what it did."""

import dataclasses
import importlib.metadata
import statistics
from dataclasses import dataclass
from pathlib import Path

import msgspec

from finetuning.config.llama import LlamaConfig
from finetuning.config.settings import CHOSEN_LATER, DEGREES, RunConfig
from finetuning.config.strategy import Strategy
from finetuning.errors import InputError
from finetuning.files.atomic import write_text
from finetuning.files.documents import read_json
from finetuning.launch.gpus import GpuMemory
from finetuning.plan.layouts import Planned, Where, choose_degrees, faster_layout
from finetuning.plan.rates import kind_of_name, rates_of
from finetuning.plan.step_time import Place
from finetuning.plan.workload import Workload
from finetuning.training.metrics import read_metrics

EXPECTED_FILE = "plan.json"
WARM_UP_STEPS = 3  # in which kernels are compiled
FLASH_4 = "flash-attn-4"  # the distribution of the extra fa4


class Expected(msgspec.Struct, frozen=True):
    """Of a run on GPUs."""

    memory_gib: float  # that tensors take at most, as metrics.csv has it
    step_s: float | None = None  # None: not known
    tokens_per_second: float | None = None  # of all GPUs
    measured_rates: bool = False  # on this kind of GPU


@dataclass(frozen=True)
class Outlook:
    """For the first screen."""

    expected: Expected
    chosen: Planned
    faster: Planned | None  # a layout that is worth saying


@dataclass(frozen=True)
class Used:
    """What a run has used and taken so far."""

    memory_gib: float
    step_s: float
    tokens_per_second: float


def look_ahead(
    config: RunConfig, model: LlamaConfig, strategy: Strategy, gpu: GpuMemory | None, work: Workload
) -> Outlook | None:
    """None: it runs on CPUs, of which nothing is said."""
    if gpu is None:
        return None
    where = where_it_runs(config, model, gpu, work)
    rates, chosen = where.rates, where.plan(config, strategy)
    step_s = chosen.time.seconds if chosen.time is not None else None
    expected = Expected(
        chosen.memory.tensors_gib,
        step_s,
        None if step_s is None else work.step_tokens / step_s,
        rates is not None and rates.measured,
    )
    return Outlook(expected, chosen, faster_layout(where, chosen))


def where_it_runs(config: RunConfig, model: LlamaConfig, gpu: GpuMemory, work: Workload) -> Where:
    kind = kind_of_name(gpu.name) if gpu.name is not None else None
    rates = rates_of(kind) if kind is not None else None
    return Where(model, gpu.gib, rates, work, Place(config.num_gpus, flash_4=has_flash_4()))


def with_degrees(config: RunConfig, model: LlamaConfig, gpu: GpuMemory | None, work: Workload) -> RunConfig:
    """The settings with every degree that was left to the command; on CPUs 1, as nothing is known of their time."""
    if gpu is None:
        left = {name: 1 for name in DEGREES if getattr(config, name) == CHOSEN_LATER}
        return dataclasses.replace(config, **left)  # type: ignore[arg-type]
    return choose_degrees(where_it_runs(config, model, gpu, work), config)


def has_flash_4() -> bool:
    """Whether the faster attention is installed here, and so, presumably, where the run will be."""
    try:
        importlib.metadata.version(FLASH_4)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def write_expected(experiment_dir: Path, outlook: Outlook | None) -> None:
    if outlook is not None:
        write_text(experiment_dir / EXPECTED_FILE, msgspec.json.encode(outlook.expected).decode() + "\n")


def expected_and_used(experiment_dir: Path) -> tuple[Expected, Used] | None:
    """None: one of the two is not known, or not yet."""
    try:
        expected = read_json(experiment_dir / EXPECTED_FILE, Expected)
    except (FileNotFoundError, InputError):
        return None
    rows = read_metrics(experiment_dir / "metrics.csv")
    steady = rows[WARM_UP_STEPS:]
    if not steady:
        return None
    memory, seconds, tokens = ([float(row[name]) for row in steady] for name in ("memory_gib", "seconds", "tokens_per_second"))
    return expected, Used(max(memory), statistics.median(seconds), statistics.median(tokens))


def as_dict(expected: Expected, used: Used) -> dict[str, dict[str, object]]:
    return {"planned": msgspec.to_builtins(expected), "used": dataclasses.asdict(used)}
