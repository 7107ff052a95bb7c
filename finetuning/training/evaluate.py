"""Loss and perplexity of a split, computed with the training layout."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from finetuning.config.strategy import PackPlan
from finetuning.data.batches.global_batch import make_step_batch
from finetuning.data.tokens.tokenized import MixedSplit, Split
from finetuning.parallel.parallelize import ParallelLlama

SAMPLES_AT_ONCE = 256
GROUPS = 16  # of samples; what their losses differ by tells the standard error, the same in every layout


@dataclass(frozen=True)
class Evaluation:
    loss: float  # mean cross-entropy of the answer tokens, natural logarithm
    samples: int
    answer_tokens: int
    error: float | None = None  # standard error of the loss, as the samples are a draw; None: of a single one
    by_source: Mapping[str, "Evaluation"] = field(default_factory=dict)  # of a mixture

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))  # e^709 is the largest float

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"loss": self.loss, "samples": self.samples, "answer_tokens": self.answer_tokens}
        found |= {"error": self.error, "perplexity": self.perplexity}
        return found | ({"sources": {name: each.as_json() for name, each in self.by_source.items()}} if self.by_source else {})


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
    if not isinstance(split, MixedSplit):
        return _evaluate_one(model, split, plan, beat, leaves)
    found: list[Evaluation] = []
    for source in split.sources:
        one = _evaluate_one(model, source, plan, beat, leaves)
        if one is None:
            return None
        found.append(one)
    return together(split.names, found, _importance(split))


def together(names: Sequence[str], found: Sequence[Evaluation], importance: Sequence[float]) -> Evaluation:
    """The evaluation of a mixture: what a sample of the mixture loses, however many samples a source holds out.

    Args:
        importance: of each source, answer tokens (or their weights) that it has in a sample of the mixture.

    Example: shares 3 and 1 of samples with 10 and 10 answer tokens, losses 1.0 and 2.0 -> 1.25.
    """
    shares = [each / sum(importance) for each in importance]
    loss = sum(share * each.loss for share, each in zip(shares, found, strict=True))
    errors = [share * each.error for share, each in zip(shares, found, strict=True) if each.error is not None]
    error = math.hypot(*errors) if errors else None  # that of a single sample is not known
    samples, tokens = sum(each.samples for each in found), sum(each.answer_tokens for each in found)
    return Evaluation(loss, samples, tokens, error, dict(zip(names, found, strict=True)))


def _importance(split: MixedSplit) -> list[float]:
    return [
        part * float(source.answer_weights.sum()) / len(source)
        for part, source in zip(split.shares.parts, split.sources, strict=True)
    ]


def _evaluate_one(
    model: ParallelLlama, split: Split, plan: PackPlan, beat: Callable[[], object], leaves: Callable[[], bool]
) -> Evaluation | None:
    num_groups = max(min(GROUPS, len(split)), -(-len(split) // SAMPLES_AT_ONCE))
    groups = [np.arange(first, len(split), num_groups) for first in range(num_groups)]
    weights = [float(split.answer_weights[samples].sum()) for samples in groups]
    sums = torch.zeros(num_groups, dtype=torch.float64, device=model.device)
    layout = model.layout
    for group, samples in enumerate(groups):
        if weights[group] == 0:
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
    loss = sums.sum().item() / sum(weights)
    return Evaluation(loss, len(split), int(split.answer_tokens.sum()), standard_error(sums.tolist(), weights))


def standard_error(sums: Sequence[float], tokens: Sequence[float]) -> float | None:
    """Of the mean loss of all tokens, from groups of samples (a ratio estimate: both sums and tokens vary); None: one group.

    Example: two groups of 10 tokens with sums 8 and 12: the mean is 1.0, their own means 0.8 and 1.2, the error 0.2.
    """
    count, mean = len(sums), sum(sums) / sum(tokens)
    if count < 2:
        return None
    squares = sum((part - mean * number) ** 2 for part, number in zip(sums, tokens, strict=True))
    return math.sqrt(count / (count - 1) * squares) / sum(tokens)
