"""The demo's data: what the script writes, in both languages, with nothing of a test in the training."""

import json
from pathlib import Path

import pytest

from examples.make_records import FOLDER, SIZES, write_records

pytestmark = pytest.mark.unit


def test_the_data_that_are_here_are_those_that_the_script_writes(tmp_path: Path) -> None:
    write_records(tmp_path)
    for split in SIZES:
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (FOLDER / f"{split}.jsonl").read_bytes()


def test_no_record_is_in_two_splits_and_every_value_can_be_read_off_its_sentence() -> None:
    splits = {split: (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines() for split in SIZES}
    assert {split: len(lines) for split, lines in splits.items()} == SIZES
    samples = [json.loads(line) for lines in splits.values() for line in lines]
    assert len({sample["output"] for sample in samples}) == len(samples) == len({sample["input"] for sample in samples})
    chinese = 0
    for sample in samples:
        sentence, record = sample["input"], json.loads(sample["output"])
        assert list(record) == ["who", "did", "count", "what", "day"]
        assert all(record[key] in sentence for key in ("who", "did", "what", "day")) and 2 <= record["count"] <= 12
        chinese += not sentence.isascii()
    assert chinese == len(samples) / 2


def test_another_seed_gives_other_data(tmp_path: Path) -> None:
    write_records(tmp_path, seed=5)
    assert (tmp_path / "test.jsonl").read_bytes() != (FOLDER / "test.jsonl").read_bytes()
