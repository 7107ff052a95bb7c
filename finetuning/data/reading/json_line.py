"""One JSON line: bytes to a value, or a problem. What follows from its keys is for `records`.

Stricter than `json.loads` where a reader would be surprised: a byte order mark, a key that stands twice and NaN are told; what
is nested too deeply or has a number too long is a problem, not an exception.
"""

import codecs
import json
from collections import Counter
from typing import Any

from finetuning.data.reading.findings import Problem, excerpt

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
ENCODINGS = (("cp950", "Big5"), ("gb18030", "GBK"))
GUESSED_BYTES = 1 << 16  # of a line, to tell what encoding it may have
EXCERPT_BYTES = 1 << 10


def read_json_line(raw: bytes) -> tuple[Any, list[Problem], bool]:
    """The value of a line, what was found, and whether there is a value at all."""
    problems = []
    if raw.startswith(BYTE_ORDER_MARK):
        raw = raw[len(BYTE_ORDER_MARK) :]
        problems.append(Problem("byte_order_mark", {}))
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        found: dict[str, str | int] = {"position": error.start + 1, "looks_like": _other_encoding(raw)}
        return None, [*problems, Problem("not_utf8", found, _excerpt(raw))], False
    _DOUBLED.clear()
    _NOT_JSON.clear()
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        column = min(error.pos, len(text.rstrip("\r\n"))) + 1  # the line end is no place to look at
        values: dict[str, str | int] = {"message": error.msg, "column": column}
        return None, [*problems, Problem("bad_json", values, excerpt(text))], False
    except RecursionError:
        return None, [*problems, Problem("bad_json", {"reason": "depth"}, excerpt(text))], False
    except ValueError:  # of int(), which stops at 4300 digits
        return None, [*problems, Problem("bad_json", {"reason": "digits"}, excerpt(text))], False
    problems += [Problem("duplicate_key", {"name": excerpt(name)}, excerpt(text)) for name in _DOUBLED[:1]]
    problems += [Problem("not_a_number", {"value": name}, excerpt(text)) for name in _NOT_JSON[:1]]
    return value, problems, True


def short_json(value: Any) -> str:
    """The beginning of a value as JSON, however deep or large it is."""
    text = ""
    for part in _ENCODER.iterencode(value):
        text += part[:EXCERPT_BYTES]
        if len(text) >= EXCERPT_BYTES:
            break
    return excerpt(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        _DOUBLED.extend(name for name, number in Counter(name for name, _ in pairs).items() if number > 1)
    return value


def _constant(name: str) -> float:
    _NOT_JSON.append(name)
    return float(name)


# One decoder for all lines: making one takes longer than a line. What it met in the last line is left here.
_DOUBLED: list[str] = []  # keys that stood twice
_NOT_JSON: list[str] = []  # NaN, Infinity, -Infinity
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
_ENCODER = json.JSONEncoder(ensure_ascii=False, default=str)


def _other_encoding(raw: bytes) -> str:
    for codec, name in ENCODINGS:
        try:
            codecs.getincrementaldecoder(codec)().decode(raw[:GUESSED_BYTES], final=len(raw) <= GUESSED_BYTES)
        except UnicodeDecodeError:
            continue
        return name
    return ""


def _excerpt(raw: bytes) -> str:
    return excerpt(raw[:EXCERPT_BYTES].decode("utf-8", "replace"))
