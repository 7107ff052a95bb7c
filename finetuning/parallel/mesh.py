"""The device mesh: which process holds which part.

Axes, outermost first: pp (pipeline stages), dp_replicate (whole copies), dp_shard (shards of weights and optimizer), cp
(parts of a sequence), tp (parts of a layer). Ranks beside each other share a tp group, so that its many messages stay
inside one machine. Example: 8 processes as pp 2, dp_shard 2, tp 2: rank 5 is stage 1, data rank 0, tensor rank 1.
"""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from finetuning.config.degrees import Degrees

AXES = ("pp", "dp_replicate", "dp_shard", "cp", "tp")


class Layout:
    """The meshes of a run and this process's place in them."""

    def __init__(self, device_type: str, degrees: Degrees):
        """Every process must call it, after the process group is up."""
        self.degrees = degrees
        sizes = (degrees.pp, degrees.dp_replicate, degrees.dp_shard, degrees.cp, degrees.tp)
        self.mesh = init_device_mesh(device_type, sizes, mesh_dim_names=AXES)
        # Context-parallel ranks hold the same weights, so sharding runs over dp_shard and cp as one axis. A weight is cut
        # by tp first and by that axis second, which is the order of the axes of this mesh.
        ranks = torch.arange(degrees.world_size).view(degrees.pp, degrees.dp_replicate, -1, degrees.tp).permute(0, 3, 1, 2)
        # Through one dimension and back: `contiguous` leaves odd strides on axes of one rank, which torch 2.11 refuses.
        ranks = ranks.reshape(-1).view(ranks.shape)
        self.storage = DeviceMesh(device_type, ranks, mesh_dim_names=("pp", "tp", "dp_replicate", "shard"))
        self.weight_mesh = self.storage["tp", "dp_replicate", "shard"]  # what one weight of this stage is spread over

    @property
    def pp_rank(self) -> int:
        return self.mesh.get_local_rank("pp")

    @property
    def cp_rank(self) -> int:
        return self.mesh.get_local_rank("cp")

    @property
    def tp_rank(self) -> int:
        return self.mesh.get_local_rank("tp")

    @property
    def replicate_rank(self) -> int:
        return self.mesh.get_local_rank("dp_replicate")

    @property
    def data_rank(self) -> int:
        """Which share of a global batch this process works on."""
        return self.replicate_rank * self.degrees.dp_shard + self.mesh.get_local_rank("dp_shard")

    def group(self, axis: str) -> dist.ProcessGroup:
        return self.mesh.get_group(axis)

    def sharding_mesh(self) -> DeviceMesh:
        """For FSDP: one axis of shards, or shards inside copies."""
        return self.storage["dp_replicate", "shard"] if self.degrees.dp_replicate > 1 else self.storage["shard"]
