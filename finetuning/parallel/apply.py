"""Builds the model of this process: one function whose body is the ordered list of techniques."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.checkpoint import checkpoint

from finetuning.model.config import LlamaConfig
from finetuning.model.fused import FusedBlock, can_fuse
from finetuning.model.llama import Block, Llama
from finetuning.model.lora import add_lora, is_adapter
from finetuning.parallel.shard import shard_parameters


@dataclass(frozen=True)
class Technique:
    """What is applied to the model besides the mesh."""

    lora_rank: int | None = None  # None: all weights are trained
    lora_alpha: float = 32.0
    lora_targets: tuple[str, ...] = ()
    compute_dtype: torch.dtype = torch.float32
    activation_checkpointing: bool = False
    compile: bool = False
    fuse: bool = False  # hand-written blocks where they apply: LoRA on every layer, one data-parallel rank
    fp8: bool = False  # frozen weights of fused blocks


def build_model(config: LlamaConfig, mesh: DeviceMesh, device: torch.device, technique: Technique) -> Llama:
    """The parallelised model with uninitialised weights on `device`; every process of the mesh must call it.

    Trained weights are held in float32 and computed in `compute_dtype`; frozen ones are held in `compute_dtype`.
    """
    with torch.device("meta"):
        model = Llama(config)
        if technique.lora_rank is not None:
            add_lora(model, technique.lora_rank, technique.lora_alpha, technique.lora_targets)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else technique.compute_dtype)
    blocks = [layer for layer in model.model.layers.values() if isinstance(layer, Block)]
    if technique.fuse and mesh["dp"].size() == 1 and all(can_fuse(block) for block in blocks):
        model.to_empty(device=device)
        for block in blocks:
            block.forward = _fused_forward(FusedBlock(block, fp8=technique.fp8), technique)
        return model
    shard_parameters(model, mesh["dp"], technique.compute_dtype)
    for layer in model.model.layers.values():
        # On `forward`, not on the module: the hooks of FSDP stay outside the graph and outside the recomputation.
        layer.forward = _block_forward(layer.forward, technique)
    model.to_empty(device=device)
    return model


def _block_forward(forward: Callable[..., Tensor], technique: Technique) -> Callable[..., Tensor]:
    """`forward` compiled and recomputed as asked; plain without gradients, so that evaluation never compiles."""
    trained = torch.compile(forward, fullgraph=True, dynamic=True) if technique.compile else forward

    def run(*inputs: object) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(*inputs)
        if technique.activation_checkpointing:
            return checkpoint(trained, *inputs, use_reentrant=False)
        return trained(*inputs)

    return run


def _fused_forward(block: FusedBlock, technique: Technique) -> Callable[..., Tensor]:
    def run(*inputs: Any) -> Tensor:
        if technique.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    return run


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if is_adapter(name)}


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if not is_adapter(name)}


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
