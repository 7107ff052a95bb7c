"""What a user reads when a worker fails, and how it gets from the worker to the launcher."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from finetuning.config.settings import RunConfig
from finetuning.errors import InputError, RunError
from finetuning.runtime.failures import clear_failures, explain, first_failure, write_failure, write_killed

pytestmark = pytest.mark.unit


def given(**changed: Any) -> RunConfig:
    return RunConfig(hf_model_id="model", dataset_path="data", **changed)


def allocation_that_fails() -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)  # more than any address space
    return caught.value


def test_our_own_errors_are_shown_as_they_are() -> None:
    assert explain(RunError("step 3: the loss is nan"), given()) == "step 3: the loss is nan"
    assert explain(InputError(["one", "two"]), given()) == "one\ntwo"


def test_other_errors_are_shown_with_their_type() -> None:
    assert explain(KeyError("x"), given()) == "KeyError: 'x'"


@pytest.mark.parametrize(
    "make", [lambda: torch.cuda.OutOfMemoryError("CUDA out of memory"), allocation_that_fails, MemoryError]
)
def test_out_of_memory_says_what_to_change(make: Any) -> None:
    assert explain(make(), given()) == (
        "Out of memory. What helps, in this order: lower --row_length or --seq_length (tokens of a packed row, and "
        "of the longest sample); --activation_checkpointing full; --peft lora; more GPUs (weights and optimizer are spread "
        "over them)"
    )


def test_out_of_memory_does_not_advise_what_is_switched_on_already() -> None:
    text = explain(MemoryError(), given(activation_checkpointing="full", peft="lora"))
    assert "--seq_length" in text and "more GPUs" in text
    assert "--activation_checkpointing" not in text and "--peft" not in text


def test_an_error_before_the_settings_are_known_is_explained_too() -> None:
    assert explain(MemoryError(), None).startswith("Out of memory.")


def test_a_full_disk_is_said_with_the_folder_of_the_experiment() -> None:
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        error = OSError(number, os.strerror(number))
        said = explain(error, given(experiments_dir="/nowhere", experiment="mine"))
        assert said.startswith(f"/nowhere/mine: no room left ({os.strerror(number)}")


def test_a_removed_experiment_is_said(tmp_path: Path) -> None:
    config = given(experiments_dir=str(tmp_path), experiment="mine")
    error = FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "mine" / "metrics.csv"))
    assert explain(error, config).startswith(f"{tmp_path / 'mine'}: the experiment's folder was removed")
    (tmp_path / "mine").mkdir()
    assert explain(error, config).startswith("FileNotFoundError: ")


def test_the_earliest_failure_is_the_one_that_counts(tmp_path: Path) -> None:
    write_failure(tmp_path, 1, RunError("the cause"), given())
    write_failure(tmp_path, 0, RuntimeError("connection closed by peer"), given())
    failure = first_failure(tmp_path)
    assert failure is not None
    assert (failure["rank"], failure["message"]) == (1, "the cause")


def test_what_a_rank_has_said_stands_where_a_signal_ended_it_on_its_way_out(tmp_path: Path) -> None:
    write_failure(tmp_path, 1, RunError("the cause"), given())
    write_killed(tmp_path, 1, "SIGABRT")
    failure = first_failure(tmp_path)
    assert failure is not None
    assert (failure["message"], failure["kind"]) == ("the cause", "own")


def test_a_failure_keeps_its_traceback(tmp_path: Path) -> None:
    try:
        raise KeyError("x")
    except KeyError as error:
        write_failure(tmp_path / "logs", 0, error, None)
    failure = first_failure(tmp_path / "logs")
    assert failure is not None
    assert "test_failures.py" in failure["traceback"]


def test_no_failure_is_none(tmp_path: Path) -> None:
    assert first_failure(tmp_path) is None


def test_a_failure_that_is_still_being_written_is_not_seen(tmp_path: Path) -> None:
    (tmp_path / ".rank_0.error-123").write_text('{"rank": 0, ', encoding="utf-8")
    assert first_failure(tmp_path) is None
    write_failure(tmp_path, 0, RunError("x"), None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".rank_0.error-123", "rank_0.error.json"]


def test_failures_of_an_earlier_run_are_cleared(tmp_path: Path) -> None:
    write_failure(tmp_path, 0, RunError("x"), None)
    (tmp_path / "rank_0.log").write_text("kept", encoding="utf-8")
    clear_failures(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["rank_0.log"]


def test_the_record_is_plain_json(tmp_path: Path) -> None:
    write_failure(tmp_path, 3, RunError("記憶體不足"), None)
    assert json.loads((tmp_path / "rank_3.error.json").read_text(encoding="utf-8"))["message"] == "記憶體不足"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rank": "x"}', '{"rank": 1, "time": 1, "message": "m", "kind": "new"}'])
def test_a_damaged_failure_is_one_all_the_same_but_after_those_that_can_be_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "rank_3.error.json").write_text(text, encoding="utf-8")
    failure = first_failure(tmp_path)
    assert failure is not None
    assert failure["rank"] == 3
    assert failure["message"].startswith(f"it has left no readable error ({tmp_path}/rank_3.error.json: ")
    write_failure(tmp_path, 0, RunError("the cause"), None)
    failure = first_failure(tmp_path)
    assert failure is not None
    assert failure["message"] == "the cause"
