"""Weights and optimizer states as whole tensors that are spread over processes.

Modules compute on ordinary local tensors. To save, load or export them they are looked at as DTensors: global shape,
cut by tensor parallel first and by FSDP second, sharing the memory of the local part.
"""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from finetuning.parallel.mesh import Layout
from finetuning.parallel.tensor import tensor_dim


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a weight, gradient or state."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def global_view(name: str, tensor: Tensor, layout: Layout) -> DTensor:
    """The whole tensor that `tensor` — the weight of this name, its gradient or a moment of it — is this process's part of.

    Writing into it changes `tensor`. `full_tensor()` gives the whole; every process of the stage must call that.
    """
    dim = tensor_dim(name) if layout.degrees.tp > 1 else None
    shape = list(tensor.shape)
    if dim is not None:
        shape[dim] *= layout.degrees.tp
    sharded = Shard(0) if isinstance(tensor, DTensor) else Replicate()
    placements = (Replicate() if dim is None else Shard(dim), Replicate(), sharded)
    return DTensor.from_local(
        local_part(tensor.detach()), layout.weight_mesh(), placements, run_check=False, shape=torch.Size(shape),
        stride=torch.empty(shape, device="meta").stride(),
    )  # fmt: skip
