"""How one run computes: blocks, sharding, recomputation, precision, degrees, context, packs, schedule, as one value.

It is decided once before the launch (`config.resolve`), written to `run.yaml`, shown on the start screen, and applied by
`parallel.parallelize`, which decides nothing. Imports no torch.
"""

import dataclasses
import math
from dataclasses import dataclass

from finetuning.config.degrees import Degrees
from finetuning.config.llama import LlamaConfig
from finetuning.config.settings import FP8_MULTIPLE, LORA_TARGETS, MAX_FUSED_RANK, RunConfig

PLAIN, COMPILED, FUSED, LOW_MEMORY = "plain", "compiled", "fused", "low_memory"
LINEAR, HEAD_GRADIENT = "linear", "head_gradient"  # products that may be in fp8
# Lengths of packs are multiples of this: on GPUs what matrix products are tiled by, on CPUs next to nothing.
GRANULARITY = {"cuda": 128, "cpu": 8}


@dataclass(frozen=True)
class ContextPlan:
    """How a pack is cut over `size` processes of a cp group (`finetuning.parallel.context`).

    `repeat`: copies of each key/value head for the exchange of heads; None: keys and values are gathered instead.
    """

    size: int = 1
    repeat: int | None = 1

    @property
    def multiple(self) -> int:
        """What the length of a pack must be a multiple of, for each process to get a part of the same length."""
        return self.size if self.repeat is not None else 2 * self.size


def plan_context(model: LlamaConfig, cp: int, tp: int) -> ContextPlan:
    """Exchange where the heads that tensor parallel leaves on a process can be spread over `cp` processes.

    Example: 32 query and 8 key/value heads, tp 2, cp 8: 16 and 4 heads; each key/value head is repeated twice and a
    process gets 2 query heads and the one key/value head they read.
    """
    heads, key_value_heads = model.num_attention_heads // tp, model.num_key_value_heads // tp
    repeat = cp // math.gcd(key_value_heads, cp)
    fits = heads % cp == 0 and heads % (key_value_heads * repeat) == 0
    return ContextPlan(cp, repeat if fits else None)


@dataclass(frozen=True)
class PackPlan:
    """How packs are filled (`finetuning.data.batches.packing`). Lengths in positions; `attention_cost` as in LlamaConfig.

    Parallel layouts ask for more: every length a `multiple`; with a pipeline, the number of packs of a rank a multiple of
    `packs_multiple`, and all packs of a rank as long as its longest (`same_length`).
    """

    capacity: int  # a pack holds at most these
    granularity: int  # lengths are multiples of it, so that few occur
    attention_cost: float
    multiple: int = 1
    packs_multiple: int = 1
    same_length: bool = False

    def padded(self, positions: int) -> int:
        """Length of a pack with this many real positions."""
        length = min(-(-max(positions, 1) // self.granularity) * self.granularity, max(self.capacity, positions))
        return -(-length // self.multiple) * self.multiple

    def pack_lengths(self, positions: list[int]) -> list[int]:
        """Lengths of the packs of one rank, with these many real positions each."""
        lengths = [self.padded(count) for count in positions]
        return [max(lengths)] * len(lengths) if self.same_length else lengths

    def without_gradients(self) -> "PackPlan":
        """Without gradients a pipeline takes packs of any number and length."""
        return dataclasses.replace(self, packs_multiple=1, same_length=False)


ONE_PROCESS, WHOLE, ANY_PACKS = Degrees(), ContextPlan(), PackPlan(capacity=8192, granularity=8, attention_cost=0.0)


@dataclass(frozen=True)
class Strategy:
    """The defaults are those of a plain model in float32 on one process."""

    # Decoder blocks: plain; compiled; fused: hand-written, for LoRA or for all weights; low_memory: LoRA in the least memory.
    blocks: str = PLAIN
    compute_dtype: str = "float32"  # of products; what is trainable is held in float32 at least, see optimizer_states
    optimizer_states: str = "fp32"  # fp32 | bf16 | 8bit, see split_master
    fp8: tuple[str, ...] = ()  # which products are: linear (with LoRA those with frozen weights), head_gradient
    lora_rank: int | None = None  # None: all weights are trainable
    lora_alpha: float = 32.0  # divided by the rank, it is the scale, of rsLoRA as well
    lora_targets: tuple[str, ...] = ()
    sharding: str = "full"  # full: gathered for each use; step: once a step; replicated: frozen weights are whole
    activation_checkpointing: str = "none"  # none | selective | full
    degrees: Degrees = ONE_PROCESS
    context: ContextPlan = WHOLE
    pipeline_schedule: str = "1f1b"  # see finetuning.parallel.pipeline
    packs: PackPlan = ANY_PACKS

    @property
    def trains_all(self) -> bool:
        """All weights are trainable, not only adapters."""
        return self.lora_rank is None

    @property
    def split_master(self) -> bool:
        """Trainable weights are held in `compute_dtype`, and the lower bits of their float32 values by the optimizer."""
        return self.optimizer_states != "fp32"

    @property
    def shards_weights(self) -> bool:
        """Whether FSDP2 holds the weights. Fused blocks hold frozen ones whole, and all where there is nothing to shard."""
        if self.blocks == LOW_MEMORY:
            return False
        nothing_to_shard = self.split_master and self.degrees.data_parallel * self.degrees.cp == 1
        return self.blocks != FUSED or (self.trains_all and not nothing_to_shard)

    @property
    def pack_multiple(self) -> int:
        """What the length of every pack must be a multiple of, with or without gradients."""
        return self.context.multiple * self.degrees.tp


def spread(strategy: Strategy, model: LlamaConfig, degrees: Degrees) -> Strategy:
    """The same over these processes: how context is cut, and what lengths and numbers of packs that asks for."""
    context = plan_context(model, degrees.cp, degrees.tp)
    multiple = context.multiple * degrees.tp
    if strategy.trains_all and strategy.fp8:
        multiple = math.lcm(multiple, FP8_MULTIPLE)  # weight gradients are products over tokens
    in_pipeline = degrees.pp > 1
    return dataclasses.replace(
        strategy,
        degrees=degrees,
        context=context,
        # A schedule reduces gradients once, at its end.
        sharding="step" if in_pipeline and strategy.sharding == "full" else strategy.sharding,
        packs=dataclasses.replace(
            strategy.packs,
            multiple=multiple,
            packs_multiple=degrees.pp,  # so that no stage runs dry early
            same_length=in_pipeline,
        ),
    )


def compiles(config: RunConfig, *, on_gpu: bool) -> bool:
    """Whether blocks are compiled or fused."""
    return config.compile == "on" or (config.compile == "auto" and on_gpu)


def obstacles_to_fused(config: RunConfig, sharding: str) -> list[tuple[str, str]]:
    """Each flag that keeps blocks from being fused, and what it would have to be; none: they are, on GPUs.

    Adapters need frozen weights that every process holds whole; trainable weights may be spread by tensor parallel, too.
    """
    rules: tuple[tuple[bool, str, str], ...] = ((config.compile == "off", "--compile", "auto"),)
    if config.peft == "lora":
        rules = (
            (sorted(config.lora_targets) != sorted(LORA_TARGETS), "--lora_targets", ",".join(LORA_TARGETS)),
            (config.lora_rank > MAX_FUSED_RANK, "--lora_rank", f"≤ {MAX_FUSED_RANK}"),
            (config.tensor_model_parallel_size > 1, "--tensor_model_parallel_size", "1"),
            *rules,
            (sharding != "replicated", "--sharding", "replicated"),
        )
    return [(flag, value) for stands, flag, value in rules if stands]


def choose_blocks(config: RunConfig, sharding: str, *, on_gpu: bool) -> str:
    if config.least_memory:
        return LOW_MEMORY
    if not compiles(config, on_gpu=on_gpu):
        return PLAIN
    return FUSED if on_gpu and not obstacles_to_fused(config, sharding) else COMPILED
