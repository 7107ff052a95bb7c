"""Two forms of one model side by side on real prompts: the adapter beside its base, and the two merged.

Merging rounds every changed weight to the base's dtype, which moves the logits a little; anything larger is a mistake.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from finetuning.inference.generate import generate_answers
from finetuning.model.attention import make_documents
from finetuning.model.llama import Llama
from finetuning.model.sampling import Sampling

# Two ways of computing the same in float32 differ by this share of the largest logit.
FLOAT32_SHARE = 1e-4
# Rounding a weight changes it by at most half an eps of its dtype. Over a model's layers such errors add up like random
# ones: measured 0.6 to 1.4 eps of the largest logit (random models of 2 to 32 layers, bfloat16 and float16, 2026-11-24),
# while forgetting the adapter moved the logits by 60 and more.
ROUNDINGS = 8


@dataclass(frozen=True)
class Behavior:
    """What a model does with some prompts."""

    answers: list[list[int]]  # greedy
    logits: list[Tensor]  # [P, V] of each prompt at its last position and along a given answer; float32, CPU


@dataclass(frozen=True)
class Comparison:
    largest_difference: float  # of two logits
    largest_logit: float  # of the first model, absolute
    tolerance: float
    same_answers: int
    answers: int
    same_tokens: int  # likeliest tokens at the compared positions
    tokens: int

    @property
    def is_same(self) -> bool:
        return self.largest_difference <= self.tolerance


@torch.inference_mode()
def observe(
    net: Llama, prompts: list[list[int]], along: list[list[int]] | None, end_token_ids: tuple[int, ...], max_new_tokens: int
) -> Behavior:
    """Greedy answers, and logits along the answers `along`; None: along the model's own."""
    answers = generate_answers(net, prompts, Sampling(max_new_tokens=max_new_tokens), end_token_ids)
    device = net.model.embed_tokens.weight.device
    logits = []
    for prompt, answer in zip(prompts, answers if along is None else along, strict=True):
        tokens = torch.tensor(prompt + answer, device=device)
        positions = torch.arange(len(tokens), device=device)
        documents = make_documents([len(tokens)]).to(device)
        logits.append(net(tokens[None], positions[None], documents, at_S=positions[len(prompt) - 1 :])[0].float().cpu())
    return Behavior(answers, logits)


def compare(first: Behavior, second: Behavior, stored_dtypes: set[torch.dtype]) -> Comparison:
    """
    Args:
        stored_dtypes: those in which the second model's weights are stored.
    """
    pairs = list(zip(first.logits, second.logits, strict=True))
    largest = max(a.abs().max().item() for a, _ in pairs)
    coarsest = max(torch.finfo(dtype).eps for dtype in stored_dtypes)
    return Comparison(
        largest_difference=max((a - b).abs().max().item() for a, b in pairs),
        largest_logit=largest,
        tolerance=largest * max(FLOAT32_SHARE, ROUNDINGS * coarsest),
        same_answers=sum(a == b for a, b in zip(first.answers, second.answers, strict=True)),
        answers=len(first.answers),
        same_tokens=sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in pairs),
        tokens=sum(len(a) for a, _ in pairs),
    )
