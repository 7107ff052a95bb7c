"""Tokens are built once: by one of several processes that start together, and anew after one was killed half-way."""

import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from finetuning.config.strategy import PackPlan
from finetuning.data.batches.global_batch import make_step_batch
from finetuning.data.batches.order import samples_of_step
from finetuning.data.tokens.configure import build_once, configure_dataset
from finetuning.data.tokens.tokenized import open_split
from finetuning.errors import InputError, NoRoom, RunError
from tests.data.conftest import WriteJsonl
from tests.data.samples import pairs
from tests.data.tokens.slow_build import slow_build

pytestmark = pytest.mark.unit

SPAWN = multiprocessing.get_context("spawn")


@pytest.mark.dist  # four processes
def test_several_processes_that_start_together_build_once(tmp_path: Path) -> None:
    folder, log = tmp_path / "tokens" / "key", tmp_path / "log"
    processes = [SPAWN.Process(target=slow_build, args=(folder, log, 0.5)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert log.read_text(encoding="utf-8") == "built\n"
    assert [path.name for path in folder.parent.iterdir()] == ["key"], "no lock, no leftovers"


def test_a_builder_that_is_killed_leaves_nothing_that_could_be_taken_for_complete(tmp_path: Path) -> None:
    folder, log = tmp_path / "tokens" / "key", tmp_path / "log"
    process = SPAWN.Process(target=slow_build, args=(folder, log, 60))
    process.start()
    while not log.is_file():
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not folder.exists()
    slow_build(folder, log, 0)
    assert [path.name for path in folder.parent.iterdir()] == ["key"], "what the killed one left is cleared away"


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(target: Path) -> None:
        target.mkdir()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        build_once(tmp_path / "tokens" / "key", build)
    assert list(tmp_path.iterdir()) == []


def test_a_second_start_reads_neither_samples_nor_epochs_again(
    model_path: Path, tmp_path: Path, write_jsonl: WriteJsonl, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_jsonl("data/training.jsonl", *pairs(50)).parent
    first = configure_dataset(folder, model_path, tmp_path / "tokens", seq_length=512)

    def never(*arguments: object) -> None:
        raise AssertionError("scanned again")

    monkeypatch.setattr("finetuning.data.tokens.configure.scan_sources", never)
    second = configure_dataset(folder, model_path, tmp_path / "tokens", seq_length=512)
    assert second.folder == first.folder
    assert second.report.files == first.report.files
    # Where the data stands is arithmetic: the millionth step costs what the first does, whatever lies between.
    assert len(samples_of_step(1_000_000, 16, 50, 1)) == 16


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("tokens.bin", "empty"),
        ("tokens.bin", "zeros"),
        ("trained.bin", "zeros"),
        ("trained.bin", "shorter"),
        ("answers.npy", "one bit"),
        ("report.json", "gone"),
        ("lines.npy", "no list"),
    ],
)
def test_damaged_tokens_are_built_anew_and_it_is_said(
    model_path: Path, tmp_path: Path, write_jsonl: WriteJsonl, name: str, damage: str
) -> None:
    folder = write_jsonl("data/training.jsonl", *pairs(4)).parent
    first = configure_dataset(folder, model_path, tmp_path / "tokens", seq_length=512)
    assert first.damage is None
    file = next(first.folder.rglob(name))
    before = {path.name: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    elif damage == "no list":
        name = "contents.json"
        (first.folder / name).unlink()
    else:
        flipped = content[:40] + bytes([content[40] ^ 1]) + content[41:]
        damaged = {"empty": b"", "zeros": bytes(len(content)), "shorter": content[:-4], "one bit": flipped}
        file.write_bytes(damaged[damage])
    second = configure_dataset(folder, model_path, tmp_path / "tokens", seq_length=512)
    assert second.damage is not None and name in second.damage
    assert {path.name: path.read_bytes() for path in second.folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == [second.folder.name]


def test_a_full_disk_is_said_with_its_folder_and_leaves_nothing(
    model_path: Path, tmp_path: Path, write_jsonl: WriteJsonl
) -> None:
    folder = write_jsonl("data/training.jsonl", *pairs(50)).parent
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # the system answers EFBIG, as it answers ENOSPC
    try:
        with pytest.raises(NoRoom, match=f"^{tmp_path / 'tokens'}: no room left"):
            configure_dataset(folder, model_path, tmp_path / "tokens", seq_length=512)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "tokens").exists()
    assert len(configure_dataset(folder, model_path, tmp_path / "tokens", seq_length=512).splits["training"]) == 50


def test_tokens_that_are_damaged_when_a_worker_opens_them_are_refused(
    model_path: Path, tmp_path: Path, write_jsonl: WriteJsonl
) -> None:
    """As after a job has waited in a queue."""
    folder = write_jsonl("data/training.jsonl", *pairs(4)).parent
    split = configure_dataset(folder, model_path, tmp_path / "tokens", seq_length=512).folder / "training"
    for name, content in (("tokens.bin", b""), ("starts.npy", b""), ("counts.npy", bytes(160)), ("split.json", b"[]")):
        file = next(split.parent.rglob(name))
        kept = file.read_bytes()
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"the tokens are damaged \(.*\)\. Run the same command again"):
            open_split(split)
        file.write_bytes(kept)
    assert len(open_split(split)) == 4


def test_a_step_without_a_trainable_token_is_an_error(model_path: Path, tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    folder = write_jsonl("data/training.jsonl", *pairs(4)).parent
    split = configure_dataset(folder, model_path, tmp_path / "tokens", seq_length=512).folder / "training"
    plan, samples = PackPlan(512, 8, 0.01), np.arange(4)
    trained = next(split.parent.rglob("trained.bin"))
    trained.write_bytes(bytes(trained.stat().st_size))
    with pytest.raises(RunError, match=r"step 3: 0 tokens of a packed sequence are trainable, and \d+ were when it was made"):
        make_step_batch(open_split(split), samples, 2, 0, 1, plan)
    np.save(split / "answers.npy", np.zeros(4, np.int64))
    with pytest.raises(RunError, match="step 3: none of its 4 samples has a trainable token"):
        make_step_batch(open_split(split), samples, 2, 0, 1, plan)
