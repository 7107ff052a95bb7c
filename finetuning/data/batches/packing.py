"""Which samples of a step go into which packed row, so that ranks wait little for each other and little is padding.

Every rank gets the same number of rows, because sharded parameters are gathered together, micro-batch by micro-batch:
what counts is the heaviest row of each micro-batch. Its work is its length — padding included, up to a multiple of
`granularity`, so that few lengths occur — and the quadratic cost of attention in its documents. Needs no torch.
"""

import heapq
from dataclasses import dataclass

import numpy as np

from finetuning.config.strategy import PackPlan


@dataclass(frozen=True)
class Packing:
    """How well a step is packed."""

    tokens: int  # real positions
    computed: int  # positions of all rows, padding included
    imbalance: float  # how much more work than the mean the slowest rank of each micro-batch has, 0.03 = 3 %

    @property
    def fill(self) -> float:
        return self.tokens / self.computed


Rows = list[list[int]]


def plan_rows(lengths: np.ndarray, data_parallel_size: int, plan: PackPlan) -> list[Rows]:
    """Assigns samples to rows: result[rank][micro_batch] lists indices into `lengths`.

    Rows get target lengths, multiples of `granularity` that together just hold all samples and differ by one at most. The
    longest samples are placed first, each where most room is left; when one finds none, there is one unit of length more.
    Where attention makes a difference, the same is tried by work instead of length, and the cheaper plan is taken.
    Rows may stay empty when there are fewer samples than rows.

    Example: lengths [5, 3, 2], two ranks, capacity 8 -> [[[0]], [[1, 2]]].

    Raises:
        ValueError: a sample is longer than the capacity.
    """
    if len(lengths) and int(lengths.max()) > plan.capacity:
        raise ValueError(f"a sample has {int(lengths.max())} positions, a row at most {plan.capacity}")
    sizes = lengths.tolist()
    work = (lengths + plan.attention_cost * lengths.astype(np.float64) ** 2).tolist()
    order = np.argsort(-lengths, kind="stable").tolist()
    candidates = [
        _fill_targets(sizes, order, data_parallel_size, plan),
        _fill_by_work(sizes, work, order, data_parallel_size, plan),
    ]
    return min(candidates, key=lambda ranks: _duration(sizes, ranks, plan))


def measure(lengths: np.ndarray, ranks: list[Rows], plan: PackPlan) -> Packing:
    """Fill and imbalance of a plan."""
    sizes = lengths.tolist()
    row_lengths = [plan.pack_lengths([sum(sizes[sample] for sample in row) for row in rows]) for rows in ranks]
    work = [
        [length + _attention_work(sizes, row, plan) for row, length in zip(rows, own_lengths, strict=True)]
        for rows, own_lengths in zip(ranks, row_lengths, strict=True)
    ]
    mean = sum(map(sum, work)) / len(work)
    computed = sum(map(sum, row_lengths))
    return Packing(int(lengths.sum()), computed, sum(map(max, zip(*work, strict=True))) / mean - 1)


def _fill_targets(sizes: list[int], order: list[int], data_parallel_size: int, plan: PackPlan) -> list[Rows]:
    """Rows of target lengths; the heaviest rows come in the first micro-batches."""
    total = sum(sizes)
    units_of_row = max(1, plan.capacity // plan.granularity)
    units = -(-max(total, 1) // plan.granularity)
    while True:
        rows_unit = data_parallel_size * plan.packs_multiple
        num_rows = -(-units // (units_of_row * rows_unit)) * rows_unit
        targets = [units // num_rows + (row < units % num_rows) for row in range(num_rows)]
        room = [target * plan.granularity for target in targets]
        if units >= units_of_row * num_rows:  # full rows may use what is left over a whole number of units
            room = [plan.capacity] * num_rows
        rows = _place_by_room(sizes, order, room)
        if rows is not None:
            return _deal(sizes, rows, data_parallel_size, plan)
        units += max(1, units // 256)


def _place_by_room(sizes: list[int], order: list[int], room: list[int]) -> Rows | None:
    rows: Rows = [[] for _ in room]
    heap = [(-space, row) for row, space in enumerate(room)]
    heapq.heapify(heap)
    for sample in order:
        space, row = heap[0]
        left = -space - sizes[sample]
        if left < 0:
            return None
        heapq.heapreplace(heap, (-left, row))
        rows[row].append(sample)
    return rows


def _fill_by_work(sizes: list[int], work: list[float], order: list[int], data_parallel_size: int, plan: PackPlan) -> list[Rows]:
    """Each sample into the row with the least work that still has room."""
    rows_per_rank = max(1, -(-sum(sizes) // (data_parallel_size * plan.capacity)))
    rows_per_rank = -(-rows_per_rank // plan.packs_multiple) * plan.packs_multiple
    while (rows := _place_by_work(sizes, work, order, data_parallel_size * rows_per_rank, plan.capacity)) is None:
        rows_per_rank += plan.packs_multiple
    return _deal(sizes, rows, data_parallel_size, plan)


def _place_by_work(sizes: list[int], work: list[float], order: list[int], num_rows: int, capacity: int) -> Rows | None:
    rows: Rows = [[] for _ in range(num_rows)]
    used = [0] * num_rows
    heap = [(0.0, row) for row in range(num_rows)]
    for sample in order:
        passed = []
        while heap and used[heap[0][1]] + sizes[sample] > capacity:
            passed.append(heapq.heappop(heap))
        if not heap:
            return None
        done, row = heapq.heappop(heap)
        rows[row].append(sample)
        used[row] += sizes[sample]
        heapq.heappush(heap, (done + work[sample], row))
        for entry in passed:
            heapq.heappush(heap, entry)
    return rows


def _deal(sizes: list[int], rows: Rows, data_parallel_size: int, plan: PackPlan) -> list[Rows]:
    """Rows of similar work meet in the same micro-batch; dealt back and forth, so that rank totals even out as well."""
    rows.sort(key=lambda row: -_row_work(sizes, row, plan))
    ranks: list[Rows] = [[] for _ in range(data_parallel_size)]
    for index, row in enumerate(rows):
        turn, place = divmod(index, data_parallel_size)
        ranks[place if turn % 2 == 0 else data_parallel_size - 1 - place].append(row)
    return ranks


def _row_work(sizes: list[int], row: list[int], plan: PackPlan) -> float:
    return plan.padded(sum(sizes[sample] for sample in row)) + _attention_work(sizes, row, plan)


def _attention_work(sizes: list[int], row: list[int], plan: PackPlan) -> float:
    return plan.attention_cost * sum(sizes[sample] ** 2 for sample in row)


def _duration(sizes: list[int], ranks: list[Rows], plan: PackPlan) -> float:
    """What the step takes: of each micro-batch the heaviest row."""
    return sum(max(_row_work(sizes, rows[index], plan) for rows in ranks) for index in range(len(ranks[0])))
