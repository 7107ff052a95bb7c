"""Runs many layouts in one group of processes: starting processes costs more than a tiny training step."""

import functools
import traceback
from dataclasses import dataclass, replace
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from finetuning.config.degrees import Degrees
from finetuning.config.llama import LlamaConfig
from finetuning.config.settings import LORA_TARGETS
from finetuning.config.stages import stage_indices
from finetuning.config.strategy import COMPILED, Strategy
from finetuning.data.batches.global_batch import MicroBatch
from finetuning.model import llama
from finetuning.model.attention import Documents
from finetuning.parallel.mesh import Layout
from finetuning.parallel.selftest import Comparison, compare, random_rows, tiny_config

CPU = torch.device("cpu")
NUM_ROWS, LENGTH = 8, 64

FULL = Strategy()
LORA = Strategy(lora_rank=3, lora_alpha=6.0, lora_targets=LORA_TARGETS, sharding="replicated")  # 3 is divided by nothing


@dataclass(frozen=True)
class Case:
    degrees: Degrees
    strategy: Strategy = FULL
    tied: bool = False
    heads: tuple[int, int] | None = None  # query, key/value; None: enough for every degree

    def config(self) -> LlamaConfig:
        stages_per_rank = len(stage_indices(self.strategy.pipeline_schedule, self.degrees.pp, 0))
        config = tiny_config(self.degrees, stages_per_rank=stages_per_rank, tied=self.tied)
        if self.heads is None:
            return config
        return replace(config, num_attention_heads=self.heads[0], num_key_value_heads=self.heads[1])


def compare_all(cases: list[Case]) -> list[Comparison | str | None]:
    """Each case against one process: the comparison on rank 0, None on other ranks, or the traceback where it failed."""
    results: list[Comparison | str | None] = []
    for case in cases:
        try:
            assert case.degrees.world_size == dist.get_world_size()
            config = case.config()
            layout = Layout("cpu", case.degrees)
            rows = random_rows(config, NUM_ROWS, LENGTH)
            if case.strategy.blocks == COMPILED:
                results.append(compare_compiled(config, case.strategy, layout, rows))
            else:
                results.append(compare(config, case.strategy, layout, rows, CPU))
        except Exception:  # noqa: BLE001 - the test of this case shows it
            results.append(traceback.format_exc())
    return results


def compare_compiled(config: LlamaConfig, strategy: Strategy, layout: Layout, rows: list[MicroBatch]) -> Comparison | None:
    """Traced forward and backward, as ever, but run without generated code, which takes minutes to compile on a CPU."""
    # Attention on the CPU reads lengths from tensors, which the compiler cannot follow.
    with (
        mock.patch.object(llama, "document_attention", opaque_attention),
        mock.patch.object(torch, "compile", functools.partial(torch.compile, backend="aot_eager")),
    ):
        return compare(config, strategy, layout, rows, CPU)


def opaque_attention(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, documents: Documents) -> Tensor:
    """Attention behind an operator, as the flash kernel is on a GPU; written out, because an operator has no autograd."""
    out: Tensor = torch.ops.finetuning_tests.attention(q_TNH, k_TKH, v_TKH, documents.boundaries, documents.extent)
    return out


@torch.library.custom_op("finetuning_tests::attention", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor, extent: Tensor) -> Tensor:
    weights = _attention_weights(q, k, boundaries, extent)
    return torch.einsum("nts,snh->tnh", weights, _repeated(v, q)).contiguous()


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor, extent: Tensor) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


@torch.library.custom_op("finetuning_tests::attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor, extent: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    weights, scale = _attention_weights(q, k, boundaries, extent), q.shape[-1] ** -0.5
    grad_v = torch.einsum("nts,tnh->snh", weights, grad)
    grad_weights = torch.einsum("tnh,snh->nts", grad, _repeated(v, q))
    grad_scores = weights * (grad_weights - (grad_weights * weights).sum(-1, keepdim=True)) * scale
    grad_q = torch.einsum("nts,snh->tnh", grad_scores, _repeated(k, q))
    grad_k = torch.einsum("nts,tnh->snh", grad_scores, q)
    return grad_q.contiguous(), _folded(grad_k, k), _folded(grad_v, v)


@_attention_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor, extent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))  # type: ignore[return-value]


_attention.register_autograd(
    lambda ctx, grad: (*_attention_backward(grad, *ctx.saved_tensors), None, None),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def _attention_weights(q: Tensor, k: Tensor, boundaries: Tensor, extent: Tensor) -> Tensor:
    lengths = boundaries[: int(extent[0]) + 1].diff()
    document = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    visible = (document[:, None] == document[None, :]).tril()
    scores = torch.einsum("tnh,snh->nts", q, _repeated(k, q)) * q.shape[-1] ** -0.5
    return scores.masked_fill(~visible, float("-inf")).softmax(-1)


def _repeated(x: Tensor, q: Tensor) -> Tensor:
    return x.repeat_interleave(q.shape[1] // x.shape[1], 1)


def _folded(grad: Tensor, x: Tensor) -> Tensor:
    return grad.unflatten(1, (x.shape[1], -1)).sum(2).contiguous()
