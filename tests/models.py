"""Builds our parallelised model from a folder inside a test process (see tests/processes.py)."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from finetuning.checkpoint.adapters import initialise_adapters, load_adapters
from finetuning.checkpoint.huggingface import load_base_weights
from finetuning.model.config import read_llama_config
from finetuning.model.llama import Llama
from finetuning.parallel.apply import Technique, build_model
from finetuning.parallel.mesh import build_mesh

CPU = torch.device("cpu")


def build(model_folder: Path, technique: Technique | None = None, adapter: Path | None = None, seed: int = 1234) -> Llama:
    """The model of this process, data parallel over all of them, filled from `model_folder`; every rank must call it."""
    technique = technique or Technique()
    mesh = build_mesh("cpu", pp=1, dp=dist.get_world_size(), cp=1, tp=1)
    model = build_model(read_llama_config(model_folder), mesh, CPU, technique)
    load_base_weights(model_folder, model)
    if adapter is not None:
        load_adapters(adapter, model)
    elif technique.lora_rank is not None:
        initialise_adapters(model, seed)
    return model


def whole(tensor: Tensor) -> Tensor:
    """The tensor with all ranks' parts; every rank must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: whole(parameter.data).clone() for name, parameter in model.named_parameters()}
