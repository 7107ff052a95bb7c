"""The ledger: what each step consumed, never missing and never twice, whatever is killed when."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetuning.config.strategy import PackPlan
from finetuning.data.batches.global_batch import GlobalBatches
from finetuning.data.batches.ledger import Ledger, ledger_entry, read_ledger
from finetuning.data.tokens.tokenized import TokenizedSplit, open_split, write_split

pytestmark = pytest.mark.unit

NUM_SAMPLES, BATCH = 23, 5
EPOCH_STEPS = 5


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> TokenizedSplit:
    """Sample i stands in line 3 * i + 1 and has i + 2 tokens, the last of them trained."""
    folder = tmp_path_factory.mktemp("split") / "training"
    write_split(folder, [(list(range(i + 2)), [False] * (i + 1) + [True], 3 * i + 1) for i in range(NUM_SAMPLES)])
    found = open_split(folder)
    assert isinstance(found, TokenizedSplit)
    return found


def train(path: Path, split: TokenizedSplit, ranks: int, resume_step: int, max_steps: int) -> None:
    """What rank 0 of a run with this many ranks writes."""
    ledger = Ledger(path, resume_step)
    batches = GlobalBatches(
        split,
        start_step=resume_step,
        max_steps=max_steps,
        global_batch_size=BATCH,
        seed=3,
        data_rank=0,
        data_parallel_size=ranks,
        plan=PackPlan(64, 1, 0.0),
    )
    for batch in batches:
        ledger.append(ledger_entry(split, batch.step + 1, batch.samples))


@given(data=st.data(), kills=st.integers(0, 4))
def test_no_line_is_missing_or_twice_in_an_epoch_after_kills_and_other_process_counts(
    tmp_path_factory: pytest.TempPathFactory, split: TokenizedSplit, data: st.DataObject, kills: int
) -> None:
    path = tmp_path_factory.mktemp("run") / "ledger.bin"
    checkpoint = 0
    for _ in range(kills):
        ranks = data.draw(st.integers(1, 4), label="ranks")
        reached = data.draw(st.integers(checkpoint, 2 * EPOCH_STEPS), label="steps done when it is killed")
        train(path, split, ranks, checkpoint, reached)
        torn = data.draw(st.integers(0, min(30, path.stat().st_size)), label="bytes lost of what was being written")
        complete = len(list(read_ledger(path)))
        path.write_bytes(path.read_bytes()[: path.stat().st_size - torn])
        # A checkpoint claims only steps whose entry is on disk already.
        on_disk = len(list(read_ledger(path)))
        assert on_disk <= complete
        checkpoint = data.draw(st.integers(min(checkpoint, on_disk), on_disk), label="step of the newest checkpoint")
    train(path, split, data.draw(st.integers(1, 4)), checkpoint, 2 * EPOCH_STEPS)
    entries = list(read_ledger(path))
    assert [entry.step for entry in entries] == list(range(1, 2 * EPOCH_STEPS + 1))
    stream = np.concatenate([entry.lines for entry in entries])
    every_line = [3 * i + 1 for i in range(NUM_SAMPLES)]
    for epoch in range(2):
        assert sorted(stream[epoch * NUM_SAMPLES : (epoch + 1) * NUM_SAMPLES].tolist()) == every_line


def test_an_entry_holds_lines_tokens_and_answer_tokens(tmp_path: Path, split: TokenizedSplit) -> None:
    ledger = Ledger(tmp_path / "ledger.bin", 0)
    ledger.append(ledger_entry(split, 1, np.array([4, 0])))
    (entry,) = read_ledger(tmp_path / "ledger.bin")
    assert (entry.lines.tolist(), entry.tokens.tolist(), entry.answer_tokens.tolist()) == ([13, 1], [6, 2], [1, 1])


def test_it_is_compact(tmp_path: Path) -> None:
    folder = tmp_path / "training"
    write_split(folder, [([1] * (20 + i % 300), [True] * (20 + i % 300), 10 * i + 1) for i in range(5_000)])
    split = open_split(folder)
    ledger = Ledger(tmp_path / "ledger.bin", 0)
    ledger.append(ledger_entry(split, 1, np.random.default_rng(0).permutation(5_000)[:2048]))
    assert (tmp_path / "ledger.bin").stat().st_size < 6 * 2048


def test_bytes_that_are_no_ledger_are_not_taken_for_one(tmp_path: Path) -> None:
    path = tmp_path / "ledger.bin"
    path.write_bytes(b"something else that is long enough for a header")
    assert list(read_ledger(path)) == []
    assert list(read_ledger(tmp_path / "nowhere")) == []
