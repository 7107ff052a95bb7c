"""Expected GPU memory of a run, from the shapes alone.

An estimate for the start screen: states are exact, activations are counted tensor by tensor, and the allocator's and
the kernels' own needs are a flat allowance.
"""

from dataclasses import dataclass

from finetuning.config import RunConfig
from finetuning.model.config import LlamaConfig

HALF, SINGLE = 2, 4  # bytes of bfloat16 and float32
ALLOWANCE_BYTES = 2 * 2**30  # CUDA context, kernels' workspaces, fragmentation
HEAD_CHUNK_TOKENS = 2048


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one GPU."""

    states: int  # weights, gradients, optimizer, sharded
    gathered: int  # whole blocks and tables that are in use
    activations: int
    allowance: int = ALLOWANCE_BYTES

    @property
    def total_gib(self) -> float:
        return (self.states + self.gathered + self.activations + self.allowance) / 2**30


def plan_memory(config: RunConfig, model: LlamaConfig) -> MemoryPlan:
    """Memory of one data-parallel rank that trains rows of micro_batch_size * seq_length tokens in bfloat16."""
    trained = trained_parameters(config, model)
    frozen = model.num_parameters if config.peft == "lora" else 0
    states = (frozen * HALF + trained * 4 * SINGLE) // config.data_parallel_size  # weight, gradient and two moments
    tables = model.vocab_size * model.hidden_size
    gathered = 2 * model.layer_parameters * HALF + 2 * tables * HALF
    if config.peft == "none":
        gathered += 2 * tables * SINGLE  # gradient of the head, of the embedding
    tokens = config.micro_batch_size * config.seq_length
    block = tokens * _saved_bytes_per_token(model)
    if config.activation_checkpointing == "full":
        activations = block + tokens * model.num_hidden_layers * model.hidden_size * HALF
    else:
        activations = block * model.num_hidden_layers
    logits = min(tokens, HEAD_CHUNK_TOKENS) * model.vocab_size * (2 * SINGLE + HALF)
    return MemoryPlan(states, gathered, activations + logits)


def trained_parameters(config: RunConfig, model: LlamaConfig) -> int:
    """Parameters the optimizer changes."""
    if config.peft == "none":
        return model.num_parameters
    hidden, query = model.hidden_size, model.num_attention_heads * model.head_dim
    key_value, inner = model.num_key_value_heads * model.head_dim, model.intermediate_size
    sizes = {
        "q_proj": hidden + query, "k_proj": hidden + key_value, "v_proj": hidden + key_value, "o_proj": query + hidden,
        "gate_proj": hidden + inner, "up_proj": hidden + inner, "down_proj": inner + hidden,
    }  # fmt: skip
    return config.lora_rank * model.num_hidden_layers * sum(sizes[name] for name in config.lora_targets)


def _saved_bytes_per_token(model: LlamaConfig) -> int:
    """What one block keeps of a token for its backward pass: two residuals, two normed inputs, q, k, v, the attention
    output, gate, up and their product."""
    query, key_value = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    return HALF * (4 * model.hidden_size + 2 * query + 2 * key_value + 3 * model.intermediate_size)
