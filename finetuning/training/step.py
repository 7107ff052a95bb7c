"""One optimizer step: forward and backward over the rows of a global batch, and what must hold before weights move.

Knows nothing of Lightning. The loss is the sum over all trained tokens of all ranks, divided once by their number (with
weights: by the sum of these), so the gradient does not depend on how the batch was laid out.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from finetuning.data.batches.global_batch import StepBatch
from finetuning.errors import RunError
from finetuning.i18n import t
from finetuning.parallel.parallelize import ParallelLlama


class StepResult(NamedTuple):
    """The same on every rank."""

    loss: float  # mean over the answer tokens of the global batch, by their weights
    grad_norm: float  # before clipping
    stop: bool  # some rank was asked to stop
    save: bool  # some rank finds that a checkpoint is due
    source_losses: list[float | None] | None = None  # of each source of a mixture; None: it has nothing in this step


def train_step(
    model: ParallelLlama,
    batch: StepBatch,
    update: Callable[[], object],
    *,
    scale: Callable[[Tensor], object],
    clip_grad: float,
    stop: bool,
    save: bool = False,
    meanwhile: Callable[[], object] = lambda: None,
    has_checkpoint: bool = False,
) -> StepResult:
    """Runs one optimizer step; every rank must call it.

    Args:
        update: applies the gradients; called only when loss and gradient norm are finite.
        scale: multiplies all gradients by a number (on the device) before that, see
            `finetuning.training.optimizer.gradient_scaler`; called before the number is known to be finite.
        clip_grad: largest global gradient norm; 0: no clipping.
        stop: this rank was asked to stop after the step.
        save: this rank finds that a checkpoint is due.
        meanwhile: work for the CPU, see `ParallelLlama.backward`.
        has_checkpoint: of an earlier step, which the error can point to.

    Raises:
        RunError: the loss or the gradient norm is not finite; on all ranks together, before any weight has changed.
    """
    loss_sum = model.backward(batch, meanwhile)
    # One message for all that ranks have to agree on. The first stage of a pipeline has no loss of its own.
    asked = [torch.full((), float(wish), dtype=torch.float64, device=model.device) for wish in (stop, save)]
    by_source = () if model.loss_by_source is None else model.loss_by_source.unbind()
    shared = torch.stack((loss_sum.double(), model.squared_gradient_norm(), *asked, *by_source))
    dist.all_reduce(shared)
    if clip_grad > 0:
        scale((clip_grad / (shared[1].sqrt() + 1e-6)).clamp(max=1.0))
    # The only place where the CPU waits for the device, which has all the work up to here in its queue.
    loss_total, squared_norm, stop_count, save_count, *of_sources = shared.tolist()
    loss, norm = loss_total / batch.divisor, math.sqrt(squared_norm) if math.isfinite(squared_norm) else math.nan
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise RunError(
            t(
                "step {step}: the loss is {loss} and the gradient norm {norm}. The step was not applied{checkpoint}. "
                "Lower --lr, keep clipping on (--clip_grad 1.0), and look at the samples of this step",
                step=batch.step + 1,
                loss=loss,
                norm=norm,
                checkpoint=t("; the last checkpoint is untouched") if has_checkpoint else "",
            )
        )
    update()
    if model.trains_all:
        model.refresh_copies()
    source_losses = None
    if batch.source_divisors is not None:
        divided = zip(of_sources, batch.source_divisors.tolist(), strict=True)
        source_losses = [total / divisor if divisor else None for total, divisor in divided]
    return StepResult(loss, norm, stop_count > 0, save_count > 0, source_losses)
