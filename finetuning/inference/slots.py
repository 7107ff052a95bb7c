"""Slots of sequences that get one token after the other, with everything that a step needs on the device.

A step of some slots is captured once as a CUDA graph and replayed after that: what differs between steps (tokens, positions,
pages) lies in tensors that stay where they are. The new tokens come back while the next step runs. On the CPU the same code
runs without graphs.

Shape letters: S slots, P pages of a slot.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from finetuning.model.attention import sent
from finetuning.model.decode_step import DecodeStep
from finetuning.model.llama import Llama
from finetuning.model.paged_cache import PagedCache, num_pages
from finetuning.model.sampling import Sampling, choose_tokens


@dataclass(frozen=True)
class Occupant:
    """What a slot goes on with."""

    slot: int
    number: int  # of the sequence, for its random choices
    position: int  # of the next token that goes through the model: so many are in the cache
    pages: list[int]


class NewTokens:
    """Tokens on their way from the device."""

    def __init__(self, token_S: Tensor):
        if token_S.is_cuda:
            self._token_S = torch.empty(token_S.shape, dtype=token_S.dtype, pin_memory=True)
            self._token_S.copy_(token_S, non_blocking=True)
            self._there = torch.cuda.Event()
            self._there.record()
        else:
            self._token_S = token_S.clone()

    def wait(self) -> list[int]:
        if self._token_S.is_pinned():
            self._there.synchronize()
        return self._token_S.tolist()


def step_size(in_use: int, num_slots: int) -> int:
    """Slots that are computed where so many are in use: one of few numbers, each of which is captured once."""
    return min(1 << (in_use - 1).bit_length(), num_slots)


class Slots:
    """The device's side of decoding."""

    def __init__(self, net: Llama, cache: PagedCache, sampling: Sampling, num_slots: int, num_positions: int):
        """
        Args:
            num_positions: of the longest sequence, answer included.
        """
        device = net.model.embed_tokens.weight.device
        self.cache, self.sampling, self.num_slots = cache, sampling, num_slots
        self.decode = DecodeStep(net, num_positions)
        # Of an empty slot all is 0: it computes something and keeps it in the page of nobody.
        self.token_S, self.position_S, self.number_S, self.going_S = torch.zeros(4, num_slots, dtype=torch.int64, device=device)
        self.pages_SP = torch.zeros(num_slots, num_pages(num_positions), dtype=torch.int32, device=device)
        self.on_gpu = device.type == "cuda"
        self.steps: dict[int, Callable[[], None]] = {}

    def fill(self, occupants: list[Occupant], first_S: Tensor) -> None:
        """Puts sequences with their first tokens (on the device) into slots."""
        rows = [[o.slot, o.position, o.number, *o.pages] for o in occupants]
        slot_S, position_S, number_S, pages_SP = self._sent(rows)
        self.token_S[slot_S] = first_S
        self.position_S[slot_S], self.number_S[slot_S], self.pages_SP[slot_S] = position_S, number_S, pages_SP
        self.going_S[slot_S] = 1

    def empty(self, slots: list[int]) -> None:
        for state in (self.token_S, self.position_S, self.number_S, self.going_S, self.pages_SP):
            state[sent(torch.tensor(slots), state.device)] = 0

    def move(self, sources: list[int]) -> None:
        """Makes the first slots those of these numbers; the others are empty after that."""
        chosen = sent(torch.tensor(sources), self.token_S.device)
        for state in (self.token_S, self.position_S, self.number_S, self.going_S, self.pages_SP):
            moved = state[chosen]
            state.zero_()
            state[: len(sources)] = moved

    def choose(self, logits_SV: Tensor, numbers: list[int], places: list[int]) -> Tensor:
        """The token after a prompt, of several sequences."""
        number_S, place_S = sent(torch.tensor([numbers, places]), logits_SV.device)
        return choose_tokens(logits_SV, self.sampling, number_S, place_S)

    def step(self, in_use: int) -> NewTokens:
        """One token more for each of the first slots, at least so many."""
        size = step_size(in_use, self.num_slots)
        if size not in self.steps:
            compute = partial(self._compute, size)
            self.steps[size] = _Captured(compute) if self.on_gpu else compute
        self.steps[size]()
        return NewTokens(self.token_S[:in_use])

    def close(self) -> None:
        """Frees the graphs, which hold what they were captured from."""
        self.steps.clear()

    def _compute(self, size: int) -> None:
        token_S, position_S, number_S, going_S, pages_SP = (
            state[:size] for state in (self.token_S, self.position_S, self.number_S, self.going_S, self.pages_SP)
        )
        logits_SV = self.decode.logits(token_S, position_S, pages_SP, self.cache.layers)
        token_S.copy_(choose_tokens(logits_SV, self.sampling, number_S, position_S + 1))
        position_S.add_(going_S)

    def _sent(self, rows: list[list[int]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Three columns, and the rest filled up to the width of the table of pages."""
        width = 3 + self.pages_SP.shape[1]
        whole = sent(torch.tensor([row + [0] * (width - len(row)) for row in rows]), self.token_S.device)
        return whole[:, 0], whole[:, 1], whole[:, 2], whole[:, 3:].int()


class _Captured:
    """A computation that runs as it is the first time, so that every kernel is loaded; then as a graph, captured once."""

    def __init__(self, compute: Callable[[], None]):
        self.compute = compute
        self.graph: torch.cuda.CUDAGraph | None = None
        self.has_run = False

    def __call__(self) -> None:
        if not self.has_run:
            self.has_run = True
            self.compute()
            return
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            stream = torch.cuda.Stream()
            # Not `torch.cuda.graph`, which waits for the device: it may be reading a prompt.
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self.graph.capture_begin(capture_error_mode="thread_local")
                self.compute()
                self.graph.capture_end()
            torch.cuda.current_stream().wait_stream(stream)
        self.graph.replay()
