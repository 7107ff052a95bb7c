"""Weights and optimizer states as whole tensors that are spread over processes.

Modules compute on ordinary local tensors. To save, load or export them they are looked at as DTensors: global shape,
cut by tensor parallel first and by FSDP second, sharing the memory of the local part.
"""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from finetuning.parallel.mesh import Layout
from finetuning.parallel.tensor import tensor_dim


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a weight, gradient or state."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def global_view(name: str, tensor: Tensor, layout: Layout) -> DTensor:
    """The whole tensor that `tensor` — the weight of this name, its gradient or a moment of it — is this process's part of.

    Writing into it changes `tensor`.
    """
    dim = tensor_dim(name) if layout.degrees.tp > 1 else None
    shape = list(tensor.shape)
    if dim is not None:
        shape[dim] *= layout.degrees.tp
    sharded = Shard(0) if isinstance(tensor, DTensor) else Replicate()
    placements = (Replicate() if dim is None else Shard(dim), Replicate(), sharded)
    return DTensor.from_local(
        local_part(tensor.detach()),
        layout.weight_mesh,
        placements,
        run_check=False,
        shape=torch.Size(shape),
        stride=torch.empty(shape, device="meta").stride(),
    )


def gather_whole(view: DTensor) -> Tensor:
    """The whole tensor on every process of the stage; each of them must call it."""
    # One axis after the other: both at once does the same, with a warning (torch 2.13).
    tp, replicate, _ = view.placements
    return view.redistribute(placements=(tp, replicate, Replicate())).full_tensor()


@torch.no_grad()
def fill(view: DTensor, value: Tensor) -> None:
    """Copies this process's part of a whole value into a view; every process of the stage must call it."""
    whole = value.to(device=view.device, dtype=view.dtype)
    # Every process holds the whole value already: no broadcast. Local parts are copied, because DTensor looks through every
    # way of spreading a copy over three axes first, half a second for each shape (torch 2.13).
    part = distribute_tensor(whole, view.device_mesh, view.placements, src_data_rank=None)
    local_part(view).copy_(local_part(part))
