"""What `auto` becomes: candidates, the memory each would take, and the first that fits. Imports no torch."""

from itertools import product
from typing import Any

from finetuning.config.degrees import degrees_of
from finetuning.config.llama import LlamaConfig
from finetuning.config.memory import plan_memory
from finetuning.config.settings import RunConfig
from finetuning.config.strategy import (
    COMPILED,
    FUSED,
    GRANULARITY,
    HEAD_GRADIENT,
    LINEAR,
    PackPlan,
    Strategy,
    choose_blocks,
    obstacles_to_fused,
    spread,
)

USABLE = 0.92  # share of a GPU's memory that a plan may fill
# Of short samples, longer packs are faster, up to here: what a kernel takes besides its work counts less (8B on one H200, LoRA:
# 1 to 2 % with 24 576 instead of 8192). The share of the memory they may fill is smaller, as they are never needed.
LONG_PACK_TOKENS = 24576
USABLE_FOR_LONG_PACKS = 0.85
SHORT_SAMPLES = 4096  # mean length, or half a pack; nothing is gained with longer ones
ASSUMED_GPU_GIB = 80.0  # of processes on CPUs, whose memory nobody has asked for
MAX_LENGTHS = 8  # torch.compile's limit of variants of one function


def resolve(
    config: RunConfig, model: LlamaConfig, gpu_memory_gib: float | None, *, on_gpu: bool, mean_sample: float = 0.0
) -> Strategy:
    """Replaces `auto`: the first candidate that fits, or else the last.

    States of full training on GPUs: bf16, then 8bit. Then as little as possible is computed again. Sharding: the least
    communication first (with all weights in fused blocks, or in a pipeline), for LoRA before anything else. Packs on GPUs:
    longer than asked for, where samples are short, nothing is computed again and that fits as well, in a memory that is known;
    not in a pipeline, which wants many of them.

    Args:
        mean_sample: tokens of a training sample, on average.
    """
    tokens = config.asked_row_length
    if config.least_memory:
        return make_strategy(config, model, "replicated", "fp32", "none", tokens, on_gpu=on_gpu)
    candidates = [make_strategy(config, model, *way, tokens, on_gpu=on_gpu) for way in possible_ways(config, on_gpu=on_gpu)]
    memory = gpu_memory_gib or ASSUMED_GPU_GIB
    fits = (candidate for candidate in candidates if plan_memory(candidate, model).total_gib <= memory * USABLE)
    chosen = next(fits, candidates[-1])
    if config.row_length is not None or chosen.activation_checkpointing != "none":  # who asks for less memory gets less
        return chosen
    if not on_gpu or gpu_memory_gib is None or config.pipeline_model_parallel_size > 1:
        return chosen
    if mean_sample > max(SHORT_SAMPLES, tokens / 2):
        return chosen
    counts = range(LONG_PACK_TOKENS // config.seq_length, config.micro_batch_size, -1)
    way = chosen.sharding, chosen.optimizer_states, chosen.activation_checkpointing
    longer = (make_strategy(config, model, *way, count * config.seq_length, on_gpu=on_gpu) for count in counts)
    limit = memory * USABLE_FOR_LONG_PACKS
    return next((strategy for strategy in longer if plan_memory(strategy, model).total_gib <= limit), chosen)


def make_strategy(
    config: RunConfig,
    model: LlamaConfig,
    sharding: str,
    optimizer_states: str,
    activation_checkpointing: str,
    pack_tokens: int,
    *,
    on_gpu: bool,
) -> Strategy:
    """What the flags mean with these in the place of `auto`."""
    lora = config.peft == "lora"
    blocks = choose_blocks(config, sharding, on_gpu=on_gpu)
    fp8: tuple[str, ...] = (LINEAR,) if config.fp8 else ()
    if config.fp8 and lora and blocks == FUSED and model.head_fits_fp8:
        fp8 += (HEAD_GRADIENT,)  # a frozen head's, which is a sum over the vocabulary
    granularity = GRANULARITY["cuda" if on_gpu else "cpu"]
    if activation_checkpointing == "selective" and blocks == COMPILED:
        granularity = max(granularity, -(-pack_tokens // MAX_LENGTHS))
    strategy = Strategy(
        blocks=blocks,
        compute_dtype="bfloat16" if on_gpu or optimizer_states != "fp32" else "float32",
        optimizer_states=optimizer_states,
        fp8=fp8,
        lora_rank=config.lora_rank if lora else None,
        lora_alpha=config.standard_alpha,
        lora_targets=config.lora_targets if lora else (),
        sharding=sharding,
        activation_checkpointing=activation_checkpointing,
        pipeline_schedule=config.pipeline_schedule,
        packs=PackPlan(pack_tokens, granularity, model.attention_cost),
    )
    return spread(strategy, model, degrees_of(config))


def strategy_of_earlier(config: RunConfig, model: LlamaConfig, values: dict[str, Any], device: str) -> Strategy:
    """What a `run.yaml` of before there were strategies meant; takes its entries out of `values`."""
    pack_tokens = values.pop("row_length", config.asked_row_length)  # of before packs could be longer
    names = ("sharding", "optimizer_states", "activation_checkpointing")
    sharding, states, checkpointing = (values.pop(name) for name in names)
    return make_strategy(config, model, sharding, states, checkpointing, pack_tokens, on_gpu=device == "cuda")


def possible_ways(config: RunConfig, *, on_gpu: bool) -> list[tuple[str, str, str]]:
    """Sharding, states and recomputation, best first."""
    lora = config.peft == "lora"
    last = "step" if config.pipeline_model_parallel_size > 1 else "full"
    shardings: tuple[str, ...] = ("replicated", "step", last)
    if not lora:
        degrees = degrees_of(config)
        shards = degrees.dp_shard * degrees.cp
        shardings = ("step", last) if on_gpu and shards > 1 and not obstacles_to_fused(config, "step") else (last,)
    states: tuple[str, ...] = ("bf16", "8bit") if not lora and on_gpu else ("fp32",)
    modes: tuple[str, ...] = ("none", "selective", "full")
    shardings = shardings if config.sharding == "auto" else (config.sharding,)
    states = states if config.optimizer_states == "auto" else (config.optimizer_states,)
    modes = modes if config.activation_checkpointing == "auto" else (config.activation_checkpointing,)
    if lora:
        return list(product(shardings, states, modes))
    return [(sharding, state, mode) for state, mode, sharding in product(states, modes, shardings)]
