"""Answers with a key/value cache: many prompts at once, greedy or sampled, token by token.

An answer depends on its prompt, its number and the seed, not on which prompts are computed beside it (up to rounding).
The sample answers of a training run are `finetuning.training.sample_answers`'s, which works in every layout.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from finetuning.data.prompts.prompt_format import PromptFormat
from finetuning.model.kv_cache import CachedLlama
from finetuning.model.llama import Llama

BATCH_SIZE = 16
TOKENS_AT_ONCE = 32_768  # of all prompts that go through the model together
REPLACEMENT = "\ufffd"  # what an unfinished character decodes to


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.0  # 0: the likeliest token
    top_p: float = 1.0  # only the likeliest tokens that together have this probability
    top_k: int = 0  # only this many of the likeliest; 0: all
    seed: int = 1234
    max_new_tokens: int = 256


NewToken = Callable[[int, int], None]  # number of the prompt, token


@torch.inference_mode()
def generate_answers(
    net: Llama,
    prompts: list[list[int]],
    sampling: Sampling,
    end_token_ids: tuple[int, ...],
    *,
    batch_size: int = BATCH_SIZE,
    told: NewToken | None = None,
) -> list[list[int]]:
    """New tokens for each prompt, without the end token.

    Args:
        told: is called with each new token, as soon as it is there.
    """
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
    generators = {number: torch.Generator().manual_seed((sampling.seed * 1_000_003 + number) % 2**63) for number in numbers}
    cached = CachedLlama(net, len(numbers), longest + sampling.max_new_tokens)
    try:
        logits_SV = cached.read_prompts([prompts[number] for number in numbers])
        for left in reversed(range(sampling.max_new_tokens)):
            tokens = choose_tokens(logits_SV, sampling, [generators[number] for number in numbers])
            going = [index for index, token in enumerate(tokens) if token not in end_token_ids]
            for index in going:
                yield numbers[index], tokens[index]
            if not going or not left:
                return
            if len(going) < len(numbers):
                cached.keep(going)
                numbers = [numbers[index] for index in going]
            logits_SV = cached.read_tokens(torch.tensor([tokens[index] for index in going]))
    finally:
        cached.close()


class Conversation:
    """Answers to prompts that grow: what a prompt has in common with the tokens before is not computed again.

    It takes over the model's attention until `close`.
    """

    def __init__(self, net: Llama, sampling: Sampling, end_token_ids: tuple[int, ...]):
        self.sampling, self.end_token_ids = sampling, end_token_ids
        self.tokens: list[int] = []  # whose keys and values are there
        self.tokens_read = 0  # in all, for what the cache is worth
        self.cached = CachedLlama(net, 1, 0)

    @torch.inference_mode()
    def answer(self, prompt: list[int]) -> Iterator[int]:
        """New tokens, each as soon as it is there, without the end token. May be left early."""
        generator = torch.Generator().manual_seed((self.sampling.seed * 1_000_003) % 2**63)
        self.cached.make_room(len(prompt) + self.sampling.max_new_tokens)
        pairs = zip(self.tokens, prompt[:-1], strict=False)  # the last one gives the logits
        common = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(self.tokens), len(prompt) - 1))
        self.tokens = self.tokens[:common]
        logits_SV = self._read(prompt[common:])
        for left in reversed(range(self.sampling.max_new_tokens)):
            (token,) = choose_tokens(logits_SV, self.sampling, [generator])
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


def choose_tokens(logits_SV: Tensor, sampling: Sampling, generators: list[torch.Generator]) -> list[int]:
    """The next token of each sequence."""
    if sampling.temperature == 0.0:
        return logits_SV.argmax(-1).tolist()
    # On the CPU in float32, so that a seed gives the same choice from the same logits everywhere.
    scaled_SV = logits_SV.float().cpu() / sampling.temperature
    chosen = []
    for scaled_V, generator in zip(scaled_SV, generators, strict=True):
        ordered_V, order_V = scaled_V.sort(descending=True)
        if sampling.top_k:
            ordered_V = ordered_V[: sampling.top_k]
        probabilities = ordered_V.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        probabilities[before >= sampling.top_p] = 0.0  # the likeliest always stays
        chosen.append(int(order_V[torch.multinomial(probabilities, 1, generator=generator)]))
    return chosen


class TextStream:
    """Turns tokens into text as they come; a character of several tokens appears when it is whole."""

    def __init__(self, prompt_format: PromptFormat):
        self.prompt_format = prompt_format
        self.tokens: list[int] = []
        self.shown = ""

    def add(self, token: int) -> str:
        """The text that is new with this token."""
        self.tokens.append(token)
        text = self.prompt_format.decode(self.tokens)
        if text.endswith(REPLACEMENT):
            return ""
        return self._new(text)

    def end(self) -> str:
        """What is left of an unfinished character."""
        return self._new(self.prompt_format.decode(self.tokens))

    def _new(self, text: str) -> str:
        new, self.shown = text[len(self.shown) :], text
        return new
