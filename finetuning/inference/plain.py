"""Answers with a key/value cache, batch by batch: the plain way, for the CPU; `finetuning.inference.engine` is tested by it."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from finetuning.model.kv_cache import CachedLlama
from finetuning.model.llama import Llama
from finetuning.model.sampling import Sampling, choose_tokens

TOKENS_AT_ONCE = 32_768  # of all prompts that go through the model together

NewToken = Callable[[int, int], None]  # number of the prompt, token


@torch.inference_mode()
def plain_answers(
    net: Llama,
    prompts: list[list[int]],
    sampling: Sampling,
    end_token_ids: tuple[int, ...],
    batch_size: int,
    told: NewToken | None = None,
) -> list[list[int]]:
    """New tokens for each prompt, without the end token."""
    answers: list[list[int]] = [[] for _ in prompts]
    for numbers in _batches([len(prompt) for prompt in prompts], batch_size):
        for number, token in _generate_batch(net, prompts, numbers, sampling, end_token_ids):
            answers[number].append(token)
            if told is not None:
                told(number, token)
    return answers


def _batches(lengths: list[int], batch_size: int) -> Iterator[list[int]]:
    """Numbers of prompts of similar length, as many as are computed at once."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: lengths[number]):
        if batch and (len(batch) == batch_size or lengths[number] * (len(batch) + 1) > TOKENS_AT_ONCE):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _generate_batch(
    net: Llama, prompts: list[list[int]], numbers: list[int], sampling: Sampling, end_token_ids: tuple[int, ...]
) -> Iterator[tuple[int, int]]:
    """Yields (number of the prompt, token) until every answer has ended."""
    longest = max(len(prompts[number]) for number in numbers)
    cached = CachedLlama(net, len(numbers), longest + sampling.max_new_tokens)
    try:
        logits_SV = cached.read_prompts([prompts[number] for number in numbers])
        for count in range(sampling.max_new_tokens):
            places = torch.tensor([len(prompts[number]) + count for number in numbers], device=logits_SV.device)
            tokens = choose_tokens(logits_SV, sampling, torch.tensor(numbers, device=logits_SV.device), places).tolist()
            going = [index for index, token in enumerate(tokens) if token not in end_token_ids]
            for index in going:
                yield numbers[index], tokens[index]
            if not going or count == sampling.max_new_tokens - 1:
                return
            if len(going) < len(numbers):
                cached.keep(going)
                numbers = [numbers[index] for index in going]
            logits_SV = cached.read_tokens(torch.tensor([tokens[index] for index in going]))
    finally:
        cached.close()


class PlainConversation:
    """Answers to prompts that grow: what a prompt has in common with the tokens before is not computed again.

    It takes over the model's attention until `close`.
    """

    def __init__(self, net: Llama, sampling: Sampling, end_token_ids: tuple[int, ...]):
        self.sampling, self.end_token_ids = sampling, end_token_ids
        self.num_positions = net.config.max_position_embeddings
        self.tokens: list[int] = []  # whose keys and values are there
        self.tokens_read = 0  # in all, for what the cache is worth
        self.cached = CachedLlama(net, 1, 0)

    @torch.inference_mode()
    def answer(self, prompt: list[int]) -> Iterator[int]:
        """New tokens, each as soon as it is there, without the end token. May be left early."""
        self.cached.make_room(len(prompt) + self.sampling.max_new_tokens)
        pairs = zip(self.tokens, prompt[:-1], strict=False)  # the last one gives the logits
        common = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(self.tokens), len(prompt) - 1))
        self.tokens = self.tokens[:common]
        logits_SV = self._read(prompt[common:])
        for left in reversed(range(self.sampling.max_new_tokens)):
            number_S, place_S = torch.tensor([[0], [len(self.tokens)]], device=logits_SV.device)
            token = int(choose_tokens(logits_SV, self.sampling, number_S, place_S))
            if token in self.end_token_ids:
                return
            yield token
            if left:
                logits_SV = self._read([token])

    def close(self) -> None:
        self.cached.close()

    def _read(self, tokens: list[int]) -> Tensor:
        self.cached.cut(len(self.tokens))  # an interrupted call may have left more
        logits_SV = self.cached.read_more(tokens) if self.tokens else self.cached.read_prompts([tokens])
        self.tokens += tokens
        self.tokens_read += len(tokens)
        return logits_SV
