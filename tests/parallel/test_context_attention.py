"""Attention of context parallel alone, against a masked softmax: on the CPU, and with the flash kernels on one GPU.

The GPU is shared by both processes, which NCCL does not allow: messages go through the CPU by gloo.
"""

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from finetuning.config.degrees import Degrees
from finetuning.config.llama import LlamaConfig
from finetuning.config.strategy import ContextPlan, plan_context
from finetuning.data.batches.global_batch import MicroBatch
from finetuning.model.attention import make_documents
from finetuning.model.llama import Attention, Llama
from finetuning.parallel import collectives
from finetuning.parallel.context import (
    PieceDocuments,
    apply_context_parallel,
    cut_row,
    piece_attention,
)
from finetuning.parallel.mesh import Layout
from tests.model.test_attention import masked_softmax_attention, random_inputs
from tests.processes import run_processes

LENGTHS = [100, 1, 150, 2, 131]  # documents end inside pieces, and two pieces have one document
LENGTH, HEAD_DIM = sum(LENGTHS), 64

ON_CPU = pytest.param("cpu", torch.float32, id="cpu", marks=pytest.mark.dist)
ON_GPU = pytest.param(
    "cuda",
    torch.bfloat16,
    id="gpu",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")],
)


@pytest.mark.parametrize(("device", "dtype"), [ON_CPU, ON_GPU])
@pytest.mark.parametrize("heads", [(8, 2), (8, 1), (3, 1)], ids=["exchanged", "repeated", "gathered"])
def test_two_processes_attend_to_whole_documents(device: str, dtype: torch.dtype, heads: tuple[int, int]) -> None:
    inputs = random_inputs(LENGTH, *heads, size=HEAD_DIM)
    found = [torch.zeros_like(inputs[0]), *(torch.zeros_like(x) for x in inputs)]
    for places, *values in run_processes(2, attend_in_two_parts, device, dtype, heads):
        for whole, part in zip(found, values, strict=True):
            whole[places] += part
    assert_like_masked_softmax(found, inputs, dtype)


@pytest.mark.parametrize(("device", "dtype"), [ON_CPU, ON_GPU])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_pieces_of_a_row_attend_to_whole_documents(device: str, dtype: torch.dtype, size: int) -> None:
    plan = ContextPlan(size, repeat=None)
    inputs = random_inputs(LENGTH, 3, 1, size=HEAD_DIM)
    q, k, v = (x.detach().to(device, dtype).requires_grad_() for x in inputs)
    out = torch.zeros_like(q)
    for rank in range(size):
        part = cut_row(whole_row(), plan, rank)
        documents = part.documents
        assert isinstance(documents, PieceDocuments)
        boundaries = documents.to(torch.device(device))
        for places, *where in zip(part.tokens[0].chunk(2), *boundaries, strict=True):
            out = out.index_copy(0, places.to(device), piece_attention(q[places.to(device)], k, v, *where))
    out.float().square().sum().backward()
    assert_like_masked_softmax([out.detach(), q.grad, k.grad, v.grad], inputs, dtype)


def attend_in_two_parts(device: str, dtype: torch.dtype, heads: tuple[int, int]) -> tuple[Tensor, ...]:
    """Places of this process, its part of the output, and the gradients of its queries, keys and values."""
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        head_dim=HEAD_DIM,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        rope_scaling=None,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=False,
        dtype="float32",
    )
    plan = plan_context(config, 2, 1)
    assert (plan.repeat is None) == (heads[0] % 2 == 1)
    model, layout = Llama(config), Layout("cpu", Degrees(cp=2))
    apply_context_parallel(model, layout, plan)
    row = cut_row(whole_row(), plan, layout.cp_rank)
    places = row.tokens[0]
    inputs = [x.detach()[places].to(device, dtype).requires_grad_() for x in random_inputs(LENGTH, *heads, size=HEAD_DIM)]
    attention = model.model.layers["0"].self_attn
    assert isinstance(attention, Attention)
    with through_the_cpu():
        out = attention.attend(*inputs, row.documents.to(torch.device(device)))
        out.float().square().sum().backward()
    return places, *(x.float().cpu() for x in (out.detach(), *(x.grad for x in inputs)))


def through_the_cpu() -> Any:
    return mock.patch.multiple(
        collectives,
        _all_gather=staged(collectives._all_gather),
        _reduce_scatter=staged(collectives._reduce_scatter),
        dist=mock.Mock(wraps=dist, all_to_all_single=staged(dist.all_to_all_single)),
    )


def staged(collective: Callable[..., object]) -> Callable[..., None]:
    def run(output: Tensor, given: Tensor, *arguments: Any, **options: Any) -> None:
        on_cpu = torch.empty_like(output, device="cpu")
        collective(on_cpu, given.cpu(), *arguments, **options)
        output.copy_(on_cpu)

    return run


def whole_row() -> MicroBatch:
    places = torch.arange(LENGTH)[None]
    return MicroBatch(places, places, places, make_documents(LENGTHS), LENGTH)


def assert_like_masked_softmax(found: list[Tensor], inputs: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    """Output, and gradients of its sum of squares."""
    copies = [x.detach().to(dtype).double().requires_grad_() for x in inputs]
    expected = masked_softmax_attention(*copies, LENGTHS)
    expected.square().sum().backward()
    # bfloat16 keeps 8 bits, and the errors of single elements are independent; float32 keeps 24.
    limit = 0.01 if dtype == torch.bfloat16 else 1e-6
    for value, reference in zip(found, [expected.detach(), *(copy.grad for copy in copies)], strict=True):
        assert (value.double().cpu() - reference).norm() < limit * (reference.norm() + expected.detach().norm())
