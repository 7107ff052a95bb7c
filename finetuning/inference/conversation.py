"""Answers to prompts that grow: what a prompt has in common with the tokens before is not computed again."""

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from finetuning.inference.engine import PROMPT_TOKENS, affordable_pages
from finetuning.inference.slots import NewTokens, Occupant, Slots
from finetuning.model.llama import Llama
from finetuning.model.paged_cache import PAGE, PagedCache, PromptReader, num_pages
from finetuning.model.sampling import Sampling


class Conversation:
    """The only sequence of a model, in one slot. It takes over the model's attention until `close`."""

    def __init__(self, net: Llama, sampling: Sampling, end_token_ids: tuple[int, ...]):
        weight = net.model.embed_tokens.weight
        self.sampling, self.end_token_ids = sampling, end_token_ids
        self.tokens: list[int] = []  # whose keys and values are there
        self.tokens_read = 0  # of prompts, for what the cache is worth
        most = net.config.max_position_embeddings
        self.num_positions = min(most, PAGE * affordable_pages(net.config, weight, PAGE, min(most, PROMPT_TOKENS), 1))
        self.cache = PagedCache(net.config, num_pages(self.num_positions), weight.dtype, weight.device)
        self.pages = self.cache.take(self.num_positions)
        with torch.inference_mode(False), torch.no_grad():  # weights are moved
            self.slots = Slots(net, self.cache, sampling, 1, self.num_positions)
        self.reader = PromptReader(net, self.cache)

    @torch.inference_mode()
    def answer(self, prompt: list[int]) -> Iterator[int]:
        """New tokens, each as soon as it is there, without the end token. May be left early."""
        first_S = self.slots.choose(self._read(prompt), [0], [len(prompt)])
        self.slots.fill([Occupant(0, 0, len(prompt), self.pages)], first_S)
        answer: list[int] = []
        unread, steps = deque([NewTokens(first_S)]), 0
        for index in range(self.sampling.max_new_tokens):
            # The first token is not kept waiting; after it, the device is a step ahead.
            while index and steps < min(index + 1, self.sampling.max_new_tokens - 1):
                unread.append(self.slots.step(1))
                steps += 1
            (token,) = unread.popleft().wait()
            if token in self.end_token_ids:
                return
            answer.append(token)
            self.tokens = prompt + answer[:steps]
            yield token

    def close(self) -> None:
        self.slots.close()
        self.reader.close()

    def _read(self, prompt: list[int]) -> Tensor:
        """Logits [1, V] after the prompt."""
        pairs = zip(self.tokens, prompt[:-1], strict=False)  # the last one gives the logits
        common = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(self.tokens), len(prompt) - 1))
        self.tokens = self.tokens[:common]
        begin, logits_SV = common, torch.empty(0)
        if not common:
            begin = min(len(prompt), PROMPT_TOKENS)
            logits_SV = self.reader.read_prompts([prompt[:begin]], [self.pages])
        if begin < len(prompt):
            logits_SV = self.reader.read_more(prompt[begin:], begin, self.pages)
        self.tokens = list(prompt)
        self.tokens_read += len(prompt) - common
        return logits_SV
