"""One optimizer step: forward and backward over the rows of a global batch, and what must hold before weights move.

Knows nothing of Lightning. The loss is the sum over all trained tokens of all ranks, divided once by their number, so
the gradient does not depend on how the batch was laid out.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from finetuning.data.batches import StepBatch
from finetuning.errors import RunError
from finetuning.i18n import t
from finetuning.model.llama import Llama


class StepResult(NamedTuple):
    """The same on every rank."""

    loss: float  # mean over the answer tokens of the global batch
    grad_norm: float  # before clipping
    stop: bool  # some rank was asked to stop


def train_step(
    model: Llama, batch: StepBatch, update: Callable[[], object], *, clip_grad: float, device: torch.device, stop: bool
) -> StepResult:
    """Runs one optimizer step; every rank must call it.

    Args:
        update: applies the gradients; called only when loss and gradient norm are finite.
        clip_grad: largest global gradient norm; 0: no clipping.
        stop: this rank was asked to stop after the step.

    Raises:
        RunError: the loss or the gradient norm is not finite; on all ranks together, before any weight has changed.
    """
    loss_sum = backward(model, batch, device)
    shared = torch.stack((loss_sum.double(), torch.tensor(float(stop), dtype=torch.float64, device=device)))
    dist.all_reduce(shared)
    grad_norm = global_grad_norm(model.parameters())
    loss, stop_count, norm = shared[0].item() / batch.answer_tokens, shared[1].item(), grad_norm.item()
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise RunError(
            t("step {step}: the loss is {loss} and the gradient norm {norm}. The step was not applied; the last checkpoint "
              "is untouched. Lower --lr, keep clipping on (--clip_grad 1.0), and look at the samples of this step",
              step=batch.step + 1, loss=loss, norm=norm)
        )  # fmt: skip
    if clip_grad > 0:
        _scale_gradients(model.parameters(), min(1.0, clip_grad / (norm + 1e-6)))
    update()
    return StepResult(loss, norm, stop_count > 0)


def backward(model: Llama, batch: StepBatch, device: torch.device) -> Tensor:
    """Adds the gradients of this rank's rows; returns its summed loss (float32 scalar)."""
    loss_sum = torch.zeros((), device=device)
    last = len(batch.micro_batches) - 1
    alone = dist.get_world_size() == 1  # nothing to communicate: reduce at once, so that only shards accumulate
    for index, row in enumerate(batch.micro_batches):
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(alone or index == last)
        row = row.to(device)
        loss = model(row.tokens, row.positions, row.documents, labels_BT=row.labels)
        (loss / batch.answer_tokens).backward()
        loss_sum += loss.detach()
    return loss_sum


@torch.no_grad()
def global_grad_norm(parameters: Iterable[torch.nn.Parameter]) -> Tensor:
    """2-norm of all gradients over all ranks, float32 scalar; every rank must call it."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


@torch.no_grad()
def _scale_gradients(parameters: Iterable[torch.nn.Parameter], factor: float) -> None:
    if factor < 1.0:
        torch._foreach_mul_([_local(p.grad) for p in parameters if p.grad is not None], factor)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
