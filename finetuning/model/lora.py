"""Low-rank adapters (LoRA, Hu et al. 2021): y = W x + (alpha / rank) B (A x), with W frozen.

Parameter names are PEFT's without its prefix: `….q_proj.lora_A.weight`, `….q_proj.lora_B.weight`; the frozen weight
keeps its own name, so base checkpoints load without renaming.
"""

import hashlib
import math

import torch
from torch import Tensor, nn

from finetuning.model.llama import Block, Llama


class LoraLinear(nn.Linear):
    """A frozen linear layer with a trainable low-rank update."""

    def __init__(self, in_features: int, out_features: int, rank: int, alpha: float):
        super().__init__(in_features, out_features, bias=False)
        self.weight.requires_grad_(False)
        self.scale = alpha / rank
        self.lora_A = nn.Linear(in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.scale * self.lora_B(self.lora_A(x))


class StretchedLinear(nn.Module):
    """DoRA (Liu et al. 2024): the outputs of a layer with adapters, each by a factor."""

    def __init__(self, inner: LoraLinear, factor_O: Tensor):
        super().__init__()
        self.inner = inner
        self.factor = nn.Buffer(factor_O.to(inner.weight.dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.factor


def add_lora(model: Llama, rank: int, alpha: float, targets: tuple[str, ...]) -> None:
    """Replaces the target linears of every block by LoraLinear and freezes all other weights, in place."""
    for layer in model.model.layers.values():
        assert isinstance(layer, Block)
        for parent in (layer.self_attn, layer.mlp):
            for name, linear in list(parent.named_children()):
                if name in targets:
                    assert isinstance(linear, nn.Linear)
                    setattr(parent, name, LoraLinear(linear.in_features, linear.out_features, rank, alpha))
    freeze_all_but_lora(model)


def freeze_all_but_lora(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter(name))


def is_adapter(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def initial_adapter(name: str, shape: torch.Size, seed: int) -> Tensor:
    """PEFT's start: A uniform within ±1/sqrt(in_features) (Kaiming with a = sqrt(5)), B zero; float32 on the CPU.

    The random stream depends on the seed and the parameter's name only, so every layout starts from the same adapters.
    """
    if ".lora_B." in name:
        return torch.zeros(shape)
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
