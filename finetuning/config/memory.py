"""Expected GPU memory of a strategy, from the shapes alone.

An estimate for the start screen and for what `auto` becomes (`config.resolve`): states are exact, activations are counted
tensor by tensor, and the allocator's and the kernels' own needs are a flat allowance. docs/parallelism.md shows the same
arithmetic by hand.
"""

from dataclasses import dataclass

from finetuning.config.llama import LlamaConfig
from finetuning.config.stages import assign_layers, stage_indices
from finetuning.config.strategy import FUSED, HEAD_GRADIENT, LOW_MEMORY, Strategy

HALF, SINGLE = 2, 4  # bytes of bfloat16 and float32
# Bytes of a trained parameter: weight, gradient and two moments; the weight in two halves unless everything is float32.
STATES = {"fp32": 4 * SINGLE, "bf16": SINGLE + 3 * HALF, "8bit": SINGLE + HALF + 2}
ALLOWANCE_BYTES = 2 * 2**30  # CUDA context, kernels' workspaces, fragmentation
HEAD_CHUNK_TOKENS, TRAINED_HEAD_CHUNK_TOKENS = 2048, 8192  # of logits that are there at once
LEAST_TOKENS, LEAST_CHUNK_TOKENS = 4096, 1024  # of a piece and of a chunk of logits, with --least_memory


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


def plan_memory(strategy: Strategy, model: LlamaConfig) -> MemoryPlan:
    """Memory of the fullest rank, training in bfloat16."""
    if strategy.blocks == LOW_MEMORY:
        return _plan_low_memory(strategy, model)
    pipeline = strategy.degrees.pp
    if pipeline == 1:
        return _plan_rank(strategy, model, [range(model.num_hidden_layers)], [0], 1)
    held = [stage_indices(strategy.pipeline_schedule, pipeline, rank) for rank in range(pipeline)]
    stages = assign_layers(model, pipeline * len(held[0]))
    plans = [_plan_rank(strategy, model, stages, mine, _in_flight(strategy, rank)) for rank, mine in enumerate(held)]
    return max(plans, key=lambda plan: plan.total_gib)


def low_memory_on_host_gib(model: LlamaConfig, pack_tokens: int) -> float:
    """What a process keeps in host memory with --least_memory: the embedding and, of a pack, what blocks but the last keep."""
    table = 0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size
    kept = pack_tokens * (model.num_hidden_layers - 1) * (model.hidden_size + model.num_attention_heads * model.head_dim)
    return HALF * (table + kept) / 2**30


def trainable_parameters(strategy: Strategy, model: LlamaConfig) -> int:
    """Parameters the optimizer changes, in the whole model."""
    return model.num_parameters if strategy.trains_all else model.num_hidden_layers * _adapter_parameters(strategy, model)


def _plan_rank(strategy: Strategy, model: LlamaConfig, stages: list[range], mine: list[int], in_flight: int) -> MemoryPlan:
    """Memory of a rank with these stages, each of which keeps the activations of `in_flight` packs."""
    degrees, lora = strategy.degrees, not strategy.trains_all
    tensor, context, shards = degrees.tp, degrees.cp, degrees.dp_shard * degrees.cp
    layers = sum(len(stages[index]) for index in mine)
    has_last = len(stages) - 1 in mine
    tables = (0 in mine) + (has_last and (len(stages) > 1 or not model.tie_word_embeddings))
    table = model.vocab_size * model.hidden_size
    base = (layers * model.layer_parameters + tables * table + has_last * model.hidden_size) // tensor
    trained = layers * _adapter_parameters(strategy, model) // tensor if lora else base
    frozen = base if lora else 0
    sharding, precision = strategy.sharding, strategy.optimizer_states
    states = frozen * HALF // (1 if sharding == "replicated" else shards) + trained * STATES[precision] // shards
    fused = strategy.blocks == FUSED
    if fused and not strategy.shards_weights and not lora:
        gathered = layers * model.layer_parameters * HALF if strategy.fp8 else 0  # nothing to gather; weights in fp8, twice
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
    tokens = strategy.packs.capacity // context
    kept, computed = _activation_bytes(strategy, model)
    # In the head, or later in the first block whose backward pass is run.
    in_fp8 = HEAD_GRADIENT in strategy.fp8
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


def _plan_low_memory(strategy: Strategy, model: LlamaConfig) -> MemoryPlan:
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
    tokens, trained = strategy.packs.capacity, trainable_parameters(strategy, model)
    blocks = model.num_hidden_layers * model.layer_parameters
    frozen = blocks * (1 if strategy.fp8 else HALF) + (model.vocab_size + 1) * hidden * HALF
    piece = min(tokens, LEAST_TOKENS)
    kept = HALF * (hidden + query)
    projected = HALF * (query + 2 * key_value)
    attention = tokens * (kept + HALF * (2 * hidden + query) + 2 * projected + HALF * 2 * query + SINGLE * query)
    pieces = tokens * (kept + HALF * (2 * hidden + query)) + piece * HALF * (3 * inner + 3 * hidden)
    turned = (model.layer_parameters - (query + 2 * key_value) * hidden) if strategy.fp8 else 0  # transposes of one block
    head = tokens * hidden * (SINGLE + 3 * HALF) + min(tokens, LEAST_CHUNK_TOKENS) * model.vocab_size * HALF
    norm = tokens * hidden * (5 * SINGLE + HALF)
    working = tokens * kept + max(attention, pieces + turned, head, norm)
    return MemoryPlan(frozen + trained * STATES["fp32"], trained * HALF, working)


def _in_flight(strategy: Strategy, rank: int) -> int:
    """Packs whose activations a stage of this rank keeps at once, added up over the rank's stages."""
    pipeline = strategy.degrees.pp
    if strategy.pipeline_schedule == "1f1b":
        return pipeline - rank
    return 2 * (pipeline - rank - 1) + pipeline + 1


def _adapter_parameters(strategy: Strategy, model: LlamaConfig) -> int:
    """Of one block."""
    assert strategy.lora_rank is not None
    hidden, query = model.hidden_size, model.num_attention_heads * model.head_dim
    key_value, inner = model.num_key_value_heads * model.head_dim, model.intermediate_size
    sizes = {
        "q_proj": hidden + query,
        "k_proj": hidden + key_value,
        "v_proj": hidden + key_value,
        "o_proj": query + hidden,
        "gate_proj": hidden + inner,
        "up_proj": hidden + inner,
        "down_proj": inner + hidden,
    }
    return strategy.lora_rank * sum(sizes[name] for name in strategy.lora_targets)


def _activation_bytes(strategy: Strategy, model: LlamaConfig) -> tuple[int, int]:
    """Bytes a block keeps of a token until its backward pass, and bytes it needs besides while that runs: what is computed
    again, and gradients, four times the MLP's features at most.

    Fused blocks compute the product of gate and up again, and with `selective` the normed inputs as well. With context parallel
    they keep q, k, v and the attention output once more, as exchanged.
    """
    tensor, fused, checkpointing = strategy.degrees.tp, strategy.blocks == FUSED, strategy.activation_checkpointing
    query, key_value = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    # Two residuals and two normed inputs are spread over tensor-parallel ranks by tokens (the inputs are kept whole as
    # well once they are gathered, or only then in fused blocks); q, k, v, the attention output, gate, up and their product
    # by features.
    by_rank = 2 * model.hidden_size + 2 * query + 2 * key_value
    if fused:
        by_rank += (2 * query + 2 * key_value) * (strategy.degrees.cp > 1)
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
