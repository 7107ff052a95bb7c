"""The exact global batch, laid out over ranks and micro-batches as packed rows.

A step's samples are spread over data-parallel ranks x micro-batches so that the work of the rows — tokens and the
quadratic attention cost — is even; each row holds whole samples one after another, at most `capacity` positions,
and ends in padding up to a multiple of `granularity` so that few row lengths occur. Every rank gets the same number of
micro-batches, because sharded parameters are gathered together. All ranks compute the same plan from the same lengths;
nothing is communicated.
"""

import heapq
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from finetuning.data.order import samples_of_step
from finetuning.data.tokenized import Split
from finetuning.model.attention import Documents, make_documents
from finetuning.model.cross_entropy import IGNORED_LABEL


class MicroBatch(NamedTuple):
    """One packed row: tokens, positions and labels [1, T] (int64), and its document boundaries."""

    tokens: Tensor
    positions: Tensor
    labels: Tensor
    documents: Documents

    def to(self, device: torch.device) -> "MicroBatch":
        tokens, positions, labels = (x.to(device, non_blocking=True) for x in (self.tokens, self.positions, self.labels))
        return MicroBatch(tokens, positions, labels, self.documents.to(device))


class StepBatch(NamedTuple):
    """This rank's share of one global batch; the counts are those of the whole global batch."""

    step: int  # optimizer steps done before it
    micro_batches: list[MicroBatch]
    answer_tokens: int  # trained positions: the loss is divided by them once
    tokens: int  # real positions, padding not counted
    computed: int  # positions of all rows of all ranks, padding included
    samples: np.ndarray  # indices of all samples of the step


@dataclass(frozen=True)
class RowPlan:
    """How rows are filled. `capacity` and `granularity` in positions; `attention_cost` as in LlamaConfig."""

    capacity: int
    granularity: int
    attention_cost: float

    def padded(self, positions: int) -> int:
        """Row length for this many real positions."""
        return min(-(-max(positions, 1) // self.granularity) * self.granularity, max(self.capacity, positions))


def plan_rows(lengths: np.ndarray, data_parallel_size: int, plan: RowPlan) -> list[list[list[int]]]:
    """Assigns samples to rows: result[rank][micro_batch] lists indices into `lengths`.

    Longest first into the row with the least work that still has room; one micro-batch more for every rank when a
    sample finds no room. Rows may stay empty when there are fewer samples than rows.

    Example: lengths [5, 3, 2], two ranks, capacity 8 -> [[[0]], [[1, 2]]].

    Raises:
        ValueError: a sample is longer than the capacity.
    """
    if len(lengths) and int(lengths.max()) > plan.capacity:
        raise ValueError(f"a sample has {int(lengths.max())} positions, a row at most {plan.capacity}")
    cost = lengths + plan.attention_cost * lengths.astype(np.float64) ** 2
    order = np.argsort(-lengths, kind="stable").tolist()
    rows_per_rank = max(1, -(-int(lengths.sum()) // (data_parallel_size * plan.capacity)))
    while (rows := _fill(lengths, cost, order, data_parallel_size * rows_per_rank, plan.capacity)) is None:
        rows_per_rank += 1
    # The heaviest rows first, dealt back and forth: rank totals even out.
    rows.sort(key=lambda row: -cost[row].sum())
    ranks: list[list[list[int]]] = [[] for _ in range(data_parallel_size)]
    for index, row in enumerate(rows):
        turn, place = divmod(index, data_parallel_size)
        ranks[place if turn % 2 == 0 else data_parallel_size - 1 - place].append(row)
    return ranks


def _fill(lengths: np.ndarray, cost: np.ndarray, order: list[int], num_rows: int, capacity: int) -> list[list[int]] | None:
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    used = [0] * num_rows
    heap = [(0.0, row) for row in range(num_rows)]
    for sample in order:
        passed = []
        while heap and used[heap[0][1]] + lengths[sample] > capacity:
            passed.append(heapq.heappop(heap))
        if not heap:
            return None
        work, row = heapq.heappop(heap)
        rows[row].append(sample)
        used[row] += int(lengths[sample])
        heapq.heappush(heap, (work + float(cost[sample]), row))
        for entry in passed:
            heapq.heappush(heap, entry)
    return rows


def make_row(split: Split, samples: list[int], plan: RowPlan) -> MicroBatch:
    """Concatenates samples into one packed row.

    A document of L tokens takes L - 1 positions: its last token is only a label. Padding is a document of its own.

    Example: tokens [7, 8, 9] with 9 trained -> tokens 7 8, positions 0 1, labels -100 9.
    """
    real = int(split.lengths[samples].sum()) if samples else 0
    length = plan.padded(real)
    tokens = np.zeros(length, dtype=np.int64)
    labels = np.full(length, IGNORED_LABEL, dtype=np.int64)
    positions = np.zeros(length, dtype=np.int64)
    documents, start = [], 0
    for sample_tokens, trained in (piece for sample in samples for piece in split.pieces(sample)):
        count = len(sample_tokens) - 1
        if count < 1:
            continue
        part = slice(start, start + count)
        tokens[part] = sample_tokens[:-1]
        labels[part] = np.where(trained[1:], sample_tokens[1:], IGNORED_LABEL)
        positions[part] = np.arange(count)
        documents.append(count)
        start += count
    if start < length:
        positions[start:] = np.arange(length - start)
        documents.append(length - start)
    tokens_1T, positions_1T, labels_1T = (torch.from_numpy(array)[None] for array in (tokens, positions, labels))
    return MicroBatch(tokens_1T, positions_1T, labels_1T, make_documents(documents))


def make_step_batch(
    split: Split, samples: np.ndarray, step: int, data_rank: int, data_parallel_size: int, plan: RowPlan
) -> StepBatch:
    """The rows of `data_rank` for these samples, with the counts of all ranks."""
    lengths = split.lengths[samples]
    ranks = plan_rows(lengths, data_parallel_size, plan)
    return StepBatch(
        step=step,
        micro_batches=[make_row(split, samples[row].tolist(), plan) for row in ranks[data_rank]],
        answer_tokens=int(split.answer_tokens[samples].sum()),
        tokens=int(lengths.sum()),
        computed=sum(plan.padded(int(lengths[row].sum())) for rank in ranks for row in rank),
        samples=samples,
    )


class GlobalBatches:
    """Iterates over this rank's share of steps `start_step` … `max_steps` - 1; the next one is prepared meanwhile.

    `len` is the number of all steps, also when it starts later: Lightning counts batches from the beginning.
    """

    def __init__(
        self, split: Split, *, start_step: int, max_steps: int, global_batch_size: int, seed: int,
        data_rank: int, data_parallel_size: int, plan: RowPlan,
    ):  # fmt: skip
        self.split, self.plan, self.seed = split, plan, seed
        self.start_step, self.max_steps, self.global_batch_size = start_step, max_steps, global_batch_size
        self.data_rank, self.data_parallel_size = data_rank, data_parallel_size

    def __len__(self) -> int:
        return self.max_steps

    def __iter__(self) -> Iterator[StepBatch]:
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as pool:
            upcoming = None
            for step in range(self.start_step, self.max_steps):
                batch = (upcoming or pool.submit(self._make, step)).result()
                upcoming = pool.submit(self._make, step + 1) if step + 1 < self.max_steps else None
                yield batch

    def _make(self, step: int) -> StepBatch:
        samples = samples_of_step(step, self.global_batch_size, len(self.split), self.seed)
        return make_step_batch(self.split, samples, step, self.data_rank, self.data_parallel_size, self.plan)

    # Lightning asks a loader for its state on resume. Ours has none: `start_step` says it all.
    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        pass
