"""The device mesh: which process holds which part. Axes, outermost first: pp, dp, cp, tp."""

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

AXES = ("pp", "dp", "cp", "tp")


def build_mesh(device_type: str, *, pp: int, dp: int, cp: int, tp: int) -> DeviceMesh:
    """The mesh over all processes; every process must call it, after the process group is up."""
    return init_device_mesh(device_type, (pp, dp, cp, tp), mesh_dim_names=AXES)
