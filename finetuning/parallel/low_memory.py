"""Gives a decoder with LoRA the form that needs the least memory on one GPU: where its weights lie, and which blocks it has."""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from finetuning.model.blocks.activation_offload import OffloadedEmbedding, OffloadStore
from finetuning.model.blocks.low_memory_block import LowMemoryBlock
from finetuning.model.llama import Block, Llama


def build_low_memory(model: Llama, device: torch.device, *, fp8: bool) -> None:
    """Makes room for the weights of a model that was built without memory, and puts other blocks in the place of its own.

    The embedding stays on the host, unless it is the head as well. With fp8, so do a block's frozen matrices until they are
    loaded: the GPU never holds more than it will (see `loaded_one_by_one`), and the host not more than two blocks.
    """
    decoder = model.model
    table = decoder.embed_tokens.weight
    if model.config.tie_word_embeddings:
        decoder.embed_tokens.to_empty(device=device)
    else:
        decoder.embed_tokens = OffloadedEmbedding(table.shape, table.dtype, pinned=device.type == "cuda")  # type: ignore[assignment]
    decoder.norm.to_empty(device=device)
    model.lm_head.to_empty(device=device)
    store = OffloadStore(len(decoder.layers))
    for index, (name, block) in enumerate(decoder.layers.items()):
        assert isinstance(block, Block)
        _make_room(block, device, torch.device("cpu") if fp8 else device)
        decoder.layers[name] = LowMemoryBlock(block, store, index, fp8=fp8)


def loaded_one_by_one(model: Llama) -> Iterator[tuple[str, Callable[[], object]]]:
    """How the names of a block's weights begin, and what to call when they are loaded: with fp8, they then move to the GPU."""
    for name, block in model.model.layers.items():
        if isinstance(block, LowMemoryBlock):
            yield f"model.layers.{name}.", block.weights


def _make_room(block: Block, device: torch.device, device_of_frozen_matrices: torch.device) -> None:
    for module in block.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            is_frozen_matrix = parameter.ndim > 1 and not parameter.requires_grad
            room = torch.empty_like(parameter, device=device_of_frozen_matrices if is_frozen_matrix else device)
            setattr(module, name, nn.Parameter(room, requires_grad=parameter.requires_grad))
