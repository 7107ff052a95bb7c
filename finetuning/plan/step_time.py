"""What a step takes: matrix products, attention, what lies between them, the optimizer, messages, and what a pipeline waits.

Counted from the shapes, divided by the rates of a kind of GPU (`plan.rates`); `benchmarks/plan.py` holds it against what was
measured. Imports no torch.

Elements of a token, by which passes are counted: D hidden size, F intermediate size, Q query, C query, key and value features.
"""

from dataclasses import dataclass

from finetuning.config.llama import LlamaConfig
from finetuning.config.memory import trainable_parameters
from finetuning.config.stages import assign_layers, stage_indices
from finetuning.config.strategy import COMPILED, FUSED, HEAD_GRADIENT, LINEAR, LOW_MEMORY, PLAIN, Strategy
from finetuning.plan.rates import Rates, step_number
from finetuning.plan.workload import Packs, Workload, packs_of

HALF, SINGLE = 2, 4
OPTIMIZER_BYTES = {"fp32": 28, "bf16": 18, "8bit": 14}  # read and written of a trainable parameter
BACKWARD_ATTENTION = 2.5  # times the operations of the forward pass


@dataclass(frozen=True)
class Place:
    """Where the GPUs are."""

    gpus_per_machine: int
    network: float | None = None  # bytes a second of each GPU between machines; None: not known
    flash_4: bool = False  # FlashAttention-4 is installed


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step on the slowest process."""

    products: float
    attention: float
    passes: float  # between products, and of the loss
    optimizer: float
    idle: float
    messages: float  # that nothing else happens beside, and what the others cost the computation
    waits: float  # of a pipeline that fills and empties
    packs: Packs
    tokens: float  # of the whole step, on all GPUs

    @property
    def seconds(self) -> float:
        parts = (self.products, self.attention, self.passes, self.optimizer, self.idle, self.messages, self.waits)
        return sum(parts)

    @property
    def limit(self) -> str:
        """The part that takes most, besides products."""
        parts = {"attention": self.attention, "passes": self.passes, "messages": self.messages, "waits": self.waits}
        return max(parts, key=lambda name: parts[name])


@dataclass(frozen=True)
class _Token:
    """Seconds of a token, in a block or in the head."""

    products: float
    attention: float
    passes: float

    @property
    def seconds(self) -> float:
        return self.products + self.attention + self.passes


def step_time(strategy: Strategy, model: LlamaConfig, rates: Rates, work: Workload, place: Place) -> StepTime | None:
    """None: a rate that it needs is not known."""
    degrees, packs = strategy.degrees, packs_of(strategy, work)
    attention = rates.attention(place.flash_4)
    if rates.bf16 is None or rates.memory is None or attention is None or (strategy.fp8 and rates.fp8 is None):
        return None
    passes_rate = rates.memory * step_number("passes")
    local = packs.tokens // degrees.cp
    block = _block(strategy, model, rates, passes_rate, local)
    # Of many lengths, the longest document of a pack decides how a kernel is spread, and most have less than that.
    pairs = work.squared + attention.half_length * (work.squared / work.tokens) ** step_number("spread")
    times = (1 + BACKWARD_ATTENTION) + (strategy.activation_checkpointing == "full")
    query = model.num_attention_heads * model.head_dim
    block = _Token(block.products, times * 2 * query / degrees.tp * pairs / attention.flop_s, block.passes)
    head = _head(strategy, model, rates, passes_rate)
    # Of the slowest process: its blocks, and whether it has the head.
    held = (
        [stage_indices(strategy.pipeline_schedule, degrees.pp, rank) for rank in range(degrees.pp)] if degrees.pp > 1 else [[0]]
    )
    stages = assign_layers(model, degrees.pp * len(held[0]))
    loads = [(sum(len(stages[index]) for index in mine), len(stages) - 1 in mine) for mine in held]
    layers, has_head = max(loads, key=lambda load: load[0] * block.seconds + load[1] * head.seconds * work.target_share)
    computed = packs.count * local
    targets = computed * packs.fill * work.target_share * has_head
    products = computed * layers * block.products + targets * head.products
    seconds_attention = computed * packs.fill * layers * block.attention
    passes = computed * layers * block.passes + targets * head.passes
    trainable = trainable_parameters(strategy, model) / (degrees.tp * degrees.pp)
    spread = degrees.dp_shard * degrees.cp if strategy.shards_weights else 1
    optimizer = trainable / spread * OPTIMIZER_BYTES[strategy.optimizer_states] / rates.memory
    idle = step_number("idle_ms_per_block") / 1000 * layers
    of_pack = (products + seconds_attention + passes) / packs.count
    messages = _messages(strategy, model, rates, place, packs, of_pack, layers, trainable)
    if messages is None:
        return None
    bubble = (degrees.pp - 1) / (1 if strategy.pipeline_schedule == "1f1b" else 2)
    waits = bubble * (of_pack + messages / packs.count)
    return StepTime(products, seconds_attention, passes, optimizer, idle, messages, waits, packs, work.step_tokens)


def _block(strategy: Strategy, model: LlamaConfig, rates: Rates, passes_rate: float, pack_tokens: int) -> _Token:
    """Products and passes of one block for one token."""
    hidden, inner, query = model.hidden_size, model.intermediate_size, model.num_attention_heads * model.head_dim
    projected = query + 2 * model.num_key_value_heads * model.head_dim
    lora, tensor = not strategy.trains_all, strategy.degrees.tp
    weights = {"qkv": hidden * projected, "o": query * hidden, "gate_up": 2 * hidden * inner, "down": inner * hidden}
    every = sum(weights.values())
    again = {"none": 0, "selective": weights["gate_up"], "full": every}[strategy.activation_checkpointing]
    if strategy.blocks == LOW_MEMORY:
        again = every - weights["down"]
    in_fp8 = LINEAR in strategy.fp8
    rate = rates.fp8 if in_fp8 else rates.bf16
    assert rate is not None
    products = 2 * ((2 if lora else 3) * every + again) / tensor / rate
    forward = (12 if lora else 10) * hidden + 2 * projected + (query + 4 * inner if lora else 3 * inner)
    backward = 12 * hidden + 2 * projected + (query + 7 * inner if lora else 6 * inner)
    elements = float(forward + backward)
    elements += {"none": 0, "selective": 4 * hidden, "full": forward}[strategy.activation_checkpointing]
    elements += forward if strategy.blocks == LOW_MEMORY else 0
    if in_fp8:
        quantized = 4 * hidden + query + 3 * inner + projected
        elements += quantized if lora else 3.2 * quantized
        # With all weights trainable, a pack's gradient is added in a pass of its own.
        elements += 0 if lora else 3 * every / pack_tokens
    elements *= {FUSED: 1.0, LOW_MEMORY: 1.0, COMPILED: step_number("compiled"), PLAIN: step_number("plain")}[strategy.blocks]
    return _Token(products, 0.0, HALF * elements / tensor / passes_rate)


def _head(strategy: Strategy, model: LlamaConfig, rates: Rates, passes_rate: float) -> _Token:
    """Of one target."""
    product = 2 * model.vocab_size * model.hidden_size / strategy.degrees.tp
    assert rates.bf16 is not None
    in_fp8 = HEAD_GRADIENT in strategy.fp8
    gradient_rate = rates.fp8 if in_fp8 and rates.fp8 else rates.bf16
    products = product * (2 if strategy.trains_all else 1) / rates.bf16 + product / gradient_rate
    logits = model.vocab_size / strategy.degrees.tp * (2 * HALF if strategy.degrees.tp == 1 else 2 * HALF + 6 * SINGLE)
    return _Token(products, 0.0, (logits + 20 * HALF * model.hidden_size) / passes_rate)


def _messages(
    strategy: Strategy,
    model: LlamaConfig,
    rates: Rates,
    place: Place,
    packs: Packs,
    of_pack: float,
    layers: int,
    trainable: float,
) -> float | None:
    """Seconds of a step; None: a link is not known. `of_pack`: what a pack takes without messages."""
    degrees = strategy.degrees
    local = packs.tokens // degrees.cp
    beside = step_number("beside")
    total = 0.0
    if degrees.tp > 1:
        rate = _link(rates.exchange, degrees.tp, place)
        if rate is None:
            return None
        exchanges = layers * (8 if strategy.activation_checkpointing == "none" else 10) + 4
        sent = exchanges * local * model.hidden_size * HALF * (degrees.tp - 1) / degrees.tp
        exposed = step_number("exposed_exchange") if strategy.blocks == FUSED else 1.0
        total += packs.count * sent / rate * (exposed + beside * (1 - exposed))
    if degrees.cp > 1:
        rate = _link(rates.heads, degrees.tp * degrees.cp, place)
        if rate is None:
            return None
        query, key_value = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
        if strategy.context.repeat is None:
            elements = 2 * 2 * key_value * degrees.cp
        else:
            elements = 2 * (2 * query + 2 * key_value * strategy.context.repeat)
        times = 1.5 if strategy.activation_checkpointing == "full" else 1.0
        sent = layers * local * times * elements / degrees.tp * HALF * (degrees.cp - 1) / degrees.cp
        total += packs.count * sent / rate
    if degrees.pp > 1:
        rate = _link(rates.exchange, degrees.world_size, place)
        if rate is None:
            return None
        total += beside * packs.count * 2 * local * model.hidden_size * HALF / degrees.tp / rate
    weights = _weight_messages(strategy, model, rates, place, packs, of_pack, layers, trainable)
    return None if weights is None else total + weights


def _weight_messages(
    strategy: Strategy,
    model: LlamaConfig,
    rates: Rates,
    place: Place,
    packs: Packs,
    of_pack: float,
    layers: int,
    trainable: float,
) -> float | None:
    """Weights that are gathered and gradients that are summed, in a step."""
    degrees = strategy.degrees
    shards, beside = degrees.dp_shard * degrees.cp, step_number("beside")
    reach = shards * degrees.tp  # processes that a group of shards lies in
    if shards * degrees.dp_replicate == 1:
        return 0.0
    rate = _link(rates.weights, reach, place)
    between = _link(rates.weights, reach * degrees.dp_replicate, place)
    if rate is None or between is None:
        return None
    stage = model.num_parameters / (degrees.tp * degrees.pp)
    part = (shards - 1) / shards
    gather = 0.0 if strategy.sharding == "replicated" else stage * HALF * part / rate
    reduce = trainable * SINGLE * part / rate
    among_copies = 2 * trainable / shards * SINGLE * (degrees.dp_replicate - 1) / degrees.dp_replicate / between
    if strategy.sharding == "replicated" or not strategy.shards_weights:  # adapters, once a step, after the backward pass
        return 2 * reduce + among_copies
    if strategy.sharding == "full":
        times = packs.count
        per_pack = 2 * gather + (reduce if strategy.trains_all else 0.0)
    else:
        times, per_pack = 1, gather + reduce
    exposed = times * max(0.0, per_pack - of_pack) + times * per_pack / max(layers, 1)
    exposed += max(0.0, among_copies - of_pack / 2)
    return exposed + beside * (times * min(per_pack, of_pack) + min(among_copies, of_pack / 2))


def _link(inside: float | None, reach: int, place: Place) -> float | None:
    """Of messages between neighbors in so many ranks: that of a machine, or between machines the slower of the two."""
    if reach <= place.gpus_per_machine:
        return inside
    return None if inside is None or place.network is None else min(inside, place.network)
