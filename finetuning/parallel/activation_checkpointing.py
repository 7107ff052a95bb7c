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

MODES = ("none", "selective", "full")


def block_forward(forward: Callable[..., Tensor], mode: str, hidden_size: int, *, compiled: bool) -> Callable[..., Tensor]:
    """`forward` compiled and recomputed as asked; plain without gradients, so that evaluation never compiles."""
    assert mode in MODES, mode
    trained = forward
    if mode == "selective":  # inside the compiled region, where the compiler carries the choice out
        contexts = partial(create_selective_checkpoint_contexts, partial(_keep, hidden_size))
        trained = partial(checkpoint, forward, use_reentrant=False, context_fn=contexts)
    if compiled:
        # Once for all row lengths; with a choice inside, torch 2.13 can compile for one length at a time only.
        trained = torch.compile(trained, fullgraph=True, dynamic=mode != "selective")
    if mode == "full":
        trained = partial(checkpoint, trained, use_reentrant=False)

    def run(*inputs: object) -> Tensor:
        return trained(*inputs) if torch.is_grad_enabled() else forward(*inputs)

    return run


def _keep(hidden_size: int, context: Any, operator: Any, *inputs: Any, **options: Any) -> CheckpointPolicy:
    aten = torch.ops.aten
    kept = operator in (aten.mm.default, aten._scaled_mm.default) and inputs[1].shape[-1] <= hidden_size
    # Attention and all-to-all are operators of ours; on the CPU, attention is one of these.
    name = str(operator)
    kept = kept or (name.startswith("finetuning.") and not name.startswith("finetuning.gather"))
    kept = kept or "_scaled_dot_product" in name
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
