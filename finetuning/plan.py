"""Expected GPU memory of a run, from the shapes alone, and how data parallel should hold the weights.

An estimate for the start screen and for that choice: states are exact, activations are counted tensor by tensor, and the
allocator's and the kernels' own needs are a flat allowance. docs/parallelism.md shows the same arithmetic by hand.
"""

from dataclasses import dataclass

from finetuning.config import RunConfig
from finetuning.model.config import LlamaConfig
from finetuning.parallel.stages import assign_layers, stage_indices

HALF, SINGLE = 2, 4  # bytes of bfloat16 and float32
STATES = 4 * SINGLE  # of a trained parameter: weight, gradient and two moments
ALLOWANCE_BYTES = 2 * 2**30  # CUDA context, kernels' workspaces, fragmentation
HEAD_CHUNK_TOKENS = 2048
USABLE = 0.92  # share of a GPU's memory that a plan may fill
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


def choose_sharding(config: RunConfig, model: LlamaConfig, gpu_memory_gib: float | None) -> str:
    """What `--sharding auto` becomes: for LoRA the least communication that fits, for full training `full`.

    A pipeline gathers weights once per step, so `full` is not possible there.
    """
    if config.sharding != "auto":
        return config.sharding
    last = "step" if config.pipeline_model_parallel_size > 1 else "full"
    if config.peft == "none":
        return last
    limit = (gpu_memory_gib or ASSUMED_GPU_GIB) * USABLE
    fitting = (way for way in ("replicated", "step") if plan_memory(config, model, way).total_gib <= limit)
    return next(fitting, last)


def plan_memory(config: RunConfig, model: LlamaConfig, sharding: str) -> MemoryPlan:
    """Memory of the fullest rank, training rows of micro_batch_size * seq_length tokens in bfloat16."""
    pipeline = config.pipeline_model_parallel_size
    if pipeline == 1:
        return _plan_rank(config, model, sharding, [range(model.num_hidden_layers)], [0], 1)
    held = [stage_indices(config.pipeline_schedule, pipeline, rank) for rank in range(pipeline)]
    stages = assign_layers(model, pipeline * len(held[0]))
    plans = [_plan_rank(config, model, sharding, stages, mine, _in_flight(config, rank)) for rank, mine in enumerate(held)]
    return max(plans, key=lambda plan: plan.total_gib)


def trained_parameters(config: RunConfig, model: LlamaConfig) -> int:
    """Parameters the optimizer changes, in the whole model."""
    if config.peft == "none":
        return model.num_parameters
    return model.num_hidden_layers * _adapter_parameters(config, model)


def _plan_rank(
    config: RunConfig, model: LlamaConfig, sharding: str, stages: list[range], mine: list[int], in_flight: int
) -> MemoryPlan:
    """Memory of a rank with these stages, each of which keeps the activations of `in_flight` rows."""
    tensor, context, lora = config.tensor_model_parallel_size, config.context_parallel_size, config.peft == "lora"
    shards = config.data_parallel_size // config.data_parallel_replicate_size * context
    layers = sum(len(stages[index]) for index in mine)
    has_last = len(stages) - 1 in mine
    tables = (0 in mine) + (has_last and (len(stages) > 1 or not model.tie_word_embeddings))
    table = model.vocab_size * model.hidden_size
    base = (layers * model.layer_parameters + tables * table + has_last * model.hidden_size) // tensor
    trained = layers * _adapter_parameters(config, model) // tensor if lora else base
    frozen = base if lora else 0
    states = frozen * HALF // (1 if sharding == "replicated" else shards) + trained * STATES // shards
    if sharding == "full":
        units = 2 * model.layer_parameters + tables * table
        gathered = units * (HALF if lora else HALF + SINGLE) // tensor  # two blocks and the tables; their gradients
    elif shards > 1:  # the whole stage, and gradients in float32 until the last row of the step
        gathered = trained * (HALF + SINGLE) + (frozen * HALF if sharding == "step" else 0)
    else:
        gathered = trained * HALF
    tokens = config.micro_batch_size * config.seq_length // context
    kept, computed = _activation_bytes(model, tensor, config.activation_checkpointing)
    activations = tokens * (kept * in_flight * max(len(stages[index]) for index in mine) + computed)
    logits = min(tokens, HEAD_CHUNK_TOKENS) * model.vocab_size * (2 * SINGLE + HALF) // tensor if has_last else 0
    return MemoryPlan(states, gathered, activations + logits)


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


def _activation_bytes(model: LlamaConfig, tensor: int, checkpointing: str) -> tuple[int, int]:
    """Bytes a block keeps of a token until its backward pass, and bytes one block more needs while it is computed again."""
    query, key_value = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    # Two residuals and two normed inputs are spread over tensor-parallel ranks by tokens (the inputs are kept whole as
    # well once they are gathered); q, k, v, the attention output, gate, up and their product by features.
    spread = 4 * model.hidden_size + 2 * query + 2 * key_value + 3 * model.intermediate_size
    everything = HALF * (spread // tensor + (2 * model.hidden_size if tensor > 1 else 0))
    if checkpointing == "none":
        return everything, 0
    if checkpointing == "full":
        return HALF * model.hidden_size // tensor, everything
    narrow = (3 * model.hidden_size + 2 * query + 2 * key_value) // tensor + 2 * model.hidden_size
    return HALF * narrow, everything
