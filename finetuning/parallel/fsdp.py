"""Data parallel: FSDP2 keeps a slice of the weights on each process, and sums gradients over processes.

Three ways to hold weights: `full` gathers each block for each use and gives it back (least memory); `step` gathers once
for all micro-batches of a step and sums gradients locally until the last (least communication); `replicated` keeps
frozen weights whole on every process and treats the trained ones as `step` does (for LoRA, where they are small). Fused
blocks know nothing of FSDP: their adapters are whole on every process, too.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from finetuning.model.attention import Documents
from finetuning.model.llama import Llama

SHARDINGS = ("full", "step", "replicated")


def shard_parameters(model: Llama, mesh: DeviceMesh, compute_dtype: torch.dtype, sharding: str) -> None:
    """Shards blocks, embedding and head as units of their own, and what is left as the root unit.

    Parameters are gathered in `compute_dtype`; gradients are reduced in float32 or wider and summed, not averaged: the loss is
    already divided by the answer tokens of the whole step. With `prefetch`, the weights of so many units are gathered ahead
    of their use; with 0, in the order that FSDP2 takes by itself.
    """
    assert sharding in SHARDINGS, sharding
    wide = torch.promote_types(compute_dtype, torch.float32)
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=wide, cast_forward_inputs=False)
    whole = {p for p in model.parameters() if sharding == "replicated" and not p.requires_grad}
    units: list[nn.Module] = list(model.model.layers.values())
    if not model.config.tie_word_embeddings:  # a tied table is needed at both ends: it stays in the root unit
        units += [model.model.embed_tokens, model.lm_head]
    reshard = None if sharding == "full" else False  # None: after each use, but the root after the backward pass only
    for unit in [*units, model]:
        if unit is model or any(parameter not in whole for parameter in unit.parameters()):
            fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard, ignored_params=whole)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no PREMUL_SUM
    unwrap_documents(model)  # after FSDP's own hooks


@dataclass(frozen=True)
class FsdpOpaque:
    """Document boundaries on their way into a model.

    FSDP moves the tensors inside tuples to the GPU, also the counts that attention reads on the CPU: each attention would
    wait for the GPU. It does not look into this.
    """

    documents: Documents


def unwrap_documents(model: Llama) -> None:
    """Makes the model take its document boundaries out of their cover."""
    model.register_forward_pre_hook(_unwrap, with_kwargs=True)


def _unwrap(
    model: nn.Module, inputs: tuple[object, ...], options: dict[str, object]
) -> tuple[tuple[object, ...], dict[str, object]]:
    def bare(value: object) -> object:
        return value.documents if isinstance(value, FsdpOpaque) else value

    return tuple(bare(value) for value in inputs), {name: bare(value) for name, value in options.items()}


def prepare_backward(model: Llama, sharding: str, *, last: bool) -> None:
    """Says whether the next backward pass is the last of the step; `full` reduces gradients in each, the others in the last."""
    if not isinstance(model, FSDPModule):
        return  # built without shards
    model.set_requires_gradient_sync(last or sharding == "full")
    model.set_requires_all_reduce(last)  # between copies, once a step
    model.set_reshard_after_backward(last or sharding == "full")


def release(model: Llama) -> None:
    """Gives up what units keep gathered after a forward pass without a backward pass.

    FSDP2 expects the backward pass to do it. Until then the model shows gathered copies, in the compute dtype, in place of
    the parameters that the optimizer knows: a checkpoint would hold rounded weights and no moments for them.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
