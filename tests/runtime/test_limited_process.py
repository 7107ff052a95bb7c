"""A process that is ended, idle, silent or too talkative never gives a wrong answer, and the next call works."""

import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetuning.errors import InputError
from finetuning.runtime import limited_process
from finetuning.runtime.limited_process import LimitedProcess, NoAnswer
from tests.runtime.limited_answers import IDLE_S

pytestmark = pytest.mark.dist  # each starts a process


@pytest.fixture
def process() -> Iterator[LimitedProcess]:
    process = LimitedProcess("tests.runtime.limited_answers")
    yield process
    process.end()


def test_answers_are_those_of_the_request_and_nothing_that_is_printed(process: LimitedProcess) -> None:
    first = process.call(["process"], 5.0)
    assert process.call({"中": [1, None, "\ud800"]}, 5.0) == {"中": [1, None, "\ud800"]}
    assert process.call(["print"], 5.0) == "answer"
    assert len(process.call(["long", 3_000_000], 5.0)) == 3_000_000
    assert process.call(["process"], 5.0) == first, "one process answers all"


def test_an_idle_process_ends_and_the_next_call_starts_another(process: LimitedProcess) -> None:
    first = process.call(["process"], 5.0)
    assert process.process is not None
    assert process.process.wait(timeout=20 * IDLE_S + 10) == 0
    assert process.call(["process"], 5.0) != first


def test_a_process_that_was_killed_is_told_once_and_replaced(process: LimitedProcess) -> None:
    first = process.call(["process"], 5.0)
    with pytest.raises(NoAnswer, match=r"ended the process that it ran in \(SIGKILL\)"):
        process.call(["end by", signal.SIGKILL], 5.0)
    assert process.call(["process"], 5.0) != first


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_to_the_whole_run_leave_it_to_its_parent(process: LimitedProcess, number: int) -> None:
    first = process.call(["process"], 5.0)
    assert process.process is not None
    process.process.send_signal(number)
    assert process.call(["process"], 5.0) == first


def test_an_answer_that_is_too_long_is_not_read(process: LimitedProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited_process, "MAX_MESSAGE_BYTES", 1000)
    with pytest.raises(NoAnswer, match="makes a text of more than 0 MiB"):
        process.call(["long", 1001], 5.0)
    assert process.call("short", 5.0) == "short", "nothing of the answer before is left"


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (["spin"], "takes too much time"),
        (["memory"], "takes too much memory"),
        (["end by", signal.SIGABRT], "takes too much memory"),
        (["end by", signal.SIGSEGV], "ended the process that it ran in (SIGSEGV)"),
        (["exit", 3], "ended the process that it ran in (exit code 3)"),
        (["raise", "KeyError"], "fails (KeyError: 'a')"),
        (["raise", "RecursionError"], "fails (RecursionError: a)"),
        (["raise", "SystemExit"], "fails (SystemExit: a)"),
    ],
)
def test_the_true_reason_is_told_where_there_is_no_answer(process: LimitedProcess, request_: list[object], reason: str) -> None:
    with pytest.raises(NoAnswer) as told:
        process.call(request_, 0.5)
    assert str(told.value) == reason
    assert process.call("next", 5.0) == "next"


def test_a_process_that_waits_for_ever_is_ended(process: LimitedProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited_process, "WALL_FACTOR", 4)
    process.call("started", 5.0)
    began = time.monotonic()
    with pytest.raises(NoAnswer, match="takes too much time"):
        process.call(["sleep"], 0.25)
    assert time.monotonic() - began < 10
    assert process.call("next", 5.0) == "next"


def test_a_machine_without_room_for_the_process_is_told_so(process: LimitedProcess) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())), hard))
    try:
        with pytest.raises(NoAnswer, match=r"could not be run \(Too many open files\)"):
            process.call("next", 5.0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert process.call("next", 5.0) == "next"


def test_what_the_function_refuses_is_told_in_its_words(process: LimitedProcess) -> None:
    with pytest.raises(InputError) as refused:
        process.call(["refuse"], 5.0)
    assert refused.value.problems == ["one", "two"]
