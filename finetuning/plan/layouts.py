"""Every layout that a run could have: whether it fits, what it costs; and the smallest changes that make a run fit.

Imports no torch.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from finetuning.config.llama import LlamaConfig
from finetuning.config.memory import MemoryPlan, plan_memory
from finetuning.config.resolve import USABLE, make_strategy, possible_ways, resolve
from finetuning.config.rules import check_layout, check_settings
from finetuning.config.settings import CHOSEN_LATER, RunConfig
from finetuning.config.settings import DEGREES as DEGREES_LEFT
from finetuning.config.strategy import Strategy
from finetuning.plan.rates import Rates
from finetuning.plan.step_time import Place, StepTime, step_time
from finetuning.plan.workload import Workload

DEGREES = (1, 2, 4, 8, 16)
WORTH_SAYING = 1.1  # times as fast
ROW_LENGTHS = (8192, 16384, 24576)
SHORTER = (0.5, 0.25, 0.125)  # rows and samples, where nothing else makes a run fit
MORE_GPUS = (2, 4, 8, 16, 32, 64)  # times as many
AXES = {"tensor_model_parallel_size": "-T", "pipeline_model_parallel_size": "-P", "context_parallel_size": "-C"}


@dataclass(frozen=True)
class Planned:
    """One way to run."""

    config: RunConfig
    strategy: Strategy
    memory: MemoryPlan
    time: StepTime | None  # None: a rate that it needs is not known
    fits: bool

    @property
    def tokens_per_gpu(self) -> float | None:
        """A second."""
        return None if self.time is None else self.time.tokens / self.time.seconds / self.config.world_size


@dataclass(frozen=True)
class Where:
    """What a run is planned for."""

    model: LlamaConfig
    memory_gib: float
    rates: Rates | None  # None: of GPUs that are not in the table
    work: Workload
    place: Place

    def plan(self, config: RunConfig, strategy: Strategy) -> Planned:
        memory = plan_memory(strategy, self.model)
        time = None if self.rates is None else step_time(strategy, self.model, self.rates, self.work, self.place)
        return Planned(config, strategy, memory, time, memory.total_gib <= self.memory_gib * USABLE)

    def plan_chosen(self, config: RunConfig) -> Planned:
        """With what `auto` becomes."""
        strategy = resolve(config, self.model, self.memory_gib, on_gpu=True, mean_sample=self.work.tokens)
        return self.plan(config, strategy)


def asked_for(config: RunConfig, model: LlamaConfig) -> list[RunConfig]:
    """The settings of every layout on as many GPUs that breaks no rule; first the one that was asked for."""
    found = [config]
    for tensor, pipeline, context in product(DEGREES, repeat=3):
        degree = tensor * pipeline * context
        if degree > config.world_size or config.world_size % degree or tensor * context > max(config.num_gpus, 1):
            continue
        changed = dataclasses.replace(
            config,
            tensor_model_parallel_size=tensor,
            pipeline_model_parallel_size=pipeline,
            context_parallel_size=context,
            sharding=_other_sharding(config, pipeline),
            pipeline_schedule=config.pipeline_schedule if pipeline > 1 else "1f1b",
        )
        if changed not in found and not _problems(changed, model):
            found.append(changed)
    return found


def rank(where: Where, config: RunConfig, configs: list[RunConfig] | None = None) -> list[Planned]:
    """The best way of each layout, those that fit first, the fastest of them before the others; unknown times last."""
    found = [_best(where, each) for each in configs or asked_for(config, where.model)]
    return sorted(found, key=_order)


def other_ways(where: Where, config: RunConfig) -> list[tuple[dict[str, object], Planned]]:
    """The same layout with another sharding, recomputation, precision, length of packs or number of copies, one at a time."""
    choices: list[dict[str, object]] = [
        *[dict[str, object](sharding=way) for way in ("full", "step", "replicated")],
        *[dict[str, object](activation_checkpointing=mode) for mode in ("none", "selective", "full")],
        *[dict[str, object](optimizer_states=states) for states in ("bf16", "8bit")],
        {"fp8": not config.fp8},
        {"least_memory": True, "sharding": "auto", "activation_checkpointing": "auto"},
        *[dict[str, object](row_length=tokens) for tokens in ROW_LENGTHS if tokens >= config.seq_length],
        {"data_parallel_replicate_size": config.num_nodes},
    ]
    asked = where.plan_chosen(config).strategy
    ways = [(changes, way) for changes, way in _tried(where, config, choices, least=False) if way.strategy != asked]
    return sorted(ways, key=lambda pair: _order(pair[1]))


def choose_degrees(where: Where, config: RunConfig) -> RunConfig:
    """With a number in the place of every degree that was left to the command: of the fastest layout that fits, or else of the
    one that needs least. Where no time is known, of the one that is least spread."""
    left = [name for name in DEGREES_LEFT if getattr(config, name) == CHOSEN_LATER]
    if not left:
        return config
    candidates = []
    for degrees in product(DEGREES, repeat=len(left)):
        candidate = dataclasses.replace(config, **dict(zip(left, degrees, strict=True)))  # type: ignore[arg-type]
        if not _problems(candidate, where.model):
            candidates.append(candidate)
    if not candidates:  # as if nothing had been left: what is wrong is said of that
        return dataclasses.replace(config, **dict.fromkeys(left, 1))  # type: ignore[arg-type]
    found = rank(where, candidates[0], candidates)
    if found[0].fits and found[0].time is None:
        return min((each for each in found if each.fits), key=lambda each: each.config.model_parallel_size).config
    return found[0].config


def faster_layout(where: Where, chosen: Planned) -> Planned | None:
    """The fastest of all layouts, if it is worth saying; None as well where no time is known."""
    if chosen.time is None:
        return None
    best = next((found for found in rank(where, chosen.config) if found.fits and found.time is not None), None)
    if best is None or best.time is None:
        return None
    return best if chosen.time.seconds > WORTH_SAYING * best.time.seconds else None


def smallest_change(where: Where, config: RunConfig) -> list[tuple[dict[str, object], Planned]]:
    """Settings that would make a run fit which does not, each by itself, the one that costs the least time first.

    First what leaves the number of GPUs and the samples as they are; where that does not do, more GPUs or shorter rows.
    """
    found = [(changes, planned) for changes, planned in _single_changes(where, config) if planned.fits]
    if not found:
        found = list(_larger_changes(where, config))
    return sorted(found, key=lambda pair: _order(pair[1]))


def flags_of(changes: dict[str, object]) -> str:
    """As they are typed."""
    words = []
    for name, value in changes.items():
        flag = AXES.get(name, f"--{name}")
        words.append(flag if value is True else f"{flag} {value}")
    return " ".join(words)


def changes_between(config: RunConfig, other: RunConfig) -> dict[str, object]:
    """Settings of `other` that differ."""
    return {
        field.name: getattr(other, field.name)
        for field in dataclasses.fields(RunConfig)
        if getattr(config, field.name) != getattr(other, field.name)
    }


def _best(where: Where, config: RunConfig) -> Planned:
    """What `auto` would take, or a faster way of the same settings that fits as well."""
    chosen = where.plan_chosen(config)
    if chosen.fits or config.least_memory:
        return chosen
    ways = possible_ways(config, on_gpu=True)
    strategies = (make_strategy(config, where.model, *way, config.asked_row_length, on_gpu=True) for way in ways)
    return min((where.plan(config, strategy) for strategy in strategies), key=lambda planned: planned.memory.total_gib)


def _order(planned: Planned) -> tuple[bool, bool, float, float]:
    seconds = planned.time.seconds if planned.time is not None else 0.0
    return not planned.fits, planned.time is None, seconds if planned.fits else 0.0, planned.memory.total_gib


def _single_changes(where: Where, config: RunConfig) -> Iterator[tuple[dict[str, object], Planned]]:
    candidates: list[dict[str, object]] = [
        {"activation_checkpointing": "auto", "sharding": "auto", "optimizer_states": "auto"},
        {"row_length": config.seq_length, "micro_batch_size": 1},
        *[dict[str, object]({name: degree}) for name in AXES for degree in DEGREES[1:]],
        {"fp8": True},
        {"least_memory": True, "sharding": "auto", "activation_checkpointing": "auto"},
        {"least_memory": True, "fp8": True, "sharding": "auto", "activation_checkpointing": "auto"},
        {"peft": "lora", "optimizer_states": "auto"},
        {"peft": "lora", "least_memory": True, "optimizer_states": "auto"},
        {"peft": "lora", "least_memory": True, "fp8": True, "optimizer_states": "auto"},
    ]
    yield from _tried(where, config, candidates)


def _larger_changes(where: Where, config: RunConfig) -> Iterator[tuple[dict[str, object], Planned]]:
    """The smallest of each kind that fits."""
    more: list[dict[str, object]] = []
    for times in MORE_GPUS:
        gpus = config.num_gpus * times
        more.append({"num_gpus": gpus} if gpus <= 8 else {"num_nodes": config.num_nodes * max(1, gpus // 8), "num_gpus": 8})
    shorter: list[dict[str, object]] = []
    for share in SHORTER:
        tokens = int(config.seq_length * share)
        shorter.append({"seq_length": tokens, "row_length": None if config.row_length is None else tokens})
    for candidates in (more, shorter):
        fitting = next((pair for pair in _tried(where, config, candidates) if pair[1].fits), None)
        if fitting is not None:
            yield fitting


def _tried(
    where: Where, config: RunConfig, candidates: list[dict[str, object]], *, least: bool = True
) -> Iterator[tuple[dict[str, object], Planned]]:
    """Those that change something and break no rule; with `least`, what does not fit is planned with the least memory."""
    for candidate in candidates:
        changed = dataclasses.replace(config, **candidate)  # type: ignore[arg-type]
        changes = changes_between(config, changed)
        if changes and not _problems(changed, where.model):
            yield changes, _best(where, changed) if least else where.plan_chosen(changed)


def _problems(config: RunConfig, model: LlamaConfig) -> list[str]:
    return check_settings(config) + check_layout(config, model)


def _other_sharding(config: RunConfig, pipeline: int) -> str:
    """Of a layout that was not asked for: what was given, where it can be."""
    return "auto" if config.sharding == "full" and pipeline > 1 else config.sharding
