"""Builds our parallelized model from a folder inside a test process (see tests/processes.py)."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from finetuning.config.degrees import Degrees
from finetuning.config.llama import read_llama_config
from finetuning.config.strategy import Strategy, spread
from finetuning.formats.load_sharded import load_base_weights
from finetuning.formats.peft.sharded import initialize_adapters, load_adapters
from finetuning.model.attention import make_documents
from finetuning.parallel.mesh import Layout
from finetuning.parallel.parallelize import ParallelLlama, build_model
from finetuning.parallel.weights import gather_whole

CPU = torch.device("cpu")


def build(
    model_folder: Path,
    strategy: Strategy | None = None,
    adapter: Path | None = None,
    seed: int = 1234,
    degrees: Degrees | None = None,
) -> ParallelLlama:
    """The model of this process, filled from `model_folder`; every rank must call it. By default data parallel over all."""
    strategy = strategy or Strategy()
    config = read_llama_config(model_folder)
    layout = Layout("cpu", degrees or Degrees(dp_shard=dist.get_world_size()))
    model = build_model(config, layout, CPU, spread(strategy, config, layout.degrees))
    load_base_weights(model_folder, model)
    if adapter is not None:
        load_adapters(adapter, model)
    elif strategy.lora_rank is not None:
        initialize_adapters(model, seed)
    return model


def whole(tensor: Tensor) -> Tensor:
    """The tensor with all ranks' parts; every rank must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_parameters(model: ParallelLlama) -> dict[str, Tensor]:
    """Of the stages that this process holds."""
    return {name: gather_whole(model.view(name, p.data)).clone() for name, p in model.named_parameters()}


def whole_logits(model: ParallelLlama, tokens_T: Tensor) -> Tensor:
    """Logits [T, V] of one document; its length must be a multiple of what the layout asks for."""
    places = torch.arange(len(tokens_T))
    return model.logits(tokens_T, places, make_documents([len(tokens_T)]), places)
