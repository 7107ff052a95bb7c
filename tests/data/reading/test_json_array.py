"""A JSON array becomes lines that say the same, with everything that is wrong in them."""

import gzip
import json
from pathlib import Path

import pytest

from finetuning.cli.data import main
from finetuning.data.reading.json_array import read_json_array
from finetuning.errors import InputError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("[]", []),
        ("\ufeff [ 1 , 2 ]\n", ["1", "2"]),
        ('[{"a": 1, "a": 2}, NaN, "\\ud83d", "]\u2028"]', ['{"a": 1, "a": 2}', "NaN", '"\\ud83d"', '"]\u2028"']),
        ('[{"a":\r\n [1,\n2]}\n]', ['{"a":   [1, 2]}']),
        ("[" + "9" * 5000 + "]", ["9" * 5000]),
    ],
)
def test_each_value_is_a_line_as_it_stands(tmp_path: Path, text: str, lines: list[str]) -> None:
    path = tmp_path / "array.json"
    path.write_bytes(text.encode())
    assert list(read_json_array(path)) == lines


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not a JSON array"),
        (b'{"a": 1}', "not a JSON array"),
        (b"[1", r"not a JSON array: Expecting ',' or '\]': line 1 column 3 \(char 2\)"),
        (b"[1,", r"not a JSON array: Expecting value"),
        (b"[1,]", r"not a JSON array: Expecting value"),
        (b"[1 2]", r"not a JSON array: Expecting ',' or '\]'"),
        (b"[1]2", r"not a JSON array: Expecting the end"),
        (b'["\xff"]', "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_array_is_said(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "array.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"array\.json: {problem}"):
        list(read_json_array(path))


def test_an_array_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "array.json"
    with path.open("wb") as file:
        file.truncate(8 << 30)  # a hole
    with pytest.raises(InputError, match=r"array\.json: larger than 1024 MiB"):
        list(read_json_array(path))


def test_what_is_wrong_in_an_array_is_found_in_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = [{"input": f"問題 {number}", "output": f"答案 {number}"} for number in range(5)]
    text = ",\n".join(
        [*map(json.dumps, good), '{"input": "\\ud800", "output": "b"}', '{"input": "a", "output": "b", "input": "c"}']
    )
    (tmp_path / "raw.json").write_text(f"[{text}]", encoding="utf-8")
    assert main(["prepare", str(tmp_path / "raw.json"), str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "raw.json.jsonl:6: half a character" in shown and "raw.json.jsonl:7: key 'input' stands twice" in shown


def test_what_could_not_be_read_to_its_end_is_not_prepared(tmp_path: Path) -> None:
    packed = gzip.compress(b"".join(b'{"input": "a%d", "output": "b"}\n' % number for number in range(5_000)))
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(InputError, match=r"cut\.jsonl\.gz: cannot be read"):
        main(["prepare", str(tmp_path / "cut.jsonl.gz"), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
