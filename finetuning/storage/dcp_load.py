"""torch.distributed.checkpoint with our own reader in place of its own, which would run what a foreign `.metadata` says.

Each process reads the numbers that it holds, in any layout; what is not a tensor is never opened.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import LoadPlan, LoadPlanner, Metadata, StorageReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import LoadItemType
from torch.futures import Future
from typing_extensions import override

from finetuning.errors import InputError, RunError
from finetuning.files.atomic import NO_ROOM, no_room
from finetuning.i18n import t
from finetuning.storage.dcp_reader import ShardedFiles, incomplete


def load_sharded_files(files: ShardedFiles, state: dict[str, Tensor]) -> None:
    """Fills tensors, sharded or not, in place; every rank must call it.

    Raises:
        InputError: a tensor is missing, has another shape, or its file is damaged; on all ranks alike.
    """
    with raises_the_cause(files.where):
        dcp.load(state, storage_reader=_SafeReader(files, state))


@contextmanager
def raises_the_cause(path: Path) -> Iterator[None]:
    """All ranks get the errors of all, wrapped up in one of torch's that is not even an `Exception`: raises what it is about.

    Raises:
        InputError, RunError: as they were raised; or the disk is full.
    """
    try:
        yield
    except CheckpointException as wrapped:
        causes = [error for error, _ in wrapped.failures.values()]
        for cause in causes:
            if isinstance(cause, InputError | RunError):
                raise cause from None
            if isinstance(cause, OSError) and cause.errno in NO_ROOM:
                raise no_room(path.parent, cause) from None
        first = next(iter(causes), wrapped)
        raise RunError(
            t("{path}: cannot be read or written: {error}", path=path, error=str(first).split("\n", maxsplit=1)[0])
        ) from first


class _SafeReader(StorageReader):
    """A folder of torch.distributed.checkpoint whose table of contents has been opened without running anything in it."""

    def __init__(self, files: ShardedFiles, wanted: Mapping[str, Tensor]):
        self.files, self.wanted = files, wanted

    @override
    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    @override
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self.files.metadata

    @override
    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Called on every rank, where an error reaches all. torch would leave as it is what no piece holds."""
        for name, tensor in self.wanted.items():
            entry = self.files.tensors.get(name)
            if entry is None:
                raise InputError(t("{folder}: holds no {name}", folder=self.files.where, name=name))
            if entry.size != tensor.shape:
                raise InputError(
                    t(
                        "{folder}: {name} is {found}, and this run needs {wanted}",
                        folder=self.files.where,
                        name=name,
                        found=list(entry.size),
                        wanted=list(tensor.shape),
                    )
                )
            count, total = sum(math.prod(piece.sizes) for piece in entry.chunks), math.prod(entry.size)
            if count != total:
                raise incomplete(self.files.where, name, count, total)

    @override
    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    @override
    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    @override
    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        for item in plan.items:
            assert item.type == LoadItemType.TENSOR  # of other entries torch's planner would run what they say
            key, offset = item.storage_index.fqn, item.storage_index.offset
            block = torch.empty(tuple(item.lengths), dtype=self.files.dtype(key))
            piece = next(piece for piece in self.files.tensors[key].chunks if piece.offsets == offset)
            self.files.read_piece(key, piece, block, item.storage_offsets)
            target = planner.resolve_tensor(item).detach()
            target.copy_(block)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    @override
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True
