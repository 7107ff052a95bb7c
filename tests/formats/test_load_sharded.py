"""Weights are loaded once, and what is only on its way through the host leaves it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from examples.make_tiny_model import make_tiny_model
from finetuning.config.degrees import Degrees
from finetuning.config.llama import read_llama_config
from finetuning.config.settings import LORA_TARGETS
from finetuning.config.strategy import LINEAR, LOW_MEMORY, Strategy
from finetuning.formats.load_sharded import load_source
from finetuning.formats.weight_source import HuggingFaceSource
from finetuning.model.blocks.low_memory_block import LowMemoryBlock
from finetuning.model.llama import Llama
from finetuning.parallel.mesh import Layout
from finetuning.parallel.parallelize import build_model
from tests.processes import run_processes

pytestmark = pytest.mark.dist

LAYERS = 5


def blocks_on_host(model_folder: Path) -> list[int]:
    """Of how many blocks frozen weights lie on the host when each block's first row is read, and at the end."""
    config = read_llama_config(model_folder)
    strategy = Strategy(
        lora_rank=4,
        lora_alpha=8.0,
        lora_targets=LORA_TARGETS,
        blocks=LOW_MEMORY,
        sharding="replicated",
        fp8=(LINEAR,),
        compute_dtype="bfloat16",
    )
    model = build_model(config, Layout("cpu", Degrees()), torch.device("cpu"), strategy)
    (part,) = model.parts
    assert isinstance(part, Llama)
    blocks = [block for block in part.model.layers.values() if isinstance(block, LowMemoryBlock)]
    filled: set[int] = set()
    found: dict[int, int] = {}

    def held() -> int:
        return sum(any(weight.numel() for weights in blocks[index].frozen for weight in weights) for index in filled)

    class Watched(HuggingFaceSource):
        def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
            if name.startswith("model.layers."):
                index = int(name.split(".")[2])
                filled.add(index)
                found.setdefault(index, held())
            return super().read(name, start, stop)

    load_source(Watched(model_folder), model)
    return [*found.values(), held()]


def test_in_fp8_with_the_least_memory_the_host_never_holds_more_than_two_blocks(tmp_path: Path) -> None:
    make_tiny_model(
        tmp_path / "model",
        hidden_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        vocab_size=512,
    )
    (found,) = run_processes(1, blocks_on_host, tmp_path / "model")
    assert len(found) == LAYERS + 1
    assert max(found) <= 2 and found[-1] == 0
