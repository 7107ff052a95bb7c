"""Loss and perplexity of a split, computed with the training layout."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from finetuning.config.strategy import PackPlan
from finetuning.data.batches.global_batch import make_step_batch
from finetuning.data.tokens.tokenized import Split
from finetuning.parallel.parallelize import ParallelLlama

SAMPLES_AT_ONCE = 256


@dataclass(frozen=True)
class Evaluation:
    loss: float  # mean cross-entropy of the answer tokens, natural logarithm
    samples: int
    answer_tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))  # e^709 is the largest float


@torch.no_grad()
def evaluate(
    model: ParallelLlama,
    split: Split,
    plan: PackPlan,
    beat: Callable[[], object] = lambda: None,
    leaves: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Evaluates all samples of `split`; every rank must call it and gets the same result.

    Args:
        beat: is called after each row.
        leaves: is asked after each row whether all ranks give it up; it must answer the same on each. Then the result is None.
    """
    total = torch.zeros((), dtype=torch.float64, device=model.device)
    layout = model.layout
    for start in range(0, len(split), SAMPLES_AT_ONCE):
        samples = np.arange(start, min(start + SAMPLES_AT_ONCE, len(split)))
        batch = make_step_batch(split, samples, 0, layout.data_rank, layout.degrees.data_parallel, plan)
        for row in batch.micro_batches:
            total += model.loss_sum(row)
            beat()
            if leaves():
                model.release()
                return None
    model.release()
    dist.all_reduce(total)
    answer_tokens = int(split.answer_tokens.sum())
    return Evaluation(total.item() / answer_tokens, len(split), answer_tokens)
