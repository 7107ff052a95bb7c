"""What is written in any form is read again as the same sample."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetuning.cli.data import main
from finetuning.data.reading.records import Sample, parse_record
from finetuning.data.report.forms import FORMS
from tests.data.conftest import WriteJsonl

pytestmark = pytest.mark.unit

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {}}}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": {"a": "二"}}}
QUESTION, ANSWER = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "4", "tool_call_id": "call_1"}
RECORDS: dict[str, tuple[dict[str, Any], set[str]]] = {  # and the forms that have no place for them
    "pair": ({"input": "a", "output": "b"}, set()),
    "with a system message": ({"input": "a", "output": "b", "system": "s"}, set()),
    "turns": ({"input": "a", "output": "b", "history": [["c", "d"]]}, {"input_output"}),
    "weights": ({"messages": [QUESTION, {**ANSWER, "weight": 0}, QUESTION, ANSWER]}, {"input_output"}),
    "a call": ({"messages": [QUESTION, CALLING, RESULT, {**ANSWER, "weight": 1}], "tools": [TOOL]}, {"input_output"}),
    "an untrained call": ({"messages": [QUESTION, {**CALLING, "weight": 0}, RESULT, ANSWER]}, {"input_output"}),
    "two questions": ({"messages": [QUESTION, QUESTION, ANSWER]}, {"input_output"}),
    "thoughts": ({"messages": [QUESTION, {**ANSWER, "reasoning_content": "hm"}]}, {"input_output"}),
    "a developer": ({"messages": [{"role": "developer", "content": "s"}, QUESTION, ANSWER]}, {"input_output", "sharegpt"}),
    "a named system": ({"messages": [{"role": "system", "content": "s", "name": "x"}, QUESTION, ANSWER]}, {"input_output"}),
    "text": ({"text": "a b c"}, {"input_output", "sharegpt", "openai"}),
}


def read(record: dict[str, Any]) -> Sample:
    sample, _, problems = parse_record(record, 1)
    assert sample is not None and not problems, problems
    return sample


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", RECORDS)
def test_a_sample_is_the_same_after_a_round_trip(name: str, form: str) -> None:
    record, without_place = RECORDS[name]
    written = FORMS[form](read(record))
    assert (written is None) == (form in without_place)
    if written is not None:
        written = json.loads(json.dumps(written))
        assert read(written) == read(record)
        assert set(written) <= {"jsonl": {"input", "output", "text", "messages", "tools"}, "openai": {"messages", "tools"}}.get(
            form, set(written)
        )


def test_openai_s_form_gives_calls_ids_and_arguments_as_text() -> None:
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "2+2?"},
            {"from": "function_call", "value": '[{"name": "add", "arguments": {}}, {"name": "add", "arguments": {"a": 1}}]'},
            {"from": "observation", "value": "4"},
            {"from": "observation", "value": "5"},
            {"from": "gpt", "value": "4"},
        ]
    }
    written = FORMS["openai"](read(sharegpt))
    assert written is not None
    _, calling, first, second, _ = written["messages"]
    assert [(call["id"], call["function"]["arguments"]) for call in calling["tool_calls"]] == [
        ("call_1", "{}"),
        ("call_2", '{"a": 1}'),
    ]
    assert (first["tool_call_id"], second["tool_call_id"]) == ("call_1", "call_2")


def test_prepare_writes_a_form_and_lists_what_it_cannot_hold(
    tmp_path: Path, write_jsonl: WriteJsonl, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_jsonl("raw.jsonl", *(record for record, _ in RECORDS.values()))
    assert main(["prepare", str(source), str(tmp_path / "out"), "--to", "sharegpt", "--test_share", "0"]) == 0
    written = [
        json.loads(line)
        for name in ("training", "validation")
        for line in (tmp_path / "out" / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    ]
    assert len(written) == 9 and all("conversations" in record for record in written)
    screen = capsys.readouterr().out
    assert "more than the form holds (2)" in screen
    assert "raw.jsonl:11: has more than `--to sharegpt` can hold; it is not written" in screen
    assert "9 of 11 samples written" in screen
