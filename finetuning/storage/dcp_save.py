"""torch.distributed.checkpoint as it writes for us: from copies in host memory, by several threads, told when the disk is full.

Which process writes which part of what is found by torch's own planner, from the tensors that a run works with; their numbers
may come from copies of them.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter, SavePlan, SavePlanner
from torch.distributed.checkpoint.filesystem import _StoragePrefix  # torch 2.11-2.13
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future
from typing_extensions import override

from finetuning.storage.dcp_load import raises_the_cause

MAX_WRITERS = 4  # threads of a process
BYTES_OF_A_WRITER = 64 * 2**20  # less is not worth another file


def write_sharded_files(
    folder: Path,
    state: dict[str, Tensor],
    copies: Mapping[str, Tensor] | None = None,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Writes tensors, sharded or not, into a folder; every rank must call it.

    Args:
        copies: of this process's parts of all tensors, in host memory, to be written in their place.
        group: of all processes, to agree in; None: the group that training uses.

    Raises:
        NoRoom, RunError: on all ranks, where one of them found the disk full, or failed in another way.
    """
    with raises_the_cause(folder):
        planner = DefaultSavePlanner() if copies is None else _CopiesPlanner(copies)
        dcp.save(state, storage_writer=SafeWriter(folder), planner=planner, process_group=group)


class _CopiesPlanner(DefaultSavePlanner):
    """Plans with the tensors themselves, and has the copies written."""

    def __init__(self, copies: Mapping[str, Tensor]):
        super().__init__()
        self.copies = copies

    @override
    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self.copies[index.fqn]


class SafeWriter(FileSystemWriter):
    """torch's own, which says of a full disk: `enforce fail at inline_container.cc:672, unexpected pos 704 vs 598`.

    Its own threads would keep an error to themselves, and the checkpoint would be without what they had to write; these tell.
    """

    def __init__(self, folder: Path):
        # Reading ahead would be done by each thread on a stream of the first GPU, and waited for there (torch 2.13).
        super().__init__(folder, per_thread_copy_ahead=0)

    @override
    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        shares = _shares(plan.items)
        plans = [
            dataclasses.replace(plan, items=items, storage_data=_StoragePrefix(prefix))
            for items, prefix in zip(shares, _prefixes(plan.storage_data.prefix, len(shares)), strict=True)
        ]
        if len(plans) == 1:
            results = self._write(plans[0], planner)
        else:
            with ThreadPoolExecutor(len(plans), thread_name_prefix="write") as pool:
                results = [result for found in pool.map(lambda each: self._write(each, planner), plans) for result in found]
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def _write(self, plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
        with raises_what_the_stream_said():
            return super().write_data(plan, planner).value()


@contextmanager
def raises_what_the_stream_said() -> Iterator[None]:
    """Around `torch.save` into a stream, which says of a full disk what `SafeWriter` quotes.

    The error has nothing of what it came from, as it travels to other ranks without that.
    """
    try:
        yield
    except RuntimeError as error:
        met: BaseException | None = error
        while met is not None and not isinstance(met, OSError):
            met = met.__cause__ or met.__context__
        raise met or error from None


def _shares(items: Sequence[WriteItem]) -> list[list[WriteItem]]:
    """What each thread writes, about as many bytes each."""
    sizes = {id(item): _num_bytes(item) for item in items}
    count = max(1, min(MAX_WRITERS, sum(sizes.values()) // BYTES_OF_A_WRITER))
    shares: list[list[WriteItem]] = [[] for _ in range(count)]
    filled = [0] * count
    for item in sorted(items, key=lambda each: -sizes[id(each)]):
        least = filled.index(min(filled))
        shares[least].append(item)
        filled[least] += sizes[id(item)]
    return [share for share in shares if share] or [[]]


def _num_bytes(item: WriteItem) -> int:
    if item.tensor_data is None:
        return 0
    return item.tensor_data.chunk.sizes.numel() * item.tensor_data.properties.dtype.itemsize


def _prefixes(first: str, count: int) -> list[str]:
    """How names of files begin: those of one thread as torch names them, `__3_0.distcp`; of another one `__3_1_0.distcp`."""
    return [first, *(f"{first}{index}_" for index in range(1, count))]
