"""The exact global batch: laid out over ranks and rows, packed without losing or mixing anything."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetuning.config.strategy import PackPlan
from finetuning.data.batches.global_batch import LITTLE_PADDING, GlobalBatches, MicroBatch, make_row, make_step_batch
from finetuning.data.batches.packing import plan_rows
from finetuning.data.tokens.tokenized import TokenizedSplit, open_split, write_split
from finetuning.model.cross_entropy import IGNORED_LABEL

pytestmark = pytest.mark.unit

CAPACITY = 64
lengths_strategy = st.lists(st.integers(0, CAPACITY), min_size=1, max_size=60).map(np.array)
plans = st.builds(PackPlan, st.just(CAPACITY), st.sampled_from([1, 4, 8]), st.sampled_from([0.0, 1e-3, 0.1]))


def make_split(folder: Path, lengths: list[int]) -> TokenizedSplit:
    """Sample i has `lengths[i]` tokens, numbered through all samples from 1; the second half of each is trained."""
    samples, start = [], 1
    for line, length in enumerate(lengths, start=1):
        samples.append((list(range(start, start + length)), [place >= length // 2 for place in range(length)], line))
        start += length
    write_split(folder, samples)
    return open_split(folder)


@given(lengths=lengths_strategy, ranks=st.integers(1, 5), plan=plans)
def test_a_plan_holds_every_sample_once_and_no_row_exceeds_its_capacity(
    lengths: np.ndarray, ranks: int, plan: PackPlan
) -> None:
    rows = plan_rows(lengths, ranks, plan)
    assert len(rows) == ranks
    assert len({len(rank) for rank in rows}) == 1, "sharded parameters are gathered together, so all ranks need the same count"
    assert sorted(index for rank in rows for row in rank for index in row) == list(range(len(lengths)))
    for row in (row for rank in rows for row in rank):
        total = int(lengths[row].sum())
        assert total <= CAPACITY
        assert total <= plan.padded(total) <= CAPACITY


@given(lengths=lengths_strategy, ranks=st.integers(1, 5), plan=plans)
def test_all_ranks_make_the_same_plan(lengths: np.ndarray, ranks: int, plan: PackPlan) -> None:
    assert plan_rows(lengths, ranks, plan) == plan_rows(lengths.copy(), ranks, plan)


def test_a_sample_that_fits_no_row_is_an_error_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="a sample has 65 positions, a row at most 64"):
        plan_rows(np.array([3, 65]), 2, PackPlan(CAPACITY, 8, 0.0))


def test_long_documents_are_spread_because_attention_is_quadratic() -> None:
    rows = plan_rows(np.array([60, 60, 8, 8, 8, 8, 8, 8, 8]), 2, PackPlan(128, 1, 0.1))
    assert [sum(index < 2 for row in rank for index in row) for rank in rows] == [1, 1]


def test_a_row_is_the_samples_one_after_another_with_positions_that_restart(tmp_path: Path) -> None:
    split = make_split(tmp_path / "split", [3, 5])
    row = make_row(split, [0, 1], length=8)
    assert row.tokens.tolist() == [[1, 2, 4, 5, 6, 7, 0, 0]]
    assert row.labels.tolist() == [[2, 3, IGNORED_LABEL, 6, 7, 8, IGNORED_LABEL, IGNORED_LABEL]]
    assert row.num_targets == 5
    assert row.positions.tolist() == [[0, 1, 0, 1, 2, 3, 0, 1]]
    count = int(row.documents.extent[0])
    assert row.documents.boundaries[: count + 1].tolist() == [0, 2, 6, 8], "padding is a document of its own"


def test_much_padding_after_a_single_document_is_one_of_its_own(tmp_path: Path) -> None:
    row = make_row(make_split(tmp_path / "split", [5]), [0], length=4 + LITTLE_PADDING + 1)
    assert row.documents.extent.tolist() == [2, LITTLE_PADDING + 1]
    assert row.positions[0, 3:6].tolist() == [3, 0, 1]


def test_padding_after_a_single_document_is_its_end(tmp_path: Path) -> None:
    row = make_row(make_split(tmp_path / "split", [5]), [0], length=8)
    assert row.tokens.tolist() == [[1, 2, 3, 4, 0, 0, 0, 0]]
    assert row.labels[0, 4:].eq(IGNORED_LABEL).all()
    assert row.positions.tolist() == [list(range(8))]
    assert row.documents.extent.tolist() == [1, 8]


@given(lengths=st.lists(st.integers(2, 40), min_size=1, max_size=30), ranks=st.integers(1, 4), plan=plans)
def test_packing_keeps_every_token_and_every_label(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], ranks: int, plan: PackPlan
) -> None:
    split = make_split(tmp_path_factory.mktemp("split") / "training", lengths)
    samples = np.arange(len(lengths))
    batches = [make_step_batch(split, samples, 0, rank, ranks, plan) for rank in range(ranks)]
    pieces = [piece for batch in batches for row in batch.micro_batches for piece in documents_of(row)]
    expected = []
    for index in range(len(split)):
        tokens, trained = split.sample(index)
        labels = np.where(trained[1:], tokens[1:], IGNORED_LABEL)
        expected.append((tokens[:-1].tolist(), labels.tolist()))
    assert sorted(piece for piece in pieces if any(piece[0])) == sorted(expected)

    labels = [label for _, part in pieces for label in part if label != IGNORED_LABEL]
    first = batches[0]
    assert all(batch[2:6] == first[2:6] for batch in batches), "the counts are those of all ranks"
    assert first.answer_tokens == len(labels)
    assert first.tokens == sum(length - 1 for length in lengths)
    assert first.computed == sum(row.tokens.numel() for batch in batches for row in batch.micro_batches)


@given(num_samples=st.integers(1, 40), batch=st.integers(1, 12), ranks=st.integers(1, 3), start=st.integers(0, 5))
def test_an_epoch_trains_every_sample_once_from_any_start_on_any_number_of_ranks(
    tmp_path_factory: pytest.TempPathFactory, num_samples: int, batch: int, ranks: int, start: int
) -> None:
    split = make_split(tmp_path_factory.mktemp("split") / "training", [2 + index % 9 for index in range(num_samples)])
    max_steps = start + -(-num_samples // batch)
    seen = []
    for rank in range(ranks):
        loader = GlobalBatches(
            split,
            start_step=start,
            max_steps=max_steps,
            global_batch_size=batch,
            seed=7,
            data_rank=rank,
            data_parallel_size=ranks,
            plan=PackPlan(CAPACITY, 8, 0.0),
        )
        assert len(loader) == max_steps
        steps = list(loader)
        assert [step.step for step in steps] == list(range(start, max_steps))
        seen += [piece[0][0] for step in steps for row in step.micro_batches for piece in documents_of(row) if any(piece[0])]
    consumed = (max_steps - start) * batch
    first_tokens = [int(split.tokens[start]) for start in split.starts]
    counts = [seen.count(token) for token in first_tokens]
    assert sum(counts) == consumed
    if start == 0:
        assert min(counts) >= 1 and max(counts) - min(counts) <= 1 + (consumed > 2 * num_samples)


@pytest.mark.parametrize("prepared", [set(), {0, 1, 2, 3}, {1}], ids=["never", "always", "once"])
def test_batches_are_the_same_whether_they_are_prepared_or_not(tmp_path: Path, prepared: set[int]) -> None:
    split = make_split(tmp_path / "split", [2 + index % 9 for index in range(20)])
    settings = {"global_batch_size": 5, "seed": 7, "data_rank": 0, "data_parallel_size": 1, "plan": PackPlan(CAPACITY, 8, 0.0)}
    loader, plain = (GlobalBatches(split, start_step=1, max_steps=4, **settings) for _ in range(2))
    found = []
    if 0 in prepared:
        loader.prepare_next()
    for batch in loader:
        found.append(batch)
        if batch.step in prepared:
            loader.prepare_next()
            loader.prepare_next()
    assert [batch.step for batch in found] == [1, 2, 3]
    for batch, expected in zip(found, plain, strict=True):
        assert all(torch.equal(row.tokens, other.tokens) for row, other in zip(batch[1], expected[1], strict=True))


def test_ranks_without_samples_get_empty_rows_so_that_they_can_join_the_collectives(tmp_path: Path) -> None:
    split = make_split(tmp_path / "split", [4])
    batches = [make_step_batch(split, np.array([0]), 0, rank, 2, PackPlan(CAPACITY, 8, 0.0)) for rank in range(2)]
    assert [len(batch.micro_batches) for batch in batches] == [1, 1]
    assert torch.all(batches[1].micro_batches[0].labels == IGNORED_LABEL)


def documents_of(row: MicroBatch) -> list[tuple[list[int], list[int]]]:
    """(tokens, labels) of each document of a row; a document of padding has tokens 0 only, other padding is left out."""
    count = int(row.documents.extent[0])
    lengths = row.documents.boundaries[: count + 1].diff().tolist()
    tokens, labels = row.tokens[0].split(lengths), row.labels[0].split(lengths)
    if count == 1:
        assert row.labels[0, row.tokens[0] == 0].eq(IGNORED_LABEL).all()
        tokens, labels = ([x[row.tokens[0] != 0]] for x in (row.tokens[0], row.labels[0]))
    return [(t.tolist(), y.tolist()) for t, y in zip(tokens, labels, strict=True)]
