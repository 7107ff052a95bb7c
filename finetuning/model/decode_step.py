"""One new token of each of a few sequences through the whole decoder: what `finetuning.model.llama` computes, up to rounding.

Each layer is six passes over memory (`finetuning.model.kernels.decode_ops`): layers that read the same input are one weight,
the A of their adapters the last rows of it, so that base and adapter are read in one product. The weights are those of the
model, moved, not copied. Everything stays on the device, and nothing depends on a number there: a step can be captured as a
CUDA graph.

Shape letters as in `decode_ops`, and R rows of all A of a joint weight.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetuning.model.blocks.lora_block import GROUPS, join
from finetuning.model.kernels import decode_ops, ops
from finetuning.model.kernels.decode_ops import Cache, Norm
from finetuning.model.llama import Block, Llama, RMSNorm, rope_tables
from finetuning.model.lora import LoraLinear, StretchedLinear

RANK_MULTIPLE = 8  # of all A of a joint weight: rows of 16 bytes, which fast products need


@dataclass(frozen=True)
class JointLinear:
    """Layers that read the same input, with their adapters."""

    weight_OI: Tensor  # R rows longer where there are adapters
    outputs: int
    b_OR: Tensor | None  # B of each layer for its own outputs and its own rows of A; elsewhere 0
    factor_O: Tensor | None  # of DoRA

    def normed(self, x_SD: Tensor, norm: Norm) -> Tensor:
        """The layers' outputs for the normed x, side by side [S, O]; rows may lie further apart."""
        return self._adapted(decode_ops.norm_product(x_SD, norm, self.weight_OI))

    def normed_gate(self, x_SD: Tensor, norm: Norm) -> Tensor:
        """With gate and up these layers: silu(gate) * up for the normed x, [S, F]."""
        if self.b_OR is None and self.factor_O is None:
            return decode_ops.norm_gate_product(x_SD, norm, self.weight_OI)
        return ops.gate(*self.normed(x_SD, norm).chunk(2, -1))

    def added_to(self, residual_SO: Tensor, x_SI: Tensor) -> Tensor:
        """The residual with the layer's output added, in its place."""
        if self.b_OR is None and self.factor_O is None:
            return decode_ops.add_product(x_SI, self.weight_OI, residual_SO)
        return residual_SO.add_(self._adapted(decode_ops.product(x_SI, self.weight_OI)))

    def _adapted(self, y_SO: Tensor) -> Tensor:
        outputs_SO = y_SO[:, : self.outputs]
        if self.b_OR is not None:
            outputs_SO.addmm_(y_SO[:, self.outputs :], self.b_OR.t())
        return outputs_SO if self.factor_O is None else outputs_SO.mul_(self.factor_O)


def join_layers(layers: list[nn.Module]) -> JointLinear:
    """The layers' weights become views of the joint one."""
    linears = [layer.inner if isinstance(layer, StretchedLinear) else layer for layer in layers]
    assert all(isinstance(linear, nn.Linear) for linear in linears)
    adapters = [linear if isinstance(linear, LoraLinear) else None for linear in linears]
    ranks = [0 if adapter is None else adapter.lora_A.out_features for adapter in adapters]
    room = sum(ranks) + -sum(ranks) % RANK_MULTIPLE
    weights = [linear.weight for linear in linears if isinstance(linear, nn.Linear)]
    joint_OI = join(weights, room)
    outputs = len(joint_OI) - room
    b_OR = joint_OI.new_zeros(outputs, room) if room else None
    joint_OI[outputs:] = 0
    row = place = 0
    for weight, adapter, rank in zip(weights, adapters, ranks, strict=True):
        if adapter is not None:
            assert b_OR is not None
            joint_OI[outputs + place : outputs + place + rank] = adapter.scale * adapter.lora_A.weight.float()
            b_OR[row : row + len(weight), place : place + rank] = adapter.lora_B.weight
        row, place = row + len(weight), place + rank
    factor_O = None
    if any(isinstance(layer, StretchedLinear) for layer in layers):
        factors = zip(layers, weights, strict=True)
        factor_O = torch.cat(
            [layer.factor if isinstance(layer, StretchedLinear) else w.new_ones(len(w)) for layer, w in factors]
        )
    return JointLinear(joint_OI, outputs, b_OR, factor_O)


@dataclass(frozen=True)
class DecodeLayer:
    """A block as such a step reads it."""

    attention_norm: Norm
    qkv: JointLinear
    o: JointLinear
    mlp_norm: Norm
    gate_up: JointLinear
    down: JointLinear


class DecodeStep:
    """The decoder for one new token of each slot; the model goes on to work as before."""

    def __init__(self, net: Llama, num_positions: int):
        """
        Args:
            num_positions: of the longest sequence, answer included.
        """
        config = net.config
        self.num_heads = config.num_attention_heads
        self.table_VD = net.model.embed_tokens.weight
        self.head_VD = self.table_VD if config.tie_word_embeddings else net.lm_head.weight
        self.norm = _norm(net.model.norm)
        self.layers = [_decode_layer(block) for block in net.model.layers.values() if isinstance(block, Block)]
        cos_1LH, sin_1LH = rope_tables(config, torch.arange(num_positions, device=self.table_VD.device)[None])
        half = config.head_dim // 2  # both halves are equal
        self.tables = cos_1LH[0, :, :half].contiguous(), sin_1LH[0, :, :half].contiguous()

    def logits(self, token_S: Tensor, position_S: Tensor, pages_SP: Tensor, caches: list[Cache]) -> Tensor:
        """Logits [S, V] after these tokens, whose keys and values go into the caches (one for each layer).

        Args:
            position_S: of each token, int64; the positions before it are in the cache.
            pages_SP: int32.
        """
        x_SD = F.embedding(token_S, self.table_VD)
        for layer, cache in zip(self.layers, caches, strict=True):
            qkv_SC = layer.qkv.normed(x_SD, layer.attention_norm)
            q_SNH = decode_ops.rotate_and_store(qkv_SC, self.tables, position_S, pages_SP, cache, self.num_heads)
            out_SNH = decode_ops.paged_attention(q_SNH, cache, pages_SP, position_S)
            x_SD = layer.o.added_to(x_SD, out_SNH.flatten(1))
            x_SD = layer.down.added_to(x_SD, layer.gate_up.normed_gate(x_SD, layer.mlp_norm))
        return decode_ops.norm_product(x_SD, self.norm, self.head_VD)


def _decode_layer(block: Block) -> DecodeLayer:
    modules = dict(block.self_attn.named_children()) | dict(block.mlp.named_children())
    qkv, o, gate_up, down = (join_layers([modules[name] for name in group]) for group in GROUPS)
    return DecodeLayer(_norm(block.input_layernorm), qkv, o, _norm(block.post_attention_layernorm), gate_up, down)


def _norm(norm: RMSNorm) -> Norm:
    return norm.weight, norm.eps
