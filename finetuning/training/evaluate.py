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
GROUPS = 16  # of samples; what their losses differ by tells the standard error, the same in every layout


@dataclass(frozen=True)
class Evaluation:
    loss: float  # mean cross-entropy of the answer tokens, natural logarithm
    samples: int
    answer_tokens: int
    error: float | None = None  # standard error of the loss, as the samples are a draw; None: of a single one

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
    num_groups = max(min(GROUPS, len(split)), -(-len(split) // SAMPLES_AT_ONCE))
    groups = [np.arange(first, len(split), num_groups) for first in range(num_groups)]
    tokens = [int(split.answer_tokens[samples].sum()) for samples in groups]
    sums = torch.zeros(num_groups, dtype=torch.float64, device=model.device)
    layout = model.layout
    for group, samples in enumerate(groups):
        if tokens[group] == 0:
            continue
        batch = make_step_batch(split, samples, 0, layout.data_rank, layout.degrees.data_parallel, plan)
        for row in batch.micro_batches:
            sums[group] += model.loss_sum(row)
            beat()
            if leaves():
                model.release()
                return None
    model.release()
    dist.all_reduce(sums)
    loss = sums.sum().item() / sum(tokens)
    return Evaluation(loss, len(split), sum(tokens), standard_error(sums.tolist(), tokens))


def standard_error(sums: list[float], tokens: list[int]) -> float | None:
    """Of the mean loss of all tokens, from groups of samples (a ratio estimate: both sums and tokens vary); None: one group.

    Example: two groups of 10 tokens with sums 8 and 12: the mean is 1.0, their own means 0.8 and 1.2, the error 0.2.
    """
    count, mean = len(sums), sum(sums) / sum(tokens)
    if count < 2:
        return None
    squares = sum((part - mean * number) ** 2 for part, number in zip(sums, tokens, strict=True))
    return math.sqrt(count / (count - 1) * squares) / sum(tokens)
