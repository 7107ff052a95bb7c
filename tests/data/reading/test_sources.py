"""Lines end at line feeds alone, and whatever a file unpacks to, reading it stays cheap."""

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from finetuning.data.prompts.prompt_format import PromptFormat
from finetuning.data.reading.check import scan_sources
from finetuning.data.reading.findings import Finding
from finetuning.data.reading.scan import ScanSettings
from finetuning.data.reading.sources import LARGEST_LINE_MIB, Source, read_batches, read_samples_at
from finetuning.data.report.convert import read_samples

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent.parent.parent
ODD = ("\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x00", "\r")
PACK: dict[str, Callable[[bytes], bytes]] = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.zst": zstandard.compress}


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_end_at_line_feeds_alone(tmp_path: Path, suffix: str, end: str) -> None:
    texts = [f"before{odd}after" for odd in ODD]
    lines = [json.dumps({"input": text, "output": text}, ensure_ascii=False) for text in texts]
    path = tmp_path / ("odd" + suffix)
    path.write_bytes(PACK[suffix](("\ufeff" + end + end.join(lines)).encode()))  # a mark alone, and no end of the last line
    expected = [(line, text) for line, text in enumerate(texts, start=2)]
    assert [(sample.line, sample.output) for sample in read_samples(path)] == expected
    assert [(line, sample.input) for line, sample in read_samples_at(path, set(range(20))).items()] == expected


@pytest.mark.parametrize("content", [b"", b"\n\n \n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n"])
def test_a_file_without_a_record_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "training.jsonl"
    path.write_bytes(content)
    report = scan_sources({"training": Source(path)}, ScanSettings(None, 0))
    assert [str(finding) for finding in report.findings.kept] == ["training.jsonl: holds no samples"]
    assert report.has_errors


@pytest.mark.parametrize("value", ["3", "true", "null", '"text"', "NaN", "[1]"])
def test_a_value_that_is_no_object_is_told_with_its_line(tmp_path: Path, value: str) -> None:
    path = tmp_path / "training.jsonl"
    path.write_text('{"input": "a", "output": "b"}\n' + value + "\n", encoding="utf-8")
    report = scan_sources({"training": Source(path)}, ScanSettings(None, 0))
    assert ("not_an_object", 2) in {(finding.code, finding.line) for finding in report.findings.kept}


def test_what_is_not_json_though_python_writes_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "training.jsonl"
    path.write_text('{"input": "a", "output": "b", "id": -Infinity}\n', encoding="utf-8")
    report = scan_sources({"training": Source(path)}, ScanSettings(None, 0))
    (finding,) = report.findings.kept
    assert finding.message == "-Infinity is not JSON; it is read as a number" and finding.place == "training.jsonl:1"


def test_an_array_is_known_after_blank_lines_too(tmp_path: Path) -> None:
    path = tmp_path / "array.jsonl"
    path.write_bytes(b'\n\n[ {"input": "a", "output": "b"}]')
    (finding,) = read_batches(path)
    assert isinstance(finding, Finding) and (finding.code, finding.line) == ("json_array", 3)


def test_a_line_that_begins_a_later_batch_is_no_array(tmp_path: Path) -> None:
    path = tmp_path / "late.jsonl"
    path.write_bytes(b'{"input": "a", "output": "%s"}\n[{}]\n' % (b"b" * 300_000))
    assert [len(batch.records) for batch in read_batches(path) if not isinstance(batch, Finding)] == [1, 1]


def test_blank_lines_count_however_many_there_are(tmp_path: Path) -> None:
    path = tmp_path / "gaps.jsonl"
    line = b'{"input": "a", "output": "b"}\n'
    path.write_bytes(b"\n" * 3 + line + b" \n\r\n" * 400_000 + b"  " + line)
    assert [sample.line for sample in read_samples(path)] == [4, 800_005]


SCRIPT = """
import json, resource, sys, time
from pathlib import Path
from finetuning.data.prompts.prompt_format import load_prompt_format
from finetuning.data.reading import scan
from finetuning.data.reading.check import scan_sources
from finetuning.data.reading.scan import ScanSettings
from finetuning.data.reading.sources import Source
scan.MIN_BYTES_FOR_PROCESSES = 1 << 40  # all of it in the process that is measured
prompt_format = load_prompt_format(Path(sys.argv[1]), None, None)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path, truncation in json.loads(sys.argv[2]):
    start = time.process_time()
    report = scan_sources({"training": Source(Path(path))}, ScanSettings(prompt_format, 8192, truncation))
    seconds, peak = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps([list(report.findings.by_code()), len(report.selection.lines), seconds, peak >> 10]))
"""
NEARLY = (LARGEST_LINE_MIB << 20) - 1000  # bytes of the longest line


def packed(piece: bytes, size: int) -> bytes:
    packer = zstandard.ZstdCompressor().compressobj()
    block = piece * ((1 << 20) // len(piece))
    return b"".join(packer.compress(block) for _ in range(size >> 20)) + packer.flush()


def long_line(text: str) -> bytes:
    question = "q" + text * (NEARLY // len(text.encode())) + "q"
    return json.dumps({"input": question, "output": "b"}, ensure_ascii=False).encode() + b"\n"


def test_a_line_that_no_model_could_read_says_what_would_work(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    first, last = '{"input": "a", "output": "b"}\n', '{"input": "c", "output": "d"}\n'
    path.write_text(
        first + '{"input": "a", "output": "' + "字" * (LARGEST_LINE_MIB * 2**20 // 3) + '"}\n' + last, encoding="utf-8"
    )
    report = scan_sources({"training": Source(path)}, ScanSettings(None, 0))
    (finding,) = report.findings.kept
    assert str(finding) == (
        "x.jsonl:2: a line of more than 8 MiB, far more than a model reads in one sample, and nothing behind it was read; "
        "divide the text into several samples, or add the line end that is missing"
    )
    assert report.selection is not None and len(report.selection.lines) == 1


@pytest.mark.dist  # starts processes
def test_hostile_files_are_judged_in_five_seconds_and_half_a_gibibyte(tmp_path: Path, model_path: Path) -> None:
    dense, one_letter, almost_special, blank = "\u4e00\u9fa5", "a", "<|", " "
    wide = b'{"input": "a", "output": "b", "id": [' + b'{"a":1},' * (NEARLY // 8) + b"1]}\n"
    repeated = {
        name: pa.DictionaryArray.from_arrays([0] * 512, [text]) for name, text in (("input", "長" * 2_600_000), ("output", "b"))
    }
    parquet.write_table(pa.table(repeated), tmp_path / "repeated.parquet", compression="zstd")
    cases: list[tuple[str, bytes, str, list[str], int]] = [
        ("blanks.jsonl.zst", packed(b" ", 1 << 30), "refuse", ["line_too_large"], 0),
        ("blank_lines.jsonl.zst", packed(b"\n", 1 << 28), "refuse", ["inflates"], 0),
        ("dense.jsonl", long_line(dense), "refuse", ["too_long"], 0),
        ("cut.jsonl", long_line(dense), "cut_input", ["input_cut"], 1),
        ("letter.jsonl", long_line(one_letter), "cut_input", ["input_cut"], 1),
        ("special.jsonl", long_line(almost_special), "drop", ["dropped_too_long"], 0),
        ("spaces.jsonl", long_line(blank), "refuse", ["too_long"], 0),
        ("wide.jsonl", wide, "refuse", [], 1),
        ("deep.jsonl", b"[" * NEARLY, "refuse", ["bad_json"], 0),
        ("repeated.parquet", b"", "refuse", ["inflates", "too_long"], 0),
    ]
    for name, content, *_ in cases:
        if content:
            (tmp_path / name).write_bytes(content)
    given = [(str(tmp_path / name), truncation) for name, _, truncation, *_ in cases]
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(model_path), json.dumps(given)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found = [json.loads(line) for line in run.stdout.split("\n")[:-1]]
    for (name, _, _, codes, usable), (found_codes, found_usable, seconds, mebibytes) in zip(cases, found, strict=True):
        assert (name, found_codes, found_usable) == (name, codes, usable)
        assert seconds < 5 and mebibytes < 512, (name, seconds, mebibytes)


def test_a_far_too_long_sample_says_so_without_a_count(tmp_path: Path, prompt_format: PromptFormat) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"input": "長" * 300_000, "output": "b"}) + "\n", encoding="utf-8")
    sentences = []
    for truncation in ("refuse", "cut_input", "drop"):
        report = scan_sources({"training": Source(path)}, ScanSettings(prompt_format, 512, truncation))
        sentences += [finding.message for finding in report.findings.kept]
    assert sentences == [
        "more than 512 tokens do not fit --seq_length 512; the answer would be cut; shorten it, or choose with --truncation",
        "more than 512 tokens do not fit --seq_length 512: the input is cut",
        "more than 512 tokens do not fit --seq_length 512: the sample is dropped",
    ]


def test_a_file_of_zeros_is_not_called_utf_16(tmp_path: Path) -> None:
    path = tmp_path / "zeros.jsonl"
    path.write_bytes(bytes(4096))
    started = time.monotonic()
    report = scan_sources({"training": Source(path)}, ScanSettings(None, 0))
    assert list(report.findings.by_code()) == ["bad_json"] and time.monotonic() - started < 5
