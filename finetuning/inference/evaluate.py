"""Loss of each sample under a model in one process, and its answers with their scores.

The loss of all samples together is that of training: summed over all answer tokens, each by its weight, and divided once by the
sum of these.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finetuning.data.prompts.prompt_format import PromptFormat
from finetuning.data.reading.records import Sample
from finetuning.model.attention import make_documents
from finetuning.model.llama import Llama

TOKENS_PER_ROW = 4096
LOGITS_AT_ONCE = 1024  # positions


@dataclass(frozen=True)
class SampleLoss:
    line: int  # of the data file
    answer_tokens: int
    loss_sum: float  # natural logarithm
    weight: float  # of its answer tokens together: their number, where none has a weight of its own

    @property
    def loss(self) -> float:
        return self.loss_sum / self.weight

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))  # e^709 is the largest float


def mean_loss(losses: list[SampleLoss]) -> float:
    """Of all answer tokens together."""
    return math.fsum(item.loss_sum for item in losses) / math.fsum(item.weight for item in losses)


@torch.inference_mode()
def sample_losses(net: Llama, prompt_format: PromptFormat, samples: list[Sample], device: torch.device) -> list[SampleLoss]:
    """The loss of each sample, in the order of the samples."""
    encoded = prompt_format.encode_all(samples)
    found: list[SampleLoss | None] = [None] * len(samples)
    for numbers in _rows([len(tokens) for tokens, _ in encoded]):
        row = [encoded[number] for number in numbers]
        lengths = [len(tokens) - 1 for tokens, _ in row]  # the last token of a sample predicts nothing
        tokens, labels = (
            torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(device)
            for parts in (
                [tokens[:-1] for tokens, _ in row],
                [tokens[1:] for tokens, _ in row],
            )
        )
        trained = torch.from_numpy(np.concatenate([trained[1:] for _, trained in row])).to(device)
        weights = torch.from_numpy(
            np.concatenate([prompt_format.weights(samples[n], encoded[n][1])[1:] for n in numbers]).astype(np.float64)
        )
        positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
        hidden = net.model(tokens[None], positions[None], make_documents(lengths).to(device))[0, trained]
        losses = _token_losses(net, hidden, labels[trained]).double().cpu()
        weights = weights[trained.cpu()]
        counts = [int(part.sum()) for part in trained.cpu().split(lengths)]
        for number, part, each in zip(numbers, losses.split(counts), weights.split(counts), strict=True):
            found[number] = SampleLoss(samples[number].line, len(part), (part * each).sum().item(), each.sum().item())
    return [item for item in found if item is not None]


def _token_losses(net: Llama, hidden_TD: Tensor, labels_T: Tensor) -> Tensor:
    weight = net.model.embed_tokens.weight if net.config.tie_word_embeddings else net.lm_head.weight
    parts = zip(hidden_TD.split(LOGITS_AT_ONCE), labels_T.split(LOGITS_AT_ONCE), strict=True)
    return torch.cat([F.cross_entropy(F.linear(h, weight).float(), label, reduction="none") for h, label in parts])


def _rows(lengths: list[int]) -> list[list[int]]:
    """Numbers of the samples that share a row, short ones first."""
    rows: list[list[int]] = [[]]
    filled = 0
    for number in sorted(range(len(lengths)), key=lambda number: lengths[number]):
        if rows[-1] and filled + lengths[number] > TOKENS_PER_ROW:
            rows.append([])
            filled = 0
        rows[-1].append(number)
        filled += lengths[number]
    return rows
