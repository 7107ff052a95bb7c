"""No field that would change a sample is dropped silently."""

import json
from pathlib import Path

import pytest

from finetuning.data.prompts.prompt_format import PromptFormat, load_prompt_format
from finetuning.data.reading.check import Report, scan_sources
from finetuning.data.reading.fields import HARMLESS
from finetuning.data.reading.records import Sample, parse_record
from finetuning.data.reading.scan import MAX_UNKNOWN, ScanSettings
from finetuning.data.reading.sources import Source
from finetuning.inference.samples import read_samples
from tests.data.conftest import WriteJsonl

pytestmark = pytest.mark.unit

PAIR = {"input": "2+2?", "output": "4"}
TURNS = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]


def answer(**fields: object) -> dict[str, object]:
    return {"messages": [TURNS[0], {**TURNS[1], **fields}]}


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"messages": TURNS, "history": [["1+1?", "2"]]}, "history"),
        ({**PAIR, "tools": [{"type": "function"}]}, "tools"),
        ({"text": "2+2 is 4", "system": "Be brief.", "tools": [1]}, "tools"),
        ({"messages": TURNS, "images": ["cat.png"]}, "images"),
        ({"messages": TURNS, "tool_choice": "auto"}, "tool_choice"),
        (answer(reasoning="2 and 2"), "messages[].reasoning"),
        (answer(refusal="no"), "messages[].refusal"),
        ({"messages": [{**TURNS[0], "tool_calls": [{"id": "1"}]}, TURNS[1]]}, "messages[].tool_calls"),
        ({"messages": [{**TURNS[0], "reasoning_content": "?"}, TURNS[1]]}, "messages[].reasoning_content"),
        ({"conversations": [{"from": "human", "value": "2+2?", "images": ["x"]}, *TURNS[1:]]}, "messages[].images"),
        ({**PAIR, "weight": 0}, "weight"),
        ({**PAIR, "weight": 0.5}, "weight"),
        ({**PAIR, "weight": float("nan")}, "weight"),
        ({**PAIR, "train": False}, "train"),
        ({**PAIR, "loss": "no"}, "loss"),
        ({**PAIR, "reasoning_content": "2 and 2"}, "reasoning_content"),
        ({"prompt": "a", "completion": "b", "label": False}, "label"),
        ({"prompt": "a", "completion": "b", "rejected": "c"}, "rejected"),
        ({"messages": [{**TURNS[0], "train": True}, TURNS[1]]}, "messages[].train"),
    ],
)
def test_a_field_that_would_change_the_sample_is_refused(record: dict, name: str) -> None:
    sample, _, (problem, *more) = parse_record(record, 1)
    assert sample is None and not more
    assert (problem.code, problem.values["name"]) == ("unsupported_field", name)


@pytest.mark.parametrize(
    "record",
    [
        {**PAIR, "history": [], "tools": None, "images": [], "reasoning_content": ""},
        {**PAIR, "weight": 1, "train": True},
        {**PAIR, "weight": 1.0, **dict.fromkeys(HARMLESS, 3)},
        answer(weight=1, tool_calls=None, refusal=None, name=None, id="3"),
        {"messages": [{**TURNS[0], "weight": 0, "train": False}, {**TURNS[1], "train": True}]},
    ],
)
def test_a_field_that_says_what_is_done_anyway_is_not_told(record: dict) -> None:
    assert parse_record(record, 1)[::2] == (Sample(1, "2+2?", "4"), [])


@pytest.mark.parametrize(
    ("record", "sample"),
    [
        ({**PAIR, "system": "Be brief."}, Sample(1, "2+2?", "4", "Be brief.")),
        ({"instruction": "2+2?", "output": "4", "system": "Be brief."}, Sample(1, "2+2?", "4", "Be brief.")),
        ({"prompt": "2+2?", "completion": "4", "system": "Be brief."}, Sample(1, "2+2?", "4", "Be brief.")),
        ({"messages": TURNS, "system": "Be brief."}, Sample(1, "2+2?", "4", "Be brief.")),
        ({"messages": [{"role": "system", "content": "x"}, *TURNS], "system": " x "}, Sample(1, "2+2?", "4", "x")),
        ({**PAIR, "system": " "}, Sample(1, "2+2?", "4")),
    ],
)
def test_a_system_message_beside_the_texts_is_the_sample_s(record: dict, sample: Sample) -> None:
    assert parse_record(record, 1)[::2] == (sample, [])


@pytest.mark.parametrize(
    ("record", "code"),
    [
        ({**PAIR, "system": 3}, "wrong_type"),
        ({"messages": [{"role": "system", "content": "x"}, *TURNS], "system": "y"}, "two_systems"),
        ({"messages": TURNS, "input": "3+3?"}, "several_formats"),
        ({**PAIR, "instruction": "Add.", "prompt": "something else"}, "several_formats"),
        ({"instruction": "a", "input": 0, "output": "b"}, "wrong_type"),
        ({"instruction": "a", "input": False, "output": "b"}, "wrong_type"),
        ({"instruction": "a", "input": [], "output": "b"}, "wrong_type"),
    ],
)
def test_a_record_that_can_be_read_in_two_ways_is_refused(record: dict, code: str) -> None:
    sample, _, (problem,) = parse_record(record, 1)
    assert sample is None and problem.code == code


def test_a_key_of_another_format_may_repeat_a_text_of_the_sample() -> None:
    record = {"prompt": "2+2? ", "prompt_id": "7", "messages": TURNS}
    assert parse_record(record, 1) == (Sample(1, "2+2?", "4"), "messages", [])


def test_a_system_message_without_a_place_is_refused(write_jsonl: WriteJsonl, model_path: Path) -> None:
    path = write_jsonl("training.jsonl", {**PAIR, "system": "Be brief."})
    prompt_format = load_prompt_format(model_path, "Q {input} A {output}", None)
    report = scan_sources({"training": Source(path)}, ScanSettings(prompt_format, 512))
    assert list(report.findings.by_code()) == ["system_has_no_place"]


def told(report: Report) -> list[str]:
    return [str(finding) for finding in report.findings.sorted()]


def test_an_unknown_field_is_told_once_a_file_with_its_count(write_jsonl: WriteJsonl, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [{"input": f"{i}?", "output": f"{i}", **({"mood": i} if i % 2 else {})} for i in range(5_000)]
    records[7]["\x1b" + "x" * 50] = "y"
    first = write_jsonl("first.jsonl", *records[:10])
    second = write_jsonl("second.jsonl", *records[10:], {"messages": [TURNS[0], {**TURNS[1], "mood": 1}]})
    sources = {"training": Source(first), "validation": Source(second)}
    for limit in (1 << 30, 1):  # in this process, and in several
        monkeypatch.setattr("finetuning.data.reading.scan.MIN_BYTES_FOR_PROCESSES", limit)
        report = scan_sources(sources, ScanSettings(None, 0))
        assert told(report) == [
            "first.jsonl:2: field 'mood' is not used (5 times in this file)",
            f"first.jsonl:8: field '\ufffd{'x' * 39}…' is not used (1 time in this file)",
            "second.jsonl:2: field 'mood' is not used (2495 times in this file)",
            "second.jsonl:4991: field 'messages[].mood' is not used (1 time in this file)",
        ]


def test_unknown_fields_of_any_number_take_bounded_memory(write_jsonl: WriteJsonl) -> None:
    path = write_jsonl("training.jsonl", *[{"input": f"{i}?", "output": "b", f"key {i}": 1} for i in range(MAX_UNKNOWN + 70)])
    report = scan_sources({"training": Source(path)}, ScanSettings(None, 0))
    assert report.findings.by_code() == {"unknown_field": MAX_UNKNOWN + 1}
    assert f"training.jsonl:{MAX_UNKNOWN + 1}: not used: 70 fields of other names" in told(report)


def test_every_command_refuses_the_same_fields(write_jsonl: WriteJsonl) -> None:
    for needs_answer in (True, False):
        record = {"input": "2+2?", "tools": [1]} | ({"output": "4"} if needs_answer else {})
        path = write_jsonl("test.jsonl", record)
        with pytest.raises(
            Exception, match=r"test\.jsonl:1: field 'tools' would change the sample and is not supported: \[1\]"
        ):
            read_samples(path, None, needs_answer=needs_answer)


@pytest.mark.parametrize(
    ("record", "sample"),
    [
        ({"input": "a"}, Sample(1, "a", "")),
        ({"input": "a", "system": "s"}, Sample(1, "a", "", "s")),
        ({"prompt": "a", "label": "b"}, Sample(1, "a", "")),
        ({"instruction": "a", "input": "b"}, Sample(1, "a\n\nb", "")),
        ({"messages": [*TURNS, {"role": "user", "content": "a"}]}, Sample(1, "a", "", None, (("2+2?", "4"),))),
    ],
)
def test_a_question_alone_is_read_as_it_would_be_with_an_answer(
    record: dict, sample: Sample, prompt_format: PromptFormat, write_jsonl: WriteJsonl
) -> None:
    assert read_samples(write_jsonl("test.jsonl", record), None, needs_answer=False) == [sample]
    assert prompt_format.encode_prompt(sample)
    assert parse_record(record, 1)[0] is None, "not where an answer is needed"


@pytest.mark.parametrize("record", [{"input": " "}, {"messages": [{"role": "user", "content": ""}]}])
def test_an_empty_question_cannot_be_asked(record: dict) -> None:
    sample, _, (problem,) = parse_record(record, 1, needs_answer=False)
    assert sample is None and problem.code == "empty_question"


def test_duplicates_are_equal_in_everything_that_is_prompted_or_trained(write_jsonl: WriteJsonl) -> None:
    path = write_jsonl(
        "training.jsonl",
        {"input": "a\nb", "output": "c"},
        {"input": "a", "output": "b\nc"},
        {"input": "a\nb", "output": "c", "system": "s"},
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": "c"},
                {"role": "assistant", "content": "d"},
            ]
        },
        {"input": "a\nb\nc", "output": "d"},
        {"input": "a\nb", "output": "c "},
        {"prompt": "a\nb", "completion": "c", "id": 7},
    )
    report = scan_sources({"training": Source(path)}, ScanSettings(None, 0))
    assert told(report) == ["training.jsonl:7: the same as training.jsonl:1: a b"]


def test_findings_hold_what_json_and_utf_8_can_hold(tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    deep = "x"
    for _ in range(900):
        deep = [deep]
    path = write_jsonl(
        "training.jsonl",
        b'{"messages": [{"role": "\\ud800\\u001b[31m", "content": "a"}]}',
        b'{"\\ud800": 1}',
        b'{"a\\ud800": 1, "a\\ud800": 2, "input": "q", "output": "r"}',
        {"input": deep, "output": "b"},
        {"input": "a" * 10_000, "output": {"b" * 10_000: 1}},
        deep,
    )
    report = scan_sources({"training": Source(path)}, ScanSettings(None, 0), tmp_path / "out")
    lines = (tmp_path / "out" / "findings.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert {json.loads(line)["line"] for line in lines} == {1, 2, 3, 4, 5, 6}
    for finding in report.findings.kept:
        assert len(str(finding)) < 400 and "\x1b" not in str(finding)
