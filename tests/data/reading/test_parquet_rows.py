"""A Parquet file of any type of column is read, or refused with its row."""

import datetime
import decimal
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from finetuning.data.reading.check import Report, scan_sources
from finetuning.data.reading.records import Sample
from finetuning.data.reading.scan import ScanSettings
from finetuning.data.reading.sources import LARGEST_LINE_MIB, Source
from finetuning.data.report.convert import read_samples

pytestmark = pytest.mark.unit

NANOSECONDS = pa.array([1_700_000_000_000_000_001, None], pa.int64())
TEXT = pa.array(["a", "b"])
COLUMNS = {
    "timestamp": NANOSECONDS.cast(pa.timestamp("ns")),
    "of a zone": NANOSECONDS.cast(pa.timestamp("ns", tz="Asia/Taipei")),
    "of no zone": NANOSECONDS.cast(pa.timestamp("us", tz="Mars/Olympus")),
    "time": pa.array([1, None], pa.int64()).cast(pa.time64("ns")),
    "duration": NANOSECONDS.cast(pa.duration("ns")),
    "day": pa.array([datetime.date(2026, 1, 1), None]),
    "decimal": pa.array([decimal.Decimal("1.5"), None]),
    "half": pa.array([1.5, None]).cast(pa.float16()),
    "bytes": pa.array([b"\xff", None]),
    "uuid": pa.array([bytes(16), None], pa.uuid()),
    "map": pa.array([[("k", 1_700_000_000_000_000_001)], None], pa.map_(pa.string(), pa.timestamp("ns"))),
    "list": pa.array([[1_700_000_000_000_000_001], None], pa.list_(pa.timestamp("ns"))),
    "large list": pa.array([["x"], None], pa.large_list(pa.string())),
    "list of two": pa.array([[1.5, 2.5], None], pa.list_(pa.float32(), 2)),
    "list of two inside": pa.array([{"at": [[1, 2], None]}, None], pa.struct([("at", pa.list_(pa.list_(pa.int64(), 2)))])),
    "struct": pa.array([{"at": 1_700_000_000_000_000_001}, None], pa.struct([("at", pa.timestamp("ns"))])),
    "category": pa.array([7, None]).dictionary_encode(),
    "nothing": pa.array([None, None]),
}


def write(path: Path, **columns: pa.Array) -> Path:
    parquet.write_table(pa.table(columns), path)
    return path


def scan(path: Path) -> Report:
    return scan_sources({"training": Source(path)}, ScanSettings(None, 0))


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_beside_the_texts_may_be_of_any_type(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "x.parquet", input=TEXT, output=TEXT, id=COLUMNS[name], beside=COLUMNS[name])
    report = scan(path)
    assert [sample.output for sample in read_samples(path)] == ["a", "b"]
    told = {"x.parquet:1: field 'beside' is not used (1 time in this file)"} if name != "nothing" else set()
    assert {str(finding) for finding in report.findings.kept} == told


@pytest.mark.parametrize("name", [name for name in COLUMNS if name != "nothing"])
def test_a_column_of_another_type_is_no_text(tmp_path: Path, name: str) -> None:
    report = scan(write(tmp_path / "x.parquet", input=COLUMNS[name], output=TEXT))
    assert [(finding.line, finding.code) for finding in report.findings.kept] == [(1, "wrong_type"), (2, "missing_field")]


def test_pandas_timestamps_inside_messages_are_read_over(tmp_path: Path) -> None:
    turn = pa.struct(
        [("role", pa.string()), ("content", pa.string()), ("timestamp", pa.timestamp("ns")), ("name", pa.string())]
    )
    conversation = [{"role": role, "content": role, "timestamp": 1_700_000_000_000_000_001} for role in ("user", "assistant")]
    path = write(tmp_path / "x.parquet", messages=pa.array([conversation], pa.list_(turn)))
    assert list(read_samples(path)) == [Sample(1, "user", "assistant")]
    assert scan(path).findings.kept == []


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_texts_of_every_kind_are_texts(tmp_path: Path, kind: pa.DataType) -> None:
    column = TEXT.cast(kind)
    assert [sample.input for sample in read_samples(write(tmp_path / "x.parquet", input=column, output=column))] == ["a", "b"]


def test_rows_that_are_not_utf_8_are_found_among_the_others(tmp_path: Path) -> None:
    texts = [b"text %d" % number for number in range(1500)]
    texts[700], texts[1400] = b"\xa4\xa4", b"\xff"
    bad = pa.Array.from_buffers(pa.string(), len(texts), pa.array(texts).buffers())
    report = scan(write(tmp_path / "x.parquet", input=bad, output=pa.array(["a"] * 1500)))
    assert [str(finding) for finding in report.findings.kept] == [
        f"x.parquet:{row}: not UTF-8 (in column 'input'); write it as text" for row in (701, 1401)
    ]
    assert report.selection is not None and len(report.selection.lines) == 1498


def test_a_row_that_is_too_large_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    large = "x" * (LARGEST_LINE_MIB << 20)
    path = write(tmp_path / "x.parquet", input=pa.array(["a", large, "c"]), output=pa.array(["b"] * 3))
    report = scan(path)
    assert [str(finding) for finding in report.findings.kept] == [
        "x.parquet:2: a row of more than 8 MiB, far more than a model reads in one sample; divide the text into several samples"
    ]
    assert [sample.line for sample in read_samples(path)] == [1, 3]


def test_a_column_that_unpacks_without_end_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table = pa.table({"input": pa.array([" " * (18 << 20)]), "output": pa.array(["b"])})
    parquet.write_table(table, path, compression="zstd", use_dictionary=False)
    (finding,) = scan(path).findings.kept
    times = (16 << 20) // path.stat().st_size  # of a small file, 16 MiB may come
    assert str(finding) == (
        f"x.parquet: unpacks to more than {times} times its size; the file is damaged, or made to fill the memory"
    )


def test_two_columns_of_one_name_are_told(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.Table.from_arrays([TEXT, TEXT, pa.array(["c", "d"])], names=["input", "output", "output"]), path)
    (finding,) = scan(path).findings.kept
    assert str(finding) == "x.parquet: key 'output' stands twice; the last one counts"
    assert [sample.output for sample in read_samples(path)] == ["c", "d"]


def test_a_damaged_file_is_one_finding(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", input=TEXT, output=TEXT)
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        for finding in scan(path).findings.kept:
            assert str(finding).startswith("x.parquet")
    path.write_bytes(content[:-20])
    assert [finding.code for finding in scan(path).findings.kept] == ["unreadable"]
