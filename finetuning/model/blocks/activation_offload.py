"""What may wait in the memory of the host while a GPU works: tensors kept for a backward pass, and the embedding's table.

On the CPU the same without a GPU: "the host" is then just another tensor.

Shape letters: B rows, T tokens of a row, D hidden size, V vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from finetuning.model.kernels.ops import gather_rows


class _Leaving(NamedTuple):
    """On the way to the host: the tensors, which must not be given away before the copies are made, and when they are."""

    tensors: tuple[Tensor, ...]
    copied: torch.cuda.Event


class _Arrived(NamedTuple):
    """On the GPU, or on the way there until `copied`."""

    tensors: tuple[Tensor, ...]
    copied: torch.cuda.Event | None


class OffloadStore:
    """What each block of a decoder keeps from its forward pass, in host memory until shortly before its backward pass.

    Copies travel on a stream of their own beside the computation. At most the tensors of two blocks are on the GPU: in the
    forward pass those of the block before are given away once they are copied, in the backward pass those of the next block
    arrive while one computes. The last block's stay: they are used first. Host memory is pinned and used again for each row.

    One row at a time: blocks call `keep` in their order, then `fetch` and `take` in the reverse order.
    """

    def __init__(self, num_blocks: int):
        self.num_blocks = num_blocks
        self.on_host: list[list[Tensor]] = [[] for _ in range(num_blocks)]
        self.arrived: dict[int, _Arrived] = {}
        self.shapes: dict[int, list[torch.Size]] = {}
        self.leaving: _Leaving | None = None
        self.stream: torch.cuda.Stream | None = None

    def keep(self, index: int, tensors: tuple[Tensor, ...]) -> None:
        """Takes over tensors of block `index`, which nothing may change afterwards."""
        if index == 0:
            self.arrived.clear()  # of a row whose backward pass never came
        self.release()
        if index == self.num_blocks - 1:
            self.arrived[index] = _Arrived(tensors, None)
            return
        self.shapes[index] = [tensor.shape for tensor in tensors]
        places = self._places(index, tensors)
        if not tensors[0].is_cuda:
            for place, tensor in zip(places, tensors, strict=True):
                place.copy_(tensor)
            return
        stream = self._copies()
        with torch.cuda.stream(stream):
            for place, tensor in zip(places, tensors, strict=True):
                place.copy_(tensor, non_blocking=True)
            self.leaving = _Leaving(tensors, stream.record_event())

    def release(self) -> None:
        """Gives away what is on the GPU of the block before; what computes next waits until it is copied."""
        if self.leaving is not None:
            torch.cuda.current_stream().wait_event(self.leaving.copied)
            self.leaving = None

    def fetch(self, index: int) -> None:
        """Begins to bring back the tensors of a block; of one that does not exist, or whose are there, nothing happens."""
        if index < 0 or index in self.arrived:
            return
        places = [place[: shape.numel()].view(shape) for place, shape in self._held(index)]
        if not self._is_pinned(index):
            self.arrived[index] = _Arrived(tuple(place.clone() for place in places), None)
            return
        # Room is made in the order of the computation, so that what it has just freed can be used; hence the copies wait
        # until it is there, and it waits for the copies in `take`.
        tensors = tuple(torch.empty(place.shape, dtype=place.dtype, device="cuda") for place in places)
        stream = self._copies()
        with torch.cuda.stream(stream):
            for tensor, place in zip(tensors, places, strict=True):
                tensor.copy_(place, non_blocking=True)
            self.arrived[index] = _Arrived(tensors, stream.record_event())

    def take(self, index: int) -> tuple[Tensor, ...]:
        """The tensors of a block, once."""
        self.fetch(index)
        found = self.arrived.pop(index)
        if found.copied is not None:
            torch.cuda.current_stream().wait_event(found.copied)
        return found.tensors

    def _held(self, index: int) -> list[tuple[Tensor, torch.Size]]:
        return list(zip(self.on_host[index], self.shapes[index], strict=True))

    def _is_pinned(self, index: int) -> bool:
        return self.on_host[index][0].is_pinned()

    def _places(self, index: int, tensors: tuple[Tensor, ...]) -> list[Tensor]:
        """Host memory as large as the tensors; larger ones than before get new memory, in powers of two as pinned memory is."""
        held = self.on_host[index]
        if len(held) < len(tensors) or any(len(place) < tensor.numel() for place, tensor in zip(held, tensors, strict=True)):
            self.on_host[index] = held = [
                torch.empty(_power_of_two(tensor.numel()), dtype=tensor.dtype, pin_memory=tensor.is_cuda) for tensor in tensors
            ]
        return [place[: tensor.numel()].view(tensor.shape) for place, tensor in zip(held, tensors, strict=True)]

    def _copies(self) -> torch.cuda.Stream:
        """The stream of the copies, which from now on waits for all that is to be computed up to now."""
        if self.stream is None:
            self.stream = torch.cuda.Stream()
        self.stream.wait_stream(torch.cuda.current_stream())
        return self.stream


def _power_of_two(number: int) -> int:
    """The smallest that is at least `number`; 0 for 0."""
    return 1 << (number - 1).bit_length() if number else 0


class OffloadedEmbedding(nn.Module):
    """A frozen embedding whose table stays on the host; a GPU reads the rows that it needs from there."""

    def __init__(self, shape: torch.Size, dtype: torch.dtype, *, pinned: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape, dtype=dtype, pin_memory=pinned), requires_grad=False)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Rows of the table [B, T, D] where the tokens are."""
        if tokens_BT.is_cuda:
            return gather_rows(self.weight, tokens_BT.flatten()).unflatten(0, tokens_BT.shape)
        return F.embedding(tokens_BT, self.weight)

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Stays where it is when a model is moved: Lightning moves every model to its device."""
        return self
