"""How often torch.compile, Triton or FlashAttention-4 compiled something: none of it should happen after warm-up."""

import sys
from typing import Self

import torch


class CompilationCounter:
    """Counts compilations in this process from its construction on; one at a time."""

    def __init__(self) -> None:
        self.triton_kernels = 0
        self.before = _graphs(), _flash_4_kernels()

    def __enter__(self) -> Self:
        if torch.cuda.is_available():
            from triton import knobs

            knobs.runtime.jit_post_compile_hook = self._count
        return self

    def __exit__(self, *error: object) -> None:
        if torch.cuda.is_available():
            from triton import knobs

            knobs.runtime.jit_post_compile_hook = None

    def total(self) -> int:
        """Graphs of torch.compile, variants of our Triton kernels, variants of FlashAttention-4; also those found on disk."""
        graphs, flash_4 = self.before
        return self.triton_kernels + _graphs() - graphs + _flash_4_kernels() - flash_4

    def _count(self, **facts: object) -> None:
        self.triton_kernels += 1


def _graphs() -> int:
    """Times that torch.compile has compiled something, a first time or again."""
    return torch._dynamo.utils.counters["frames"]["total"]


def _flash_4_kernels() -> int:
    interface = sys.modules.get("flash_attn.cute.interface")
    functions = [] if interface is None else [value for value in vars(interface).values() if hasattr(value, "compile_cache")]
    return sum(len(function.compile_cache.cache) for function in functions)
