"""What somebody else may have written into a JSON or YAML file, and what is said of it."""

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from finetuning.errors import InputError
from finetuning.files.documents import read_json, read_yaml

pytestmark = pytest.mark.unit


class Inner(msgspec.Struct):
    rank: int
    scale: float | None = None


class Outer(msgspec.Struct):
    inner: Inner
    names: list[str] = []


def test_what_fits_is_read_and_what_is_not_named_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"inner": {"rank": 3, "scale": NaN, "more": {}}, "names": ["甲"], "other": [1]}', encoding="utf-8")
    found = read_json(file, Outer)
    assert (found.inner.rank, found.names) == (3, ["甲"])
    assert str(found.inner.scale) == "nan"
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "b.json", Outer)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"inner": {"rank": "3"}}', "inner.rank is text, but must be a whole number"),
        (b'{"inner": {"rank": 3, "scale": []}}', "inner.scale is a list, but must be a number or null"),
        (b'{"inner": {}}', "inner.rank is missing"),
        (b'{"names": []}', "inner is missing"),
        (b'{"inner": {"rank": 3}, "names": ["a", null]}', "names[1] is null, but must be text"),
        (b"[]", "holds a list, but must hold a mapping"),
        (b'{"inner": {"rank": 3}, "names": ["\\ud83d"]}', "holds half of a character (a lone surrogate)"),
        (b'{"inner": ', "not valid JSON"),
        (b"\xff\xfe", "not UTF-8 (byte 0)"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"inner": {"rank": ' + b"9" * 5000 + b"}}", "not valid JSON: a number of 5000 digits; 200 are the most"),
        (b'{"inner": {"rank": ' + b"9" * 201 + b"}}", "not valid JSON: a number of 201 digits; 200 are the most"),
        (b"x" * 2_000_000, "larger than 1 MiB"),
    ],
)
def test_what_does_not_fit_is_one_sentence_with_file_and_key(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_json(file, Outer, max_bytes=2**20)
    assert str(caught.value).startswith(f"{file}: ")
    assert said in str(caught.value)


def test_a_pipe_and_a_device_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InputError, match="not a regular file"):
            read_json(file, Outer)


def test_yaml_that_would_grow_without_end_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 200)}]\n" for i in range(1, 12)))
    with pytest.raises(InputError, match="its aliases stand for more than 1000000 values; write them out"):
        read_yaml(file, dict[str, Any])
    file.write_text("inner: !!python/object:os.system {}\n")
    with pytest.raises(InputError, match="not valid YAML"):
        read_yaml(file, Outer)
    file.write_text(f"inner: {{rank: {'9' * 300}}}\n")
    with pytest.raises(InputError, match="not valid YAML: a number of 300 digits; 200 are the most"):
        read_yaml(file, Outer)
    file.write_text("inner: {rank: 2}\n")
    assert read_yaml(file, Outer).inner.rank == 2
