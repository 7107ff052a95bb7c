"""Activation checkpointing: what a block keeps for its backward pass, and what it computes again.

`full` keeps a block's input only. `selective` also keeps attention and every matrix product whose output is no wider than
the residual stream; it computes again what is wide (gate and up) or cheap (norms, RoPE, products element by element).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from typing_extensions import override

from finetuning.model.llama import Block

MODES = ("none", "selective", "full")


class RecomputedBlock(Block):
    """Takes a block's place, with its parts: its `forward` compiled and recomputed as asked.

    Inside the module, so that hooks of FSDP stay outside the graph and outside the recomputation. Plain without gradients, so
    that evaluation never compiles.
    """

    def __init__(self, block: Block, mode: str, hidden_size: int, *, compiled: bool):
        super().__init__(block.self_attn, block.mlp, block.input_layernorm, block.post_attention_layernorm)
        assert mode in MODES, mode
        self._plain: Callable[..., Tensor] = block.forward
        recomputed: Callable[..., Tensor] = block.forward
        if mode == "selective":  # inside the compiled region, where the compiler carries the choice out
            contexts = partial(create_selective_checkpoint_contexts, partial(_keep, hidden_size))
            recomputed = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)
        if compiled:
            # Once for all pack lengths; with a choice inside, torch 2.13 can compile for one length at a time only.
            recomputed = torch.compile(recomputed, fullgraph=True, dynamic=mode != "selective")
        if mode == "full":
            recomputed = partial(checkpoint, recomputed, use_reentrant=False)
        self._recomputed = recomputed

    @override
    def forward(self, *inputs: Any) -> Tensor:
        return self._recomputed(*inputs) if torch.is_grad_enabled() else self._plain(*inputs)


def _keep(hidden_size: int, context: Any, operator: Any, *inputs: Any, **options: Any) -> CheckpointPolicy:
    aten = torch.ops.aten
    kept = operator in (aten.mm.default, aten._scaled_mm.default) and inputs[1].shape[-1] <= hidden_size
    # Attention and all-to-all are operators of ours; on the CPU, attention is one of these.
    name = str(operator)
    kept = kept or (name.startswith("finetuning.") and not name.startswith("finetuning.gather"))
    kept = kept or "_scaled_dot_product" in name
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
