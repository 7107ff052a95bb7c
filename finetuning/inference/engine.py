"""Answers to many prompts with the GPU never idle: a sequence that ends makes room for a waiting one at once.

Prompts wait in order of length, the longest first. While the device computes a step, the tokens of the step before are looked
at: so a sequence that ends is noticed one step late, and that step's token of it is dropped.
"""

import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from finetuning.config.llama import LlamaConfig
from finetuning.errors import InputError
from finetuning.i18n import t
from finetuning.inference.slots import NewTokens, Occupant, Slots, step_size
from finetuning.model.llama import Llama
from finetuning.model.paged_cache import PagedCache, PromptReader, num_pages, page_bytes
from finetuning.model.sampling import Sampling

PROMPT_TOKENS = 16_384  # of all prompts that go through the model together
UNREAD_STEPS = 1  # that the device may be ahead
ADMITTED_SHARE = 8  # prompts are read when this part of slots and pages is free: one by one, they would not fill the device
MEMORY_SHARE = 0.95  # of what is free, for keys and values and what a step computes

NewToken = Callable[[int, int], None]  # number of the prompt, token


@dataclass
class _Sequence:
    number: int
    slot: int
    pages: list[int]
    left: int  # tokens that are still to be computed


@dataclass(frozen=True)
class _Unread:
    """Tokens that are on their way, and whose they are."""

    tokens: NewTokens
    places: list[tuple[int, int]]  # index among the tokens, number of the prompt


class Engine:
    """Answers prompts in slots. It takes over the model's attention until `close`."""

    def __init__(self, net: Llama, sampling: Sampling, end_token_ids: tuple[int, ...], lengths: list[int], num_slots: int):
        """
        Args:
            lengths: of the prompts to come, in tokens.
            num_slots: answers at once; fewer where there are fewer prompts, or no more memory.

        Raises:
            InputError: the longest prompt and its answer do not fit the GPU's memory.
        """
        weight = net.model.embed_tokens.weight
        positions = sorted((length + sampling.max_new_tokens for length in lengths), reverse=True)
        self.sampling, self.ends = sampling, frozenset(end_token_ids)
        num_slots = min(num_slots, len(lengths))
        at_once = max(positions[0], min(PROMPT_TOKENS, sum(positions)))
        affordable = affordable_pages(net.config, weight, positions[0], at_once, num_slots)
        self.num_pages = min(affordable, sum(num_pages(count) for count in positions[:num_slots]))
        self.cache = PagedCache(net.config, self.num_pages, weight.dtype, weight.device)
        with torch.inference_mode(False), torch.no_grad():  # weights are moved
            self.slots = Slots(net, self.cache, sampling, num_slots, positions[0])
        self.reader = PromptReader(net, self.cache)
        self.free_slots = list(reversed(range(num_slots)))
        self.going: dict[int, _Sequence] = {}
        self.ended: set[int] = set()  # with an end token

    @torch.inference_mode()
    def answer(self, prompts: list[list[int]], told: NewToken | None = None) -> list[list[int]]:
        """New tokens for each prompt, without the end token."""
        answers: list[list[int]] = [[] for _ in prompts]
        waiting = deque(sorted(range(len(prompts)), key=lambda number: -len(prompts[number])))
        unread: deque[_Unread] = deque()
        self.ended.clear()
        while waiting or self.going or unread:
            admitted = self._admit(prompts, waiting)
            unread += admitted
            if self.going and not admitted:
                unread.append(self._step())
            # The first tokens of answers are awaited: nothing is ahead of them but what reads the prompts.
            while len(unread) > (0 if admitted or not self.going else UNREAD_STEPS):
                self._read(unread.popleft(), answers, told)
        return answers

    def close(self) -> None:
        self.slots.close()
        self.reader.close()

    def _admit(self, prompts: list[list[int]], waiting: deque[int]) -> list[_Unread]:
        """Reads waiting prompts into free slots, if enough of them are free."""
        enough = max(1, self.slots.num_slots // ADMITTED_SHARE)
        few_pages = len(waiting) > enough and len(self.cache.free) < self.num_pages // ADMITTED_SHARE
        if len(self.free_slots) < min(len(waiting), enough) or (self.going and few_pages):
            return []
        read = []
        while waiting and (sequences := self._next(prompts, waiting)):
            numbers = [sequence.number for sequence in sequences]
            lengths = [len(prompts[number]) for number in numbers]
            logits_SV = self.reader.read_prompts([prompts[n] for n in numbers], [sequence.pages for sequence in sequences])
            first_S = self.slots.choose(logits_SV, numbers, lengths)
            self.slots.fill(
                [Occupant(s.slot, s.number, length, s.pages) for s, length in zip(sequences, lengths, strict=True)], first_S
            )
            read.append(_Unread(NewTokens(first_S), list(enumerate(numbers))))
            self._release([sequence for sequence in sequences if not sequence.left])
        return read

    def _next(self, prompts: list[list[int]], waiting: deque[int]) -> list[_Sequence]:
        """The next prompts that have slots and pages, as many as are read together."""
        sequences: list[_Sequence] = []
        tokens = 0
        while waiting and self.free_slots:
            length = len(prompts[waiting[0]])
            positions = length + self.sampling.max_new_tokens
            if num_pages(positions) > len(self.cache.free) or (sequences and tokens + length > PROMPT_TOKENS):
                break
            number, slot = waiting.popleft(), self.free_slots.pop()
            self.going[number] = _Sequence(number, slot, self.cache.take(positions), self.sampling.max_new_tokens - 1)
            sequences.append(self.going[number])
            tokens += length
        return sequences

    def _step(self) -> _Unread:
        self._move_together()
        sequences = list(self.going.values())
        tokens = self.slots.step(1 + max(sequence.slot for sequence in sequences))
        places = [(sequence.slot, sequence.number) for sequence in sequences]
        for sequence in sequences:
            sequence.left -= 1
        self._release([sequence for sequence in sequences if not sequence.left])
        return _Unread(tokens, places)

    def _read(self, unread: _Unread, answers: list[list[int]], told: NewToken | None) -> None:
        tokens = unread.tokens.wait()
        ended = []
        for index, number in unread.places:
            if number in self.ended:
                continue
            if tokens[index] in self.ends:
                self.ended.add(number)
                ended += [self.going[number]] if number in self.going else []
                continue
            answers[number].append(tokens[index])
            if told is not None:
                told(number, tokens[index])
        self._release(ended)

    def _release(self, sequences: list[_Sequence]) -> None:
        """Frees slots and pages; steps that are under way come before whatever takes them."""
        for sequence in sequences:
            del self.going[sequence.number]
            self.free_slots.append(sequence.slot)
            self.cache.give_back(sequence.pages)
        if sequences:
            self.slots.empty([sequence.slot for sequence in sequences])

    def _move_together(self) -> None:
        """Into the first slots, where fewer slots can then be computed."""
        sequences = sorted(self.going.values(), key=lambda sequence: sequence.slot)
        if step_size(len(sequences), self.slots.num_slots) == step_size(sequences[-1].slot + 1, self.slots.num_slots):
            return
        self.slots.move([sequence.slot for sequence in sequences])
        for slot, sequence in enumerate(sequences):
            sequence.slot = slot
        self.free_slots = list(reversed(range(len(sequences), self.slots.num_slots)))


def affordable_pages(config: LlamaConfig, weight: Tensor, longest: int, at_once: int, num_slots: int) -> int:
    """How many pages the free memory of the weight's device holds beside what a step computes.

    Args:
        longest: positions of the longest sequence, prompt and answer.
        at_once: tokens of prompts that go through the model together.

    Raises:
        InputError: fewer than the longest sequence takes.
    """
    if not weight.is_cuda:
        return sys.maxsize
    torch.cuda.empty_cache()
    return pages_beside(torch.cuda.mem_get_info(weight.device)[0], config, weight.dtype, longest, at_once, num_slots)


def pages_beside(free: int, config: LlamaConfig, dtype: torch.dtype, longest: int, at_once: int, num_slots: int) -> int:
    """The same for so many free bytes."""
    read = at_once * (3 * config.intermediate_size + 8 * config.hidden_size) * dtype.itemsize
    chosen = 2 * num_slots * config.vocab_size * 5 * 4  # logits in float32, sorted; for steps of half as many slots and so on
    size = page_bytes(config, dtype)
    pages = int(free * MEMORY_SHARE - read - chosen) // size
    if pages < num_pages(longest):
        raise InputError(
            t(
                "{tokens} token{tokens:s} of a prompt and its answer need {needed:.1f} GiB of GPU memory for keys and values, "
                "and {free:.1f} GiB are free; give a smaller --max_new_tokens, or shorter prompts",
                tokens=longest,
                needed=num_pages(longest) * size / 2**30,
                free=max(pages, 0) * size / 2**30,
            )
        )
    return pages
