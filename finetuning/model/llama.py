"""The Llama decoder in one file, as plain PyTorch.

In: one packed row of tokens with positions and document boundaries. Out: logits, or the summed cross-entropy of the
trained positions. Parameter names and the RoPE layout are those of Hugging Face's LlamaForCausalLM, so weights move
without renaming. How the model is spread over processes is `finetuning.parallel`'s business.

Shape letters: B rows (1 for packed training), T tokens of a row, D hidden size, N query heads, K key/value heads,
H head dimension, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetuning.config.llama import LlamaConfig
from finetuning.model.attention import Documents, document_attention
from finetuning.model.cross_entropy import CHUNK_TOKENS, linear_cross_entropy, target_places
from finetuning.model.kernels.ops import at_least_float32, quantize_columns


@dataclass(frozen=True)
class HeadOptions:
    """How the end of the decoder saves time and memory; the result is the same up to rounding."""

    trims_last_block: bool = False  # the last block leaves out, after its attention, the positions that the head does not read
    fp8_gradient: bool = False  # with a frozen weight, the gradient of the hidden states is computed in fp8
    chunk_tokens: int = CHUNK_TOKENS  # rows of logits that exist at once, with a frozen weight


PLAIN_HEAD = HeadOptions()


class Llama(nn.Module):
    """The whole decoder with its head."""

    def __init__(self, config: LlamaConfig, head: HeadOptions = PLAIN_HEAD):
        super().__init__()
        self.config = config
        self.trims_last_block = head.trims_last_block
        self.model = Decoder(config)
        self.lm_head = Head(config, head)

    def forward(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor,
        documents: Documents,
        *,
        labels_BT: Tensor | None = None,
        weights_BT: Tensor | None = None,
        num_targets: int | None = None,
        at_S: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, T, V]; with labels, the float32 sum of the trained positions' weighted cross-entropies instead.

        Args:
            tokens_BT: token ids; B is 1 (documents of a row are separated by `documents`, not by the batch dimension).
            positions_BT: position of each token in its own document.
            documents: where the documents of the row begin and end.
            labels_BT: token that follows each position, -100 where it is not trained.
            weights_BT: how much each position counts in the sum; None: all alike, as 1.
            num_targets: how many of the labels are not -100; without it, the CPU waits for the GPU to count them.
            at_S: compute logits [B, S, V] of these S positions only.
        """
        if self.trims_last_block and labels_BT is not None:
            at_S = target_places(labels_BT[0], num_targets)
            labels_BT = labels_BT[:, at_S]
            weights_BT = None if weights_BT is None else weights_BT[:, at_S]
        trimmed = self.trims_last_block and at_S is not None and len(at_S) > 0
        hidden_BTD = self.model(tokens_BT, positions_BT, documents, at_S if trimmed else None)
        if at_S is not None and not trimmed:
            hidden_BTD = hidden_BTD[:, at_S]
        tied = self.model.embed_tokens.weight if self.config.tie_word_embeddings else None
        return self.lm_head(hidden_BTD, labels_BT, weights_BT, tied, num_targets)


class Decoder(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        # A dictionary keyed by index: a pipeline stage can hold layers 8-15 under their global names.
        self.layers = nn.ModuleDict({str(index): make_block(config) for index in range(config.num_hidden_layers)})
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, tokens_BT: Tensor, positions_BT: Tensor, documents: Documents, at_S: Tensor | None = None) -> Tensor:
        """Normed hidden states [B, T, D]; with `at_S`, [B, S, D] of these positions."""
        hidden_BTD = self.embed_tokens(tokens_BT)
        cos_BTH, sin_BTH = rope_tables(self.config, positions_BT)
        *layers, last = self.layers.values()
        for layer in layers:
            hidden_BTD = layer(hidden_BTD, cos_BTH, sin_BTH, documents, None)
        return self.norm(last(hidden_BTD, cos_BTH, sin_BTH, documents, at_S))


def make_block(config: LlamaConfig) -> "Block":
    norms = (RMSNorm(config.hidden_size, config.rms_norm_eps) for _ in range(2))
    return Block(Attention(config), MLP(config), *norms)


class Block(nn.Module):
    """One layer. Faster ways to compute it take its parts over, under their names (`finetuning.model.blocks`)."""

    def __init__(self, self_attn: "Attention", mlp: "MLP", input_layernorm: "RMSNorm", post_attention_layernorm: "RMSNorm"):
        super().__init__()
        self.self_attn, self.mlp = self_attn, mlp
        self.input_layernorm, self.post_attention_layernorm = input_layernorm, post_attention_layernorm

    def forward(
        self, x_BTD: Tensor, cos_BTH: Tensor, sin_BTH: Tensor, documents: Documents, at_S: Tensor | None = None
    ) -> Tensor:
        """Output [B, T, D]; with `at_S`, [B, S, D] of these positions only."""
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), cos_BTH, sin_BTH, documents)
        if at_S is not None:
            x_BTD = x_BTD[:, at_S]
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Attention(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.head_dim = config.head_dim
        query_size = config.num_attention_heads * config.head_dim
        key_value_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key_value_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key_value_size, bias=False)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=False)
        self.attend: nn.Module = DocumentAttention()  # context parallel and the cache put others in its place

    def forward(self, x_BTD: Tensor, cos_BTH: Tensor, sin_BTH: Tensor, documents: Documents) -> Tensor:
        q, k, v = (linear(x_BTD).unflatten(-1, (-1, self.head_dim)) for linear in (self.q_proj, self.k_proj, self.v_proj))
        q, k = apply_rotary(q, cos_BTH, sin_BTH), apply_rotary(k, cos_BTH, sin_BTH)
        out_TNH = self.attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), documents)
        return self.o_proj(out_TNH.reshape(*q.shape[:2], -1))


class DocumentAttention(nn.Module):
    def forward(self, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, documents: Documents) -> Tensor:
        """Attention output [T, N, H], causal inside documents."""
        return document_attention(q_TNH, k_TKH, v_TKH, documents)


class MLP(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


class Head(nn.Module):
    """Output head: logits, or with labels the summed cross-entropy without materializing them.

    A tied head owns no weight and is handed the embedding's: one parameter, one name, as in Hugging Face's files. What each
    target of the newest row has lost stays as `losses_S`, for whoever wants more than the sum.
    """

    losses_S: Tensor

    def __init__(self, config: LlamaConfig, options: HeadOptions):
        super().__init__()
        self.fp8_gradient, self.chunk_tokens = options.fp8_gradient, options.chunk_tokens
        self._columns: tuple[Tensor, Tensor] | None = None  # the weight in fp8
        if not config.tie_word_embeddings:
            self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))

    def forward(
        self,
        hidden_BTD: Tensor,
        labels_BT: Tensor | None,
        weights_BT: Tensor | None,
        tied_VD: Tensor | None,
        num_targets: int | None,
    ) -> Tensor:
        weight_VD = self.weight if tied_VD is None else tied_VD
        if labels_BT is None:
            return F.linear(hidden_BTD, weight_VD)
        if self.fp8_gradient and self._columns is None:
            self._columns = quantize_columns(weight_VD.detach())
        total, self.losses_S = linear_cross_entropy(
            hidden_BTD.flatten(0, 1),
            weight_VD,
            labels_BT.flatten(),
            None if weights_BT is None else weights_BT.flatten(),
            self._columns,
            self.chunk_tokens,
            num_targets,
        )
        return total


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = at_least_float32(x)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def rope_tables(config: LlamaConfig, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B, T, H] in float32; both halves of H are equal (Hugging Face's layout)."""
    angles = positions_BT[..., None].float() * inverse_frequencies(config, positions_BT.device)
    angles = torch.cat((angles, angles), -1)
    return angles.cos(), angles.sin()


def inverse_frequencies(config: LlamaConfig, device: torch.device) -> Tensor:
    """RoPE frequencies [H/2] in float32, with Llama 3.1's scaling of long wavelengths.

    Wavelengths above original_max / low_freq_factor are stretched by `factor`, those below original_max /
    high_freq_factor stay, and the band between is interpolated (Llama 3.1 reference implementation).
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    turns = scaling.original_max_position_embeddings / wavelengths
    smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = smooth.clamp(0, 1)
    return (1 - smooth) * frequencies / scaling.factor + smooth * frequencies


def apply_rotary(x_BTNH: Tensor, cos_BTH: Tensor, sin_BTH: Tensor) -> Tensor:
    """Rotates each pair (i, i + H/2) by its position's angle; computed in float32 or wider, returned in x's dtype."""
    x = at_least_float32(x_BTNH)
    first, second = x.chunk(2, -1)
    rotated = torch.cat((-second, first), -1)
    return (x * cos_BTH.unsqueeze(2) + rotated * sin_BTH.unsqueeze(2)).to(x_BTNH.dtype)
