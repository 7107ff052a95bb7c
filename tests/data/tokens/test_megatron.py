"""Megatron's indexed data, in and out: the bytes, what is refused, and documents cut into samples without loss."""

import os
import shutil
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetuning.config.strategy import PackPlan
from finetuning.data.batches.global_batch import make_step_batch
from finetuning.data.tokens.configure import configure_dataset
from finetuning.data.tokens.megatron import MegatronSplit, open_megatron_split, read_megatron, write_megatron
from finetuning.data.tokens.tokenized import open_split
from finetuning.errors import InputError
from finetuning.model.cross_entropy import IGNORED_LABEL
from tests.formats.nemo.megatron_core import megatron_core

pytestmark = pytest.mark.unit


def documents_from(lengths: list[int]) -> list[np.ndarray]:
    ends = np.cumsum(lengths)
    return [np.arange(end - length + 1, end + 1) for length, end in zip(lengths, ends, strict=True)]


def test_the_index_has_the_documented_bytes(tmp_path: Path) -> None:
    assert write_megatron(tmp_path / "x", documents_from([3, 1]), vocab_size=1000) == 2
    assert (tmp_path / "x.bin").read_bytes() == struct.pack("<4H", 1, 2, 3, 4)
    assert (tmp_path / "x.idx").read_bytes() == (
        b"MMIDIDX\0\0"
        + struct.pack("<QBQQ", 1, 8, 2, 3)
        + struct.pack("<2i", 3, 1)
        + struct.pack("<2q", 0, 6)
        + struct.pack("<3q", 0, 1, 2)
    )


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_499, "<u2"), (65_500, "<i4"), (128_256, "<i4")])
def test_a_large_vocabulary_takes_four_bytes(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    write_megatron(tmp_path / "x", documents_from([3]), vocab_size)
    assert read_megatron(tmp_path / "x").tokens.dtype == np.dtype(dtype)


def test_a_document_of_several_sequences_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(struct.pack("<6i", *range(6)))
    (tmp_path / "x.idx").write_bytes(
        b"MMIDIDX\0\0"
        + struct.pack("<QBQQ", 1, 4, 3, 3)
        + struct.pack("<3i", 1, 2, 3)
        + struct.pack("<3q", 0, 4, 12)
        + struct.pack("<3q", 0, 2, 3)
    )
    data = read_megatron(tmp_path / "x.idx")
    assert [data.tokens[a:b].tolist() for a, b in zip(data.starts, data.ends, strict=True)] == [[0, 1, 2], [3, 4, 5]]


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=30), seq_length=st.integers(1, 40))
def test_every_transition_inside_a_document_is_trained_once_and_none_between_documents(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], seq_length: int
) -> None:
    prefix = tmp_path_factory.getbasetemp() / "property"
    write_megatron(prefix, documents_from(lengths), 1000)
    split = open_megatron_split(prefix, seq_length, np.arange(len(lengths)))
    found = []
    for index in range(len(split)):
        pieces = split.pieces(index)
        assert sum(len(tokens) - 1 for tokens, _ in pieces) == split.lengths[index] <= seq_length
        assert all(trained.all() for _, trained in pieces)
        found += [pair for tokens, _ in pieces for pair in zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True)]
    ends = np.cumsum(lengths).tolist()
    assert found == [(token, token + 1) for token in range(1, ends[-1]) if token not in ends]


def test_documents_stay_apart_in_a_packed_row(tmp_path: Path) -> None:
    write_megatron(tmp_path / "x", documents_from([4, 3, 5]), 1000)
    split = open_megatron_split(tmp_path / "x", 4, np.arange(3))
    assert split.lines.tolist() == [1, 2, 3]
    batch = make_step_batch(split, np.arange(len(split)), 0, 0, 1, PackPlan(16, 1, 0.0))
    (row,) = batch.micro_batches
    boundaries = row.documents.boundaries[: int(row.documents.extent[0]) + 1].tolist()
    pieces = [row.tokens[0, a:b].tolist() for a, b in pairwise(boundaries)]
    assert sorted(pieces) == [[1, 2, 3], [5], [6], [8, 9, 10], [11]]
    assert IGNORED_LABEL not in row.labels and batch.answer_tokens == 9
    assert torch.equal(row.labels, row.tokens + 1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no bin", "there is no such file"),
        ("not an index", "not a Megatron index"),
        ("cut index", "its header promises"),
        ("cut bin", "its index needs"),
        ("floats", "version 1 with data type 6 cannot be read"),
    ],
)
def test_damaged_files_are_refused_with_the_reason(tmp_path: Path, damage: str, message: str) -> None:
    write_megatron(tmp_path / "x", documents_from([3, 4]), 1000)
    index, tokens = tmp_path / "x.idx", tmp_path / "x.bin"
    raw = index.read_bytes()
    match damage:
        case "no bin":
            tokens.unlink()
        case "not an index":
            index.write_bytes(b"PK\3\4" + raw[4:])
        case "cut index":
            index.write_bytes(raw[:-3])
        case "cut bin":
            tokens.write_bytes(tokens.read_bytes()[:-2])
        case "floats":
            index.write_bytes(raw[:17] + b"\6" + raw[18:])
    with pytest.raises(InputError, match=message):
        read_megatron(tmp_path / "x")


@pytest.mark.parametrize("given", ["folder", "prefix", "file"])
def test_a_run_takes_a_folder_a_prefix_or_a_file(tmp_path: Path, model_path: Path, given: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_megatron(folder / "corpus_text_document", documents_from([30] * 200), 1000)
    path = {"folder": folder, "prefix": folder / "corpus_text_document", "file": folder / "corpus_text_document.bin"}[given]
    dataset = configure_dataset(path, model_path, tmp_path / "tokens", seq_length=64)
    assert dataset.was_split and dataset.example is None
    splits = {name: open_split(dataset.folder / name) for name in dataset.splits}
    assert all(isinstance(split, MegatronSplit) for split in splits.values())
    documents = {name: split.documents.tolist() for name, split in splits.items() if isinstance(split, MegatronSplit)}
    assert {name: len(found) for name, found in documents.items()} == {"training": 196, "validation": 2, "test": 2}
    assert sorted(d for found in documents.values() for d in found) == list(range(200))


def test_named_parts_are_taken_as_they_are(tmp_path: Path, model_path: Path) -> None:
    for name, count in (("training", 5), ("validation", 2)):
        write_megatron(tmp_path / f"{name}_text_document", documents_from([30] * count), 1000)
    dataset = configure_dataset(tmp_path, model_path, tmp_path / "tokens", seq_length=64)
    assert {name: int(split.lengths.sum()) for name, split in dataset.splits.items()} == {"training": 145, "validation": 58}


def test_a_base_model_without_chat_template_will_do(tmp_path: Path, model_path: Path) -> None:
    base = Path(shutil.copytree(model_path, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors", "*.jinja")))
    write_megatron(tmp_path / "training_text_document", documents_from([30] * 5), 1000)
    dataset = configure_dataset(tmp_path / "training_text_document", base, tmp_path / "tokens", seq_length=64)
    assert dataset.prompt_format.chat_template() is None
    with pytest.raises(InputError, match="--prompt_template has no effect: Megatron data holds tokens"):
        configure_dataset(tmp_path, base, tmp_path / "tokens", seq_length=64, prompt_template="{input}{output}")


@pytest.mark.slow
def test_megatron_core_reads_what_is_written_and_the_reverse(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(megatron_core())}
    documents = documents_from([3, 1, 7])
    for vocab_size in (1000, 128_256):
        ours, theirs = tmp_path / f"ours{vocab_size}", tmp_path / f"theirs{vocab_size}"
        write_megatron(ours, documents, vocab_size)
        script = f"""
from megatron.core.datasets import indexed_dataset as ix
import torch
data = ix.IndexedDataset({str(ours)!r})
builder = ix.IndexedDatasetBuilder({str(theirs)!r} + ".bin", dtype=ix.DType.optimal_dtype({vocab_size}))
for i in range(len(data)):
    builder.add_document(torch.tensor(data[i].tolist()), [len(data[i])])
builder.finalize({str(theirs)!r} + ".idx")
print(data.document_indices.tolist(), [x.tolist() for x in data[:]])
"""
        run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
        assert run.stdout.strip().splitlines()[-1] == f"[0, 1, 2, 3] {[d.tolist() for d in documents]}"
        for ending in (".bin", ".idx"):
            assert ours.with_name(ours.name + ending).read_bytes() == theirs.with_name(theirs.name + ending).read_bytes()
