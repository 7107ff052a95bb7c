"""What a whole run costs: time to the first step and to the end, energy, memory of the host. Imports no torch."""

from dataclasses import dataclass

from finetuning.config.llama import LlamaConfig
from finetuning.config.memory import low_memory_on_host_gib
from finetuning.config.strategy import LOW_MEMORY
from finetuning.plan.layouts import Planned
from finetuning.plan.rates import Rates, start_number

HALF, GIGA = 2, 1e9
SAVING_SHARE = 0.03  # of the time, at most, where nobody says how often checkpoints are saved


@dataclass(frozen=True)
class Forecast:
    """None: not known."""

    warm_start_s: float | None  # to the end of the first step, where kernels are compiled and weights in the page cache
    cold_start_s: float | None
    step_s: float | None
    max_steps: int | None
    job_s: float | None
    energy_kwh: float | None
    host_gib: float  # of each machine, besides what processes need themselves
    checkpoint_bytes: int
    export_bytes: int
    tokens_bytes: int | None  # of the data set, tokenized


def forecast(
    planned: Planned,
    model: LlamaConfig,
    rates: Rates | None,
    *,
    max_steps: int | None,
    checkpoint_bytes: int,
    export_bytes: int,
    tokens_bytes: int | None,
) -> Forecast:
    """
    Args:
        max_steps: of the run; None: not known, as neither steps nor samples are given.
    """
    config = planned.config
    step_s = planned.time.seconds if planned.time is not None else None
    weights_s = HALF * model.num_parameters / GIGA / start_number("weights_gb_s")
    known = step_s is not None
    warm, cold = (start_number(name) + weights_s if known else None for name in ("warm_s", "cold_s"))
    job_s = energy = None
    if step_s is not None and max_steps is not None and cold is not None:
        saves = config.save_every_n_steps != 0
        training_s = max_steps * step_s * (1 + SAVING_SHARE * saves)
        written_s = (checkpoint_bytes * saves + export_bytes) / GIGA / start_number("disk_gb_s") / config.num_nodes
        job_s = cold + training_s + start_number("end_s") + written_s
        energy = None if rates is None else rates.power_w * config.world_size * job_s / 3.6e6
    processes = min(config.num_gpus, config.world_size)
    on_host = checkpoint_bytes / config.num_nodes / 2**30 if config.save_every_n_steps != 0 else 0.0
    if planned.strategy.blocks == LOW_MEMORY:
        on_host += processes * low_memory_on_host_gib(model, planned.strategy.packs.capacity)
    return Forecast(warm, cold, step_s, max_steps, job_s, energy, on_host, checkpoint_bytes, export_bytes, tokens_bytes)
