"""Tokens are built once: by one of several processes that start together, and anew after one was killed half-way."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from finetuning.data.batches.order import samples_of_step
from finetuning.data.tokens.configure import build_once, configure_dataset
from tests.data.conftest import WriteJsonl
from tests.data.samples import pairs

pytestmark = pytest.mark.unit

SPAWN = multiprocessing.get_context("spawn")


def slow_build(folder: Path, log: Path, hold_s: float) -> None:
    """Builds a folder of two files with a pause between them, and notes that it did."""

    def build(target: Path) -> None:
        target.mkdir()
        (target / "first").write_text("1", encoding="utf-8")
        with log.open("a", encoding="utf-8") as file:
            file.write("built\n")
        time.sleep(hold_s)
        (target / "second").write_text("2", encoding="utf-8")

    build_once(folder, build)
    assert (folder / "first").is_file() and (folder / "second").is_file()


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
