"""Every shape of record becomes a sample, and nothing that a file may hold makes the reader crash."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from finetuning.data.reading.finding_words import describe, title
from finetuning.data.reading.findings import ERRORS, WARNINGS, Finding
from finetuning.data.reading.records import Sample, parse_line, parse_record
from finetuning.data.reading.sources import read_batches, read_samples_at
from tests.data.samples import pairs

pytestmark = pytest.mark.unit

CHAT = [
    {"role": "system", "content": "你是老師。"},
    {"role": "user", "content": "一"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "二"},
    {"role": "assistant", "content": "2"},
]


@pytest.mark.parametrize(
    ("record", "name", "sample"),
    [
        ({"input": "問", "output": "答"}, "input/output", Sample(3, "問", "答")),
        ({"instruction": "譯", "input": "貓", "output": "cat"}, "Alpaca", Sample(3, "譯\n\n貓", "cat")),
        ({"instruction": "問", "input": "", "output": "答"}, "Alpaca", Sample(3, "問", "答")),
        ({"instruction": "問", "output": "答"}, "Alpaca", Sample(3, "問", "答")),
        ({"prompt": "問", "completion": "答"}, "prompt/completion", Sample(3, "問", "答")),
        ({"messages": CHAT[1:3]}, "messages", Sample(3, "一", "1")),
        ({"messages": CHAT}, "messages", Sample(3, "二", "2", "你是老師。", (("一", "1"),))),
    ],
)
def test_each_format_is_recognized_by_its_keys(record: dict, name: str, sample: Sample) -> None:
    assert parse_record(record, 3) == (sample, name, [])
    assert parse_line(json.dumps(record).encode(), 3) == (sample, name, [])


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b'{"messages": []}', "wrong_turns"),
        (b'{"messages": "hello"}', "wrong_type"),
        (b'{"messages": [{"role": "user"}]}', "missing_field"),
        (b'{"messages": [{"role": "user", "content": "a"}]}', "wrong_turns"),
        (b'{"messages": [{"role": "assistant", "content": "a"}]}', "wrong_turns"),
        (b'{"messages": [{"role": "system", "content": " "}, {"role": "assistant", "content": "a"}]}', "wrong_turns"),
        (b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]}', "empty_answer"),
        (b'{"prompt": "a"}', "missing_field"),
        (b'{"instruction": 3, "output": "b"}', "wrong_type"),
        (b'{"input": "\\ud83d", "output": "b"}', "lone_surrogate"),
        (b'{"input": ' + b"9" * 5000 + b', "output": "b"}', "bad_json"),
        (b"[" * 100_000, "bad_json"),
        ("繁體".encode("cp950"), "not_utf8"),
    ],
)
def test_what_cannot_be_used_is_named(line: bytes, code: str) -> None:
    sample, _, problems = parse_line(line, 1)
    assert sample is None
    assert [problem.code for problem in problems] == [code]


def test_big5_is_recognized_as_such() -> None:
    (problem,) = parse_line('{"input": "請問", "output": "回答"}'.encode("cp950"), 1)[2]
    assert describe(problem.code, problem.values) == "not UTF-8 (byte 12), it looks like Big5; save the file as UTF-8"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b'\xef\xbb\xbf{"input": "a", "output": "b"}', "byte_order_mark"),
        (b'{"input": "a", "output": "b", "input": "c"}', "duplicate_key"),
    ],
)
def test_what_can_still_be_used_is_warned_of(line: bytes, code: str) -> None:
    sample, _, problems = parse_line(line, 1)
    assert sample is not None
    assert [problem.code for problem in problems] == [code]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["input", "output", "messages", "role", "content", "instruction", "prompt", "completion"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(value=json_values)
def test_any_json_value_is_a_sample_or_a_problem(value: object) -> None:
    for sample, _, problems in (parse_record(value, 1), parse_line(json.dumps(value).encode(), 1)):
        assert (sample is None) == any(problem.code in ERRORS for problem in problems)
        for problem in problems:
            assert describe(problem.code, problem.values)


@given(content=st.binary(max_size=400))
def test_any_bytes_are_read_to_the_end_without_a_crash(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    for name in ("x.jsonl", "x.jsonl.gz", "x.jsonl.zst", "x.parquet"):
        path = tmp_path_factory.getbasetemp() / name
        path.write_bytes(content)
        for batch in read_batches(path):
            if isinstance(batch, Finding):
                assert str(batch).startswith(name)
                continue
            for number, record in batch.records:
                assert isinstance(record, bytes)
                parse_line(record, number)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_compressed_and_columnar_files_hold_the_same_samples(tmp_path: Path, suffix: str) -> None:
    records = pairs(700)
    path = tmp_path / ("data" + suffix)
    raw = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    if suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(records), path)
    else:
        pack = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.zst": zstandard.compress}[suffix]
        path.write_bytes(pack(raw))
    samples = read_samples_at(path, set(range(1, 701)))
    assert [(s.line, s.input, s.output) for s in samples.values()] == [
        (line, record["input"], record["output"]) for line, record in enumerate(records, start=1)
    ]


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_a_compressed_file_that_was_cut_off_is_an_error(tmp_path: Path, suffix: str) -> None:
    raw = b'{"input": "a", "output": "b"}\n' * 2000
    packed = gzip.compress(raw) if suffix == ".jsonl.gz" else zstandard.compress(raw)
    path = tmp_path / ("cut" + suffix)
    path.write_bytes(packed[:-9])
    found = [batch for batch in read_batches(path) if isinstance(batch, Finding)]
    assert [finding.code for finding in found] == ["unreadable"]


def test_utf_16_is_told_once_for_the_file(tmp_path: Path) -> None:
    path = tmp_path / "wide.jsonl"
    for encoding in ("utf-16", "utf-16-le"):
        path.write_bytes(('{"input": "a", "output": "b"}\n' * 3).encode(encoding))
        (finding,) = read_batches(path)
        assert isinstance(finding, Finding) and (finding.code, finding.line) == ("utf_16", 1)


@pytest.mark.parametrize("text", ['[{"input": "a", "output": "b"}]', '[\n{"input": "a", "output": "b"}\n]'])
def test_a_json_array_is_told_how_to_convert(tmp_path: Path, text: str) -> None:
    path = tmp_path / "array.jsonl"
    path.write_text(text, encoding="utf-8")
    (finding,) = read_batches(path)
    assert isinstance(finding, Finding) and "`finetune data prepare` converts it" in finding.message


def test_every_kind_of_finding_has_a_name() -> None:
    names = [title(code) for code in (*ERRORS, *WARNINGS)]
    assert all(names) and len(set(names)) == len(names)


@pytest.mark.parametrize("empty", [None, "", [], {}], ids=str)
@pytest.mark.parametrize("other", ["messages", "instruction", "prompt", "conversations"])
def test_a_column_of_another_format_that_is_empty_in_this_row_says_nothing(other: str, empty: object) -> None:
    sample, name, problems = parse_record({other: empty, "input": "q", "output": "a"}, 1)
    assert (sample, name, problems) == (Sample(1, "q", "a"), "input/output", [])


def test_a_missing_field_is_told_with_the_fields_that_are_there_and_no_others() -> None:
    for record, needs_answer in (({"instruction": "i", "response": "r"}, True), ({"question": "q"}, False)):
        _, _, problems = parse_record(record, 1, needs_answer=needs_answer)
        assert [problem.values["found"] for problem in problems] == [", ".join(map(repr, record))]
