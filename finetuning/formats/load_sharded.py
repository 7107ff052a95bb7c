"""Fills a sharded model from any source of weights: each process reads the rows that it holds, in any layout."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import LoadPlan, LoadPlanner, Metadata, StorageReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorProperties, TensorStorageMetadata
from torch.futures import Future
from typing_extensions import override

from finetuning.formats.weight_source import HuggingFaceSource, WeightSource
from finetuning.parallel.parallelize import ParallelLlama, base_groups

# Of the rows on their way from the file into a weight. Larger blocks are fresh memory each time, which the kernel has to
# clear first: 256 MiB at a time was several times slower (benchmarks/nemo_import.py).
BYTES_AT_ONCE = 2**24


def load_source(source: WeightSource, model: ParallelLlama) -> None:
    """Fills all weights but the adapters; every rank must call it and reads its own rows."""
    for tensors in base_groups(model):
        dcp.load(tensors, storage_reader=_SourceReader(source))
    model.base_loaded()


def load_base_weights(model_path: Path, model: ParallelLlama) -> None:
    """Fills all weights but the adapters from a local folder; every rank must call it and reads its own slices."""
    # Not by torch's HuggingFaceStorageReader (2.11-2.13): it takes every .safetensors in the folder, and the last one wins.
    load_source(HuggingFaceSource(model_path), model)


class _SourceReader(StorageReader):
    """A source of weights as torch.distributed.checkpoint asks for one; each weight is one piece."""

    def __init__(self, source: WeightSource):
        self.source = source

    @override
    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    @override
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        entries = {
            name: TensorStorageMetadata(
                TensorProperties(dtype=self.source.dtype(name)),
                shape,
                [ChunkStorageMetadata(torch.Size([0] * len(shape)), shape)],
            )
            for name, shape in self.source.shapes().items()
        }
        return Metadata(dict(entries))

    @override
    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    @override
    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    @override
    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    @override
    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        for item in plan.items:
            name = item.storage_index.fqn
            target = planner.resolve_tensor(item).detach()
            row_bytes = self.source.dtype(name).itemsize * self.source.shapes()[name][1:].numel()
            at_once = max(1, BYTES_AT_ONCE // row_bytes)
            first, count = item.storage_offsets[0], item.lengths[0]
            for start in range(0, count, at_once):
                stop = min(start + at_once, count)
                rows = self.source.read(name, first + start, first + stop)
                for dim in range(1, rows.ndim):
                    rows = rows.narrow(dim, item.storage_offsets[dim], item.lengths[dim])
                target[start:stop].copy_(rows)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    @override
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True
