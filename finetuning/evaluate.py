"""Loss and perplexity of a split, computed with the training layout."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from finetuning.data.batches import RowPlan, make_step_batch
from finetuning.data.tokenized import TokenizedSplit
from finetuning.model.llama import Llama
from finetuning.parallel.shard import release_root

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
    model: Llama, split: TokenizedSplit, plan: RowPlan, device: torch.device, data_rank: int, data_parallel_size: int
) -> Evaluation:
    """Evaluates all samples of `split`; every rank must call it and gets the same result."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    for start in range(0, len(split), SAMPLES_AT_ONCE):
        samples = np.arange(start, min(start + SAMPLES_AT_ONCE, len(split)))
        batch = make_step_batch(split, samples, 0, data_rank, data_parallel_size, plan)
        for row in batch.micro_batches:
            row = row.to(device)
            total += model(row.tokens, row.positions, row.documents, labels_BT=row.labels)
    release_root(model)
    dist.all_reduce(total)
    answer_tokens = int(split.answer_tokens.sum())
    return Evaluation(total.item() / answer_tokens, len(split), answer_tokens)
