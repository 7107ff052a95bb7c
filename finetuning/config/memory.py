"""Expected GPU memory of a run, from the shapes alone, and what `auto` becomes of the flags that decide it.

An estimate for the start screen and for these choices: states are exact, activations are counted tensor by tensor, and the
allocator's and the kernels' own needs are a flat allowance. docs/parallelism.md shows the same arithmetic by hand.
"""

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from finetuning.config.llama import LlamaConfig
from finetuning.config.settings import LORA_TARGETS, MOST_FUSED_RANK, RunConfig
from finetuning.config.stages import assign_layers, stage_indices

HALF, SINGLE = 2, 4  # bytes of bfloat16 and float32
# Bytes of a trained parameter: weight, gradient and two moments; the weight in two halves unless everything is float32.
STATES = {"fp32": 4 * SINGLE, "bf16": SINGLE + 3 * HALF, "8bit": SINGLE + HALF + 2}
ALLOWANCE_BYTES = 2 * 2**30  # CUDA context, kernels' workspaces, fragmentation
HEAD_CHUNK_TOKENS, TRAINED_HEAD_CHUNK_TOKENS = 2048, 8192  # of logits that are there at once
LEAST_TOKENS, LEAST_CHUNK_TOKENS = 4096, 1024  # of a piece and of a chunk of logits, with --least_memory
USABLE = 0.92  # share of a GPU's memory that a plan may fill
# Of short samples, longer rows are faster, up to here: what a kernel takes besides its work counts less (8B on one H200, LoRA:
# 1 to 2 % with 24 576 instead of 8192). The share of the memory they may fill is smaller, as they are never needed.
LONG_ROW_TOKENS = 24576
USABLE_FOR_LONG_ROWS = 0.85
SHORT_SAMPLES = 4096  # mean length, or half a row; nothing is gained with longer ones
ASSUMED_GPU_GIB = 80.0  # where no GPU can be seen, as on a login node


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one GPU."""

    states: int  # weights, gradients, optimizer, sharded
    gathered: int  # whole weights in use, and gradients that are not reduced yet
    activations: int
    allowance: int = ALLOWANCE_BYTES

    @property
    def total_gib(self) -> float:
        return (self.states + self.gathered + self.activations + self.allowance) / 2**30


class Choices(NamedTuple):
    """What the flags of these names mean in a run, `auto` replaced."""

    sharding: str
    optimizer_states: str
    activation_checkpointing: str
    row_length: int


def choose(
    config: RunConfig, model: LlamaConfig, gpu_memory_gib: float | None, *, on_gpu: bool, mean_sample: float = 0.0
) -> Choices:  # fmt: skip
    """Replaces `auto`: the first combination that fits, or else the last.

    States of full training on GPUs: bf16, then 8bit. Then as little as possible is computed again. Sharding: the least
    communication first (with all weights in fused blocks, or in a pipeline), for LoRA before anything else. Rows on GPUs:
    longer than asked for, where samples are short, nothing is computed again and that fits as well, in a memory that is known;
    not in a pipeline, which wants many of them.

    Args:
        mean_sample: tokens of a training sample, on average.
    """
    tokens = config.asked_row_length
    if config.least_memory:
        return Choices("replicated", "fp32", "none", tokens)  # blocks that choose for themselves
    lora = config.peft == "lora"
    last = "step" if config.pipeline_model_parallel_size > 1 else "full"
    shardings: tuple[str, ...] = ("replicated", "step", last)
    if not lora:
        shardings = ("step", last) if on_gpu and _shards(config) > 1 and fuses(config, "step") else (last,)
    states: tuple[str, ...] = ("bf16", "8bit") if not lora and on_gpu else ("fp32",)
    modes: tuple[str, ...] = ("none", "full") if config.pipeline_schedule == "zero_bubble" else ("none", "selective", "full")
    shardings = shardings if config.sharding == "auto" else (config.sharding,)
    states = states if config.optimizer_states == "auto" else (config.optimizer_states,)
    modes = modes if config.activation_checkpointing == "auto" else (config.activation_checkpointing,)
    if lora:
        ways = [Choices(*way, tokens) for way in product(shardings, states, modes)]
    else:
        ways = [Choices(sharding, state, mode, tokens) for state, mode, sharding in product(states, modes, shardings)]
    memory = gpu_memory_gib or ASSUMED_GPU_GIB
    fits = (way for way in ways if plan_memory(config, model, way).total_gib <= memory * USABLE)
    chosen = next(fits, ways[-1])
    if config.row_length is not None or chosen.activation_checkpointing != "none":  # who asks for less memory gets less
        return chosen
    if not on_gpu or gpu_memory_gib is None or config.pipeline_model_parallel_size > 1:
        return chosen
    if mean_sample > max(SHORT_SAMPLES, tokens / 2):
        return chosen
    counts = range(LONG_ROW_TOKENS // config.seq_length, config.micro_batch_size, -1)
    longer = (chosen._replace(row_length=count * config.seq_length) for count in counts)
    limit = memory * USABLE_FOR_LONG_ROWS
    return next((way for way in longer if plan_memory(config, model, way).total_gib <= limit), chosen)


def plan_memory(config: RunConfig, model: LlamaConfig, choices: Choices) -> MemoryPlan:
    """Memory of the fullest rank, training in bfloat16."""
    if config.least_memory:
        return _plan_least(config, model, choices.row_length)
    pipeline = config.pipeline_model_parallel_size
    if pipeline == 1:
        return _plan_rank(config, model, choices, [range(model.num_hidden_layers)], [0], 1)
    held = [stage_indices(config.pipeline_schedule, pipeline, rank) for rank in range(pipeline)]
    stages = assign_layers(model, pipeline * len(held[0]))
    plans = [_plan_rank(config, model, choices, stages, mine, _in_flight(config, rank)) for rank, mine in enumerate(held)]
    return max(plans, key=lambda plan: plan.total_gib)


def fuses(config: RunConfig, sharding: str) -> bool:
    """Whether blocks on GPUs are the hand-written ones; `finetuning.parallel.parallelize` finds the same from the model."""
    if config.compile == "off" or config.pipeline_schedule == "zero_bubble":
        return False
    if config.peft == "none":
        return not config.tensor_overlap
    every_layer = sorted(config.lora_targets) == sorted(LORA_TARGETS)
    small = config.lora_rank <= MOST_FUSED_RANK
    return config.tensor_model_parallel_size == 1 and sharding == "replicated" and every_layer and small


def least_memory_on_host_gib(model: LlamaConfig, row_length: int) -> float:
    """What a process keeps in host memory with --least_memory: the embedding and, of a row, what blocks but the last keep."""
    table = 0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size
    kept = row_length * (model.num_hidden_layers - 1) * (model.hidden_size + model.num_attention_heads * model.head_dim)
    return HALF * (table + kept) / 2**30


def trained_parameters(config: RunConfig, model: LlamaConfig) -> int:
    """Parameters the optimizer changes, in the whole model."""
    if config.peft == "none":
        return model.num_parameters
    return model.num_hidden_layers * _adapter_parameters(config, model)


def _plan_rank(
    config: RunConfig, model: LlamaConfig, choices: Choices, stages: list[range], mine: list[int], in_flight: int
) -> MemoryPlan:
    """Memory of a rank with these stages, each of which keeps the activations of `in_flight` rows."""
    tensor, context, lora = config.tensor_model_parallel_size, config.context_parallel_size, config.peft == "lora"
    shards = _shards(config)
    layers = sum(len(stages[index]) for index in mine)
    has_last = len(stages) - 1 in mine
    tables = (0 in mine) + (has_last and (len(stages) > 1 or not model.tie_word_embeddings))
    table = model.vocab_size * model.hidden_size
    base = (layers * model.layer_parameters + tables * table + has_last * model.hidden_size) // tensor
    trained = layers * _adapter_parameters(config, model) // tensor if lora else base
    frozen = base if lora else 0
    sharding, precision, checkpointing, row_length = choices
    states = frozen * HALF // (1 if sharding == "replicated" else shards) + trained * STATES[precision] // shards
    fused = fuses(config, sharding)
    if fused and not lora and config.data_parallel_size * context == 1 and precision != "fp32":
        gathered = layers * model.layer_parameters * HALF if config.fp8 else 0  # nothing to gather; weights in fp8, twice
    elif sharding == "full":
        units = 2 * model.layer_parameters + tables * table
        gathered = units * (HALF if lora else HALF + SINGLE) // tensor  # two blocks and the tables; their gradients
    elif fused and not lora and precision != "fp32" and len(stages) == 1:  # the whole model and its gradients, in bfloat16
        # Besides, a block's gradients on their way in float32; those of the tables are summed in float32, one arrives.
        blocks = (layers * 2 * HALF + SINGLE) * model.layer_parameters
        gathered = (blocks + (tables * (HALF + SINGLE) + HALF) * table) // tensor
    elif shards > 1:  # the whole stage, and gradients in float32 until the last row of the step
        gathered = trained * (HALF + SINGLE) + (frozen * HALF if sharding == "step" else 0)
    else:
        gathered = trained * HALF
    tokens = row_length // context
    kept, computed = _activation_bytes(model, tensor, checkpointing, fused=fused, exchanged=context > 1)
    # In the head, or later in the first block whose backward pass is run.
    in_fp8 = fused and lora and config.fp8 and model.head_fits_fp8
    working = max(_head_bytes(model, tokens, tensor, lora=lora, fp8=in_fp8) if has_last else 0, tokens * computed)
    states += table if has_last and in_fp8 else 0
    activations = tokens * kept * in_flight * max(len(stages[index]) for index in mine) + working
    return MemoryPlan(states, gathered, activations)


def _head_bytes(model: LlamaConfig, tokens: int, tensor: int, *, lora: bool, fp8: bool) -> int:
    """A chunk of logits in bfloat16, overwritten with its gradient or beside it in fp8, and that of a head that is trained.

    Under tensor parallel the logits are copied to float32, and so is their gradient.
    """
    if tensor > 1:
        return min(tokens, HEAD_CHUNK_TOKENS) * model.vocab_size * (2 * SINGLE + HALF) // tensor
    chunk = HEAD_CHUNK_TOKENS if lora else TRAINED_HEAD_CHUNK_TOKENS
    logits, table = min(tokens, chunk) * model.vocab_size * (HALF + fp8), model.vocab_size * model.hidden_size
    if lora or tokens <= chunk:
        return logits + (0 if lora else table * HALF)
    # Each chunk's gradient of the head, in bfloat16, is added to a sum in float32, which is then multiplied and rounded.
    return max(logits + table * (SINGLE + HALF), table * (2 * SINGLE + HALF))


def _plan_least(config: RunConfig, model: LlamaConfig, tokens: int) -> MemoryPlan:
    """Memory of a GPU with --least_memory; the embedding is on the host, unless it is the head as well.

    What is there at once, at the worst of three moments, besides the kept input and attention output of one block:
    - a block's backward pass, with those of the block before on their way: in the attention, the gradients of the block's
      output, of the residual stream and of the attention's output, q, k and v, their gradients, those of keys and values once
      more for each query head, and a float32 gradient of the queries; after it, in a piece, gate and up and the gradient of
      their product, with three times the piece's rows of the residual stream;
    - the head: its input as the norm keeps it in float32 and as it leaves, its trained rows, their gradient, and a chunk of
      logits;
    - the final norm's backward pass, in float32: the kept input, and four gradients as large.
    """
    hidden, query = model.hidden_size, model.num_attention_heads * model.head_dim
    key_value, inner = model.num_key_value_heads * model.head_dim, model.intermediate_size
    trained = trained_parameters(config, model)
    blocks = model.num_hidden_layers * model.layer_parameters
    frozen = blocks * (1 if config.fp8 else HALF) + (model.vocab_size + 1) * hidden * HALF
    piece = min(tokens, LEAST_TOKENS)
    kept = HALF * (hidden + query)
    projected = HALF * (query + 2 * key_value)
    attention = tokens * (kept + HALF * (2 * hidden + query) + 2 * projected + HALF * 2 * query + SINGLE * query)
    pieces = tokens * (kept + HALF * (2 * hidden + query)) + piece * HALF * (3 * inner + 3 * hidden)
    turned = (model.layer_parameters - (query + 2 * key_value) * hidden) if config.fp8 else 0  # transposes of one block
    head = tokens * hidden * (SINGLE + 3 * HALF) + min(tokens, LEAST_CHUNK_TOKENS) * model.vocab_size * HALF
    norm = tokens * hidden * (5 * SINGLE + HALF)
    working = tokens * kept + max(attention, pieces + turned, head, norm)
    return MemoryPlan(frozen + trained * STATES["fp32"], trained * HALF, working)


def _shards(config: RunConfig) -> int:
    return config.data_parallel_size // max(1, config.data_parallel_replicate_size) * config.context_parallel_size


def _in_flight(config: RunConfig, rank: int) -> int:
    """Rows whose activations a stage of this rank keeps at once, added up over the rank's stages."""
    pipeline = config.pipeline_model_parallel_size
    if config.pipeline_schedule == "1f1b":
        return pipeline - rank
    if config.pipeline_schedule == "interleaved":
        return 2 * (pipeline - rank - 1) + pipeline + 1
    return 2 * pipeline


def _adapter_parameters(config: RunConfig, model: LlamaConfig) -> int:
    """Of one block."""
    hidden, query = model.hidden_size, model.num_attention_heads * model.head_dim
    key_value, inner = model.num_key_value_heads * model.head_dim, model.intermediate_size
    sizes = {
        "q_proj": hidden + query, "k_proj": hidden + key_value, "v_proj": hidden + key_value, "o_proj": query + hidden,
        "gate_proj": hidden + inner, "up_proj": hidden + inner, "down_proj": inner + hidden,
    }  # fmt: skip
    return config.lora_rank * sum(sizes[name] for name in config.lora_targets)


def _activation_bytes(
    model: LlamaConfig, tensor: int, checkpointing: str, *, fused: bool, exchanged: bool
) -> tuple[int, int]:  # fmt: skip
    """Bytes a block keeps of a token until its backward pass, and bytes it needs besides while that runs: what is computed
    again, and gradients, four times the MLP's features at most.

    Fused blocks compute the product of gate and up again, and with `selective` the normed inputs as well. With context parallel
    they keep q, k, v and the attention output once more, as exchanged.
    """
    query, key_value = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    # Two residuals and two normed inputs are spread over tensor-parallel ranks by tokens (the inputs are kept whole as
    # well once they are gathered, or only then in fused blocks); q, k, v, the attention output, gate, up and their product
    # by features.
    by_rank = 2 * model.hidden_size + 2 * query + 2 * key_value
    if fused:
        by_rank += (2 * query + 2 * key_value) * exchanged
        everything = HALF * ((by_rank + 2 * model.intermediate_size) // tensor + 2 * model.hidden_size)
    else:
        spread = by_rank + 2 * model.hidden_size + 3 * model.intermediate_size
        everything = HALF * (spread // tensor + (2 * model.hidden_size if tensor > 1 else 0))
    gradients = HALF * 4 * model.intermediate_size // tensor
    if checkpointing == "none":
        return everything, gradients
    if checkpointing == "full":
        return HALF * model.hidden_size // tensor, everything + gradients
    if fused:
        return HALF * by_rank // tensor, everything + gradients
    narrow = (3 * model.hidden_size + 2 * query + 2 * key_value) // tensor + 2 * model.hidden_size
    return HALF * narrow, everything + gradients
