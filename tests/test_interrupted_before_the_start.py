"""Whatever ends the command before it has started anything: exit code 130, one line, and nothing is left."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.commands import Command, descendants, finetune, is_gone

pytestmark = [pytest.mark.dist, pytest.mark.timeout(600)]

PATIENCE_S = 20.0  # a batch of samples is finished first


@pytest.fixture(scope="module")
def large_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough text for several processes, and for some seconds of them."""
    folder = tmp_path_factory.mktemp("large")
    words = [f"字{number}" for number in range(1000)]
    random.seed(0)
    with (folder / "training.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(30_000):
            file.write(json.dumps({"input": " ".join(random.choices(words, k=60)), "output": "好"}, ensure_ascii=False) + "\n")
    return folder


def close_terminal(command: Command) -> None:
    command.close_terminal()


def end_group(command: Command) -> None:
    os.killpg(command.process.pid, signal.SIGTERM)


@pytest.mark.parametrize("moment", ["processes start", "samples are read"])
@pytest.mark.parametrize("end", [Command.ctrl_c, close_terminal, end_group])
def test_while_the_data_is_read_it_ends_at_once_in_one_line(
    end: object, moment: str, tiny_model: Path, large_dataset: Path, tmp_path: Path
) -> None:
    command = finetune(
        tmp_path,
        "--hf_model_id",
        str(tiny_model),
        "--dataset_path",
        str(large_dataset),
        "--num_gpus",
        "1",
        "--global_batch_size",
        "8",
        "--seq_length",
        "1024",
    )
    if moment == "processes start":
        command.wait_until(lambda: len(descendants(command.process.pid)) >= 2)
    else:
        command.wait_until(lambda: any(file.stat().st_size for file in tmp_path.rglob(".incomplete-*/*/*")))
    below = descendants(command.process.pid)
    started = time.monotonic()
    assert callable(end)
    end(command)
    code, output = command.finish()
    assert code == 130, output
    assert time.monotonic() - started < PATIENCE_S
    assert [line for line in output.splitlines() if "%" not in line] == ["Stopped. Nothing was started."]
    assert [path.name for path in tmp_path.iterdir()] == ["output.txt"]
    while time.monotonic() - started < PATIENCE_S and not all(map(is_gone, below)):
        time.sleep(0.1)  # those that were asked themselves may end a moment later
    assert [pid for pid in below if not is_gone(pid)] == []
