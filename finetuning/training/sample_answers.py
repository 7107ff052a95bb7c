"""Greedy answers from the model as it is trained, whatever its layout.

All unfinished prompts go through the model as documents of one packed row, once per new token. There is no key/value
cache: a few sample answers take seconds, and the path is exactly the one that is trained.
"""

from collections.abc import Callable

import torch

from finetuning.model.attention import make_documents
from finetuning.parallel.parallelize import ParallelLlama


@torch.no_grad()
def generate(
    model: ParallelLlama,
    prompts: list[list[int]],
    *,
    end_token_ids: tuple[int, ...],
    max_new_tokens: int,
    beat: Callable[[], object] = lambda: None,
) -> list[list[int]]:
    """New tokens for each prompt, without the end token; every rank must call it with the same prompts.

    Calls `beat` after each token.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    open_answers = list(range(len(prompts)))
    for _ in range(max_new_tokens):
        if not open_answers:
            break
        rows = [prompts[index] + answers[index] for index in open_answers]
        lengths = [len(row) for row in rows]
        last = torch.tensor(lengths).cumsum(0).sub(1)
        padding = -sum(lengths) % model.pack_multiple
        if padding:  # a document of its own, which nothing looks at
            rows, lengths = [*rows, [0] * padding], [*lengths, padding]
        tokens = torch.tensor([token for row in rows for token in row])
        positions = torch.cat([torch.arange(length) for length in lengths])
        chosen = model.logits(tokens, positions, make_documents(lengths), last).argmax(-1).tolist()
        beat()
        for index, token in zip(list(open_answers), chosen, strict=True):
            if token in end_token_ids:
                open_answers.remove(index)
            else:
                answers[index].append(token)
    model.release()
    return answers
