"""The exact global batch, laid out over ranks and micro-batches as packed rows.

A step's samples are spread over data-parallel ranks x micro-batches by `finetuning.data.batches.packing`; each row holds whole
samples one after another and ends in padding. All ranks compute the same plan from the same lengths; nothing is communicated.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from finetuning.config.strategy import GRANULARITY, PackPlan
from finetuning.data.batches.order import samples_of_step
from finetuning.data.batches.packing import measure, plan_rows
from finetuning.data.tokens.tokenized import MixedSplit, Split
from finetuning.errors import RunError
from finetuning.i18n import t
from finetuning.model.attention import Documents, make_documents, sent
from finetuning.model.cross_entropy import IGNORED_LABEL, count_targets

LITTLE_PADDING = GRANULARITY["cuda"]  # positions


class MicroBatch(NamedTuple):
    """One packed row: tokens, positions and labels [1, T] (int64), its document boundaries, and how many labels are trained.

    The number is known here, so that nothing has to count on a GPU and wait for it. Where labels have weights other than 1, how
    much each counts [1, T] (float32); of a mixture, the source of each position [1, T] (int64). All rows of a step have them,
    or none.
    """

    tokens: Tensor
    positions: Tensor
    labels: Tensor
    documents: Documents
    num_targets: int
    weights: Tensor | None = None
    sources: Tensor | None = None

    def to(self, device: torch.device) -> "MicroBatch":
        tokens, positions, labels = (sent(x, device) for x in (self.tokens, self.positions, self.labels))
        weights, sources = (None if x is None else sent(x, device) for x in (self.weights, self.sources))
        return MicroBatch(tokens, positions, labels, self.documents.to(device), self.num_targets, weights, sources)


class StepBatch(NamedTuple):
    """This rank's share of one global batch; the counts are those of the whole global batch."""

    step: int  # optimizer steps done before it
    micro_batches: list[MicroBatch]
    answer_tokens: int  # trained positions
    divisor: float  # their weights, 1 each where nobody has said otherwise: the loss is divided by them once
    tokens: int  # real positions, padding not counted
    computed: int  # positions of all rows of all ranks, padding included
    imbalance: float  # work of the slowest rank above the mean, 0.03 = 3 %
    samples: np.ndarray  # indices of all samples of the step
    source_divisors: np.ndarray | None = None  # of a mixture, the weights of each source's positions


def make_row(split: Split, samples: list[int], length: int) -> MicroBatch:
    """Concatenates samples into one packed row of `length` positions.

    A document of L tokens takes L - 1 positions: its last token is only a label. Padding is a document of its own; a little
    of it after a single document is the end of that, as attention has a faster kernel for a row of one.

    Example: tokens [7, 8, 9] with 9 trained -> tokens 7 8, positions 0 1, labels -100 9.
    """
    tokens = np.zeros(length, dtype=np.int64)
    weights = np.ones(length, dtype=np.float32) if split.is_weighted else None
    sources = np.zeros(length, dtype=np.int64) if isinstance(split, MixedSplit) else None
    labels = np.full(length, IGNORED_LABEL, dtype=np.int64)
    positions = np.zeros(length, dtype=np.int64)
    documents, start = [], 0
    for number, (sample_tokens, trained) in ((sample, piece) for sample in samples for piece in split.pieces(sample)):
        count = len(sample_tokens) - 1
        if count < 1:
            continue
        part = slice(start, start + count)
        tokens[part] = sample_tokens[:-1]
        labels[part] = np.where(trained[1:], sample_tokens[1:], IGNORED_LABEL)
        if weights is not None:
            weights[part] = trained[1:]
        if sources is not None:
            assert isinstance(split, MixedSplit)
            sources[part] = split.source_of(np.array(number))
        positions[part] = np.arange(count)
        documents.append(count)
        start += count
    if start < length:
        if len(documents) == 1 and length - start <= LITTLE_PADDING:
            first, documents = start, [length]
        else:
            first = 0
            documents.append(length - start)
        positions[start:] = np.arange(first, first + length - start)
    tokens_1T, positions_1T, labels_1T = (torch.from_numpy(array)[None] for array in (tokens, positions, labels))
    weights_1T, sources_1T = (None if array is None else torch.from_numpy(array)[None] for array in (weights, sources))
    return MicroBatch(
        tokens_1T, positions_1T, labels_1T, make_documents(documents), count_targets(labels_1T), weights_1T, sources_1T
    )


def make_step_batch(
    split: Split, samples: np.ndarray, step: int, data_rank: int, data_parallel_size: int, plan: PackPlan
) -> StepBatch:
    """The rows of `data_rank` for these samples, with the counts of all ranks.

    Raises:
        RunError: there is nothing to learn in the samples, or less than was counted when they were tokenized.
    """
    answer_tokens = int(split.answer_tokens[samples].sum())
    if answer_tokens == 0:
        raise RunError(
            t(
                "step {step}: none of its {count} samples has a trainable token; the tokens are damaged. Run the same command "
                "again: they are checked, and built anew",
                step=step + 1,
                count=len(samples),
            )
        )
    weights = split.answer_weights[samples]
    lengths = split.lengths[samples]
    ranks = plan_rows(lengths, data_parallel_size, plan)
    packing = measure(lengths, ranks, plan)
    row_lengths = plan.pack_lengths([int(lengths[row].sum()) for row in ranks[data_rank]])
    micro_batches = []
    for row, length in zip(ranks[data_rank], row_lengths, strict=True):
        micro_batches.append(make_row(split, samples[row].tolist(), length))
        _check_targets(int(split.answer_tokens[samples[row]].sum()), len(row), micro_batches[-1].num_targets, step)
    return StepBatch(
        step=step,
        micro_batches=micro_batches,
        answer_tokens=answer_tokens,
        divisor=float(weights.sum()),
        tokens=packing.tokens,
        computed=packing.computed,
        imbalance=packing.imbalance,
        samples=samples,
        source_divisors=np.bincount(split.source_of(samples), weights, len(split.names))
        if isinstance(split, MixedSplit)
        else None,
    )


def _check_targets(expected: int, num_samples: int, found: int, step: int) -> None:
    """A sample's first token is never a target, though it may be counted as one where there is no prompt."""
    if not expected - num_samples <= found <= expected or (expected > 0 and found == 0):
        raise RunError(
            t(
                "step {step}: {found} tokens of a packed sequence are trainable, and {expected} were when it was made; the "
                "tokens are damaged. Run the same command again: they are checked, and built anew",
                step=step + 1,
                found=found,
                expected=expected,
            )
        )


class GlobalBatches:
    """Iterates over this rank's share of steps `start_step` … `max_steps` - 1.

    A batch is made when it is asked for, or ahead of that in a thread, from when `prepare_next` is called. That is for a
    moment when the caller has nothing to do: the thread is Python, which keeps other Python from running.

    `len` is the number of all steps, also when it starts later: Lightning counts batches from the beginning.
    """

    def __init__(
        self,
        split: Split,
        *,
        start_step: int,
        max_steps: int,
        global_batch_size: int,
        seed: int,
        data_rank: int,
        data_parallel_size: int,
        plan: PackPlan,
    ):
        self.split, self.plan, self.seed = split, plan, seed
        self.start_step, self.max_steps, self.global_batch_size = start_step, max_steps, global_batch_size
        self.data_rank, self.data_parallel_size = data_rank, data_parallel_size
        self.next_step = start_step
        self._prepared: dict[int, Future[StepBatch]] = {}  # by step
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")

    def __len__(self) -> int:
        return self.max_steps

    def __iter__(self) -> Iterator[StepBatch]:
        for step in range(self.start_step, self.max_steps):
            self.next_step = step + 1
            yield self._prepared.pop(step).result() if step in self._prepared else self._make(step)

    def prepare_next(self) -> None:
        """Begins to make the batch after the one that was given out last."""
        step = self.next_step
        if step < self.max_steps and step not in self._prepared:
            self._prepared[step] = self._thread.submit(self._make, step)

    def _make(self, step: int) -> StepBatch:
        samples = samples_of_step(step, self.global_batch_size, len(self.split), self.seed, self.split.shares)
        return make_step_batch(self.split, samples, step, self.data_rank, self.data_parallel_size, self.plan)

    # Lightning asks a loader for its state on resume. Ours has none: `start_step` says it all.
    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        pass
