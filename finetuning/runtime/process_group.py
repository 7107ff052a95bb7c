"""How the processes that torchrun has started find each other."""

import os

import torch
import torch.distributed as dist

from finetuning.errors import RunError
from finetuning.i18n import t
from finetuning.runtime.network import choose_interface


def start_process_group(device: str) -> None:
    """Joins the processes that torchrun started; CPU tensors travel by gloo also where the model is on GPUs."""
    local_rank, num_processes = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if device == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if local_rank >= found:
            raise RunError(
                t(
                    "{host} has {found} usable GPUs, and --num_gpus asks for {asked}; see `nvidia-smi` there",
                    host=os.uname().nodename,
                    found=found,
                    asked=num_processes,
                )
            )
        torch.cuda.set_device(local_rank)
    if int(os.environ["WORLD_SIZE"]) > num_processes:
        choose_interface(os.environ, os.environ["MASTER_ADDR"])
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
