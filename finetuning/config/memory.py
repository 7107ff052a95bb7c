"""Expected GPU memory of a strategy, from the shapes alone.

For `finetune plan`, the start screen and what `auto` becomes (`config.resolve`): states are exact, activations are counted
tensor by tensor, for the two moments at which the most is there, and what tensors do not hold is a flat allowance.
docs/parallelism.md shows the same arithmetic by hand; `benchmarks/plan.py` holds it against what runs have used.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from finetuning.config.llama import LlamaConfig
from finetuning.config.stages import assign_layers, stage_indices
from finetuning.config.strategy import FUSED, HEAD_GRADIENT, LOW_MEMORY, PLAIN, Strategy

HALF, SINGLE = 2, 4  # bytes of bfloat16 and float32
# Bytes of a trained parameter: weight, gradient and two moments; the weight in two halves unless everything is float32.
# Moments of 8 bits have a float32 factor for each 128 weights, each.
STATES = {"fp32": 4 * SINGLE, "bf16": SINGLE + 3 * HALF, "8bit": SINGLE + HALF + 2 + 2 * SINGLE / 128}
ALLOWANCE_BYTES = 2 * 2**30  # CUDA context, NCCL, kernels' workspaces, fragmentation: all that is not in tensors
ALLOCATION_BYTES = 2 * 2**20  # of large tensors, the allocator's unit
ROWS_IN_PIPELINE = 5  # for each of its processes: packs of a step, for which there are buffers
HEAD_CHUNK_TOKENS, TRAINED_HEAD_CHUNK_TOKENS = 2048, 8192  # of logits that are there at once
LEAST_TOKENS, LEAST_CHUNK_TOKENS = 4096, 1024  # of a piece and of a chunk of logits, with --least_memory


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one GPU."""

    states: int  # weights, gradients, optimizer, sharded
    gathered: int  # whole weights in use, and gradients that are not reduced yet
    activations: int  # kept for the backward pass
    work: int  # besides, in the head or in a block's backward pass, whichever is more
    rounding: int  # to whole units of the allocator
    allowance: int = ALLOWANCE_BYTES

    @property
    def tensors_gib(self) -> float:
        """The most that tensors take at once, as torch counts them."""
        return (self.states + self.gathered + self.activations + self.work + self.rounding) / 2**30

    @property
    def total_gib(self) -> float:
        return self.tensors_gib + self.allowance / 2**30


def plan_memory(strategy: Strategy, model: LlamaConfig, pack_tokens: int | None = None) -> MemoryPlan:
    """Memory of the fullest rank, training in bfloat16.

    Args:
        pack_tokens: of the longest pack, where it is known; else packs are full.
    """
    tokens = min(pack_tokens or strategy.packs.capacity, strategy.packs.capacity)
    if strategy.blocks == LOW_MEMORY:
        return _plan_low_memory(strategy, model, tokens)
    pipeline = strategy.degrees.pp
    if pipeline == 1:
        return _plan_rank(strategy, model, tokens, (range(model.num_hidden_layers),), [0], 1)
    plans = plan_ranks(strategy, model, tokens)
    return max(plans, key=lambda plan: plan.total_gib)


def plan_ranks(strategy: Strategy, model: LlamaConfig, tokens: int) -> list[MemoryPlan]:
    """Of each process of a pipeline."""
    pipeline = strategy.degrees.pp
    held = [stage_indices(strategy.pipeline_schedule, pipeline, rank) for rank in range(pipeline)]
    stages = assign_layers(model, pipeline * len(held[0]))
    return [_plan_rank(strategy, model, tokens, stages, mine, _in_flight(strategy, rank)) for rank, mine in enumerate(held)]


def low_memory_on_host_gib(model: LlamaConfig, pack_tokens: int) -> float:
    """What a process keeps in host memory with --least_memory: the embedding and, of a pack, what blocks but the last keep."""
    table = 0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size
    kept = pack_tokens * (model.num_hidden_layers - 1) * (model.hidden_size + model.num_attention_heads * model.head_dim)
    return HALF * (table + kept) / 2**30


def trainable_parameters(strategy: Strategy, model: LlamaConfig) -> int:
    """Parameters the optimizer changes, in the whole model."""
    return model.num_parameters if strategy.trains_all else model.num_hidden_layers * _adapter_parameters(strategy, model)


def _plan_rank(
    strategy: Strategy, model: LlamaConfig, pack_tokens: int, stages: Sequence[range], mine: list[int], in_flight: int
) -> MemoryPlan:
    """Memory of a rank with these stages, each of which keeps the activations of `in_flight` packs."""
    degrees, lora = strategy.degrees, not strategy.trains_all
    tensor, shards = degrees.tp, degrees.dp_shard * degrees.cp
    layers = sum(len(stages[index]) for index in mine)
    has_last = len(stages) - 1 in mine
    tables = (0 in mine) + (has_last and (len(stages) > 1 or not model.tie_word_embeddings))
    table = model.vocab_size * model.hidden_size
    base = (layers * model.layer_parameters + tables * table + has_last * model.hidden_size) // tensor
    trained = layers * _adapter_parameters(strategy, model) // tensor if lora else base
    frozen = base if lora else 0
    spread = shards if strategy.shards_weights else 1  # fused blocks hold adapters whole, too
    states = frozen * HALF // (1 if strategy.sharding == "replicated" else shards)
    states += int(trained * STATES[strategy.optimizer_states]) // spread
    in_fp8 = HEAD_GRADIENT in strategy.fp8
    states += table if has_last and in_fp8 else 0
    tokens = pack_tokens // degrees.cp
    kept, computed = _activation_bytes(strategy, model)
    activations = tokens * kept * in_flight * max(len(stages[index]) for index in mine)
    activations += tokens * 2 * SINGLE * model.head_dim  # tables of cosines and sines
    if degrees.pp > 1:
        activations += ROWS_IN_PIPELINE * degrees.pp * tokens * HALF * model.hidden_size // tensor
    in_head, in_blocks = _gathered_bytes(strategy, model, layers, tables, frozen, trained)
    # In the head, or later in the first block whose backward pass is run.
    head = _head_bytes(model, tokens, tensor, lora=lora, fp8=in_fp8) if has_last else 0
    rounding = layers * _rounding_bytes(strategy)
    moments = [
        MemoryPlan(states, in_head, activations, head, rounding),
        MemoryPlan(states, in_blocks, activations, tokens * computed, rounding),
    ]
    return max(moments, key=lambda plan: plan.total_gib)


def _rounding_bytes(strategy: Strategy) -> int:
    """Of a block's own tensors: most of the 8B's are whole units, those with room for adapters are not; fp8 has two each."""
    tensors = 3 if strategy.trains_all or strategy.blocks == LOW_MEMORY else 10 if strategy.fp8 else 6
    return tensors * ALLOCATION_BYTES


def _gathered_bytes(
    strategy: Strategy, model: LlamaConfig, layers: int, tables: int, frozen: int, trained: int
) -> tuple[int, int]:
    """Whole weights and gradients, while the head works and while a block's backward pass does."""
    degrees, lora = strategy.degrees, not strategy.trains_all
    tensor, shards = degrees.tp, degrees.dp_shard * degrees.cp
    block, table = model.layer_parameters // tensor, model.vocab_size * model.hidden_size // tensor
    fused = strategy.blocks == FUSED
    if fused and not strategy.shards_weights and not lora:
        both = layers * block * HALF if strategy.fp8 else 0  # nothing to gather; weights in fp8, twice
        return both, both
    if strategy.sharding == "full":
        # Copies add up what they have reduced in float32 until they reduce it among themselves, in the last row of the step.
        waiting = trained * (SINGLE - HALF) // shards if degrees.dp_replicate > 1 and strategy.split_master else 0
        # Two blocks, and of what is trained the gradients of one on their way in float32, and of the table of the head.
        on_their_way = 0 if lora else block * SINGLE + table * HALF
        return waiting + tables * table * HALF, waiting + 2 * block * HALF + on_their_way
    if fused and not lora and strategy.optimizer_states != "fp32" and degrees.pp == 1:
        # The whole model and the gradients of all blocks in bfloat16, those of the tables in float32; and those of one block on
        # their way in float32. Until the last pack's come, this process's own share has no gradients.
        whole = (2 * layers * block + tables * table) * HALF + tables * table * SINGLE - trained * HALF // shards
        return whole, whole + max(block - table, 0) * SINGLE
    if shards > 1 or (strategy.shards_weights and not lora):
        # The whole stage, and gradients in float32 until the last row of the step.
        both = trained * (HALF + SINGLE) + (frozen * HALF if strategy.sharding == "step" else 0)
        both -= (
            trained * (HALF if strategy.split_master else SINGLE) // shards if shards > 1 else 0
        )  # its own share comes later
        return both, both
    both = trained * HALF if strategy.shards_weights or lora else 0
    return both, both


def _head_bytes(model: LlamaConfig, tokens: int, tensor: int, *, lora: bool, fp8: bool) -> int:
    """What the end of the decoder needs at once, where all positions are targets.

    The final norm keeps its input in float32, and what it has made where its weight is trained; its output, that of the
    targets, and their gradient. Then a chunk of logits in bfloat16, overwritten with its gradient or beside it in fp8, and the
    gradient of a head that is trained. Under tensor parallel the logits are copied to float32, and so is their gradient.
    """
    hidden, table = model.hidden_size, model.vocab_size * model.hidden_size // tensor
    rows = tokens * hidden * ((SINGLE + (0 if lora else HALF)) // tensor + 3 * HALF)
    if tensor > 1:
        chunk = min(tokens, HEAD_CHUNK_TOKENS) * model.vocab_size // tensor * (2 * SINGLE + HALF)
        return rows + chunk + (0 if lora else table * (SINGLE + HALF))
    chunk = HEAD_CHUNK_TOKENS if lora else TRAINED_HEAD_CHUNK_TOKENS
    logits = min(tokens, chunk) * model.vocab_size * (HALF + fp8)
    if lora or tokens <= chunk:
        return rows + logits + (0 if lora else table * HALF)
    # Each chunk's gradient of the head, in bfloat16, is added to a sum in float32, which is then multiplied and rounded.
    return rows + max(logits + table * (SINGLE + HALF), table * (2 * SINGLE + HALF))


def _plan_low_memory(strategy: Strategy, model: LlamaConfig, tokens: int) -> MemoryPlan:
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
    trained = trainable_parameters(strategy, model)
    blocks = model.num_hidden_layers * model.layer_parameters
    frozen = blocks * (1 if strategy.fp8 else HALF) + (model.vocab_size + 1) * hidden * HALF
    piece = min(tokens, LEAST_TOKENS)
    kept = HALF * (hidden + query)
    projected = HALF * (query + 2 * key_value)
    attention = tokens * (kept + HALF * (2 * hidden + query) + 2 * projected + HALF * 2 * query + SINGLE * query)
    pieces = tokens * (kept + HALF * (2 * hidden + query)) + piece * HALF * (3 * inner + 3 * hidden)
    pieces += piece * inner if strategy.fp8 else 0  # the same in fp8, on their way into a product
    turned = (model.layer_parameters - (query + 2 * key_value) * hidden) if strategy.fp8 else 0  # transposes of one block
    head = tokens * hidden * (SINGLE + 3 * HALF) + min(tokens, LEAST_CHUNK_TOKENS) * model.vocab_size * HALF
    norm = tokens * hidden * (5 * SINGLE + HALF)
    states = frozen + int(trained * STATES["fp32"])
    rounding = model.num_hidden_layers * _rounding_bytes(strategy)
    return MemoryPlan(states, trained * HALF, tokens * kept, max(attention, pieces + turned, head, norm), rounding)


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
    again, and gradients.

    Fused blocks compute the product of gate and up again, and with `selective` the normed inputs as well. With context parallel
    they keep q, k, v and the attention output once more, as exchanged, and q, k, v twice again, as two H200s showed.
    """
    tensor, fused, checkpointing = strategy.degrees.tp, strategy.blocks == FUSED, strategy.activation_checkpointing
    hidden, inner = model.hidden_size, model.intermediate_size
    query, key_value = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    # Two residuals and two normed inputs are spread over tensor-parallel ranks by tokens (the inputs are kept whole as
    # well once they are gathered, or only then in fused blocks); q, k, v, the attention output, gate, up and their product
    # by features.
    by_rank = 2 * hidden + 2 * query + 2 * key_value
    # The log-sum-exp of each head; of adapters, what has passed A: of q, k and v, of o, of gate and up, of down.
    little = model.num_attention_heads * SINGLE // tensor + HALF * (0 if strategy.trains_all else 7 * (strategy.lora_rank or 0))
    if fused:
        by_rank += (4 * query + 6 * key_value) * (strategy.degrees.cp > 1)
        everything = little + HALF * ((by_rank + 2 * inner) // tensor + 2 * hidden)
    else:
        spread = by_rank + 2 * hidden + 3 * inner
        everything = little + HALF * (spread // tensor + (2 * hidden if tensor > 1 else 0))
        everything += 2 * SINGLE * hidden // tensor if strategy.blocks == PLAIN else 0  # the norms' inputs, in float32
    # Of gate and up; seven as wide as the residual stream, those that are exchanged whole; of the attention's output; of q, k
    # and v before and after the rotation. Where the MLP is wide: of gate, up, their product and what it is made of.
    gradients = max(2 * inner // tensor + 7 * hidden + (3 * query + 4 * key_value) // tensor, 4 * inner // tensor + 2 * hidden)
    if checkpointing == "none":
        return everything, HALF * gradients
    if checkpointing == "full":
        # Fused blocks under context parallel do not give up what surrounds their attention: q, k, v and its output, both twice.
        attended = 4 * (query + key_value) * (fused and strategy.degrees.cp > 1)
        return HALF * (hidden + attended) // tensor, everything + HALF * gradients
    if fused:
        return little + HALF * by_rank // tensor, everything + HALF * gradients
    narrow = (3 * hidden + 2 * query + 2 * key_value) // tensor + 2 * hidden
    return HALF * narrow, everything + HALF * gradients
