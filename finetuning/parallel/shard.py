"""Data parallel with sharded parameters (FSDP2): each rank keeps a slice and gathers a block when it needs it."""

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from finetuning.model.llama import Llama


def shard_parameters(model: Llama, mesh: DeviceMesh, compute_dtype: torch.dtype) -> None:
    """Shards blocks, embedding and head as units of their own, and what is left as the root unit.

    Parameters are gathered in `compute_dtype`; gradients are reduced in float32 and summed, not averaged: the loss is
    already divided by the answer tokens of the whole step.
    """
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in model.model.layers.values():
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    if not model.config.tie_word_embeddings:  # a tied table is needed at both ends: it stays in the root unit
        fully_shard(model.model.embed_tokens, mesh=mesh, mp_policy=policy)
        fully_shard(model.lm_head, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no PREMUL_SUM


def release_root(model: Llama) -> None:
    """Gives up what the root unit keeps gathered after a forward pass without a backward pass.

    FSDP2 expects the backward pass to do it. Until then the model shows gathered copies, in the compute dtype, in place of
    the parameters that the optimizer knows: a checkpoint would hold rounded weights and no moments for them.
    """
    assert isinstance(model, FSDPModule)
    model.reshard()
