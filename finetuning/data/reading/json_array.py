"""A file that is one JSON array, as the lines that it should have been."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from finetuning.errors import InputError
from finetuning.files.documents import read_text
from finetuning.i18n import t

MAX_BYTES = 1 << 30  # it is read whole
SPACE = re.compile(r"[ \t\n\r]*")


def read_json_array(path: Path) -> Iterator[str]:
    """Each value of the array as a line of JSON: as it stands, so that whoever reads the lines judges what is in them.

    Raises:
        InputError: the file cannot be read, or is no JSON array.
    """
    text = read_text(path, MAX_BYTES).removeprefix("\ufeff")
    decoder = json.JSONDecoder(parse_int=str)  # Python converts no number of thousands of digits
    place = _after_space(text, 0)
    if not text.startswith("[", place):
        raise InputError(t("{path}: not a JSON array", path=path))
    place = _after_space(text, place + 1)
    is_done = text.startswith("]", place)  # with nothing in it
    while not is_done:
        try:
            _, end = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            raise InputError(t("{path}: not a JSON array: {error}", path=path, error=error)) from None
        except RecursionError:
            raise InputError(t("{file}: nested too deeply", file=path)) from None
        yield text[place:end].replace("\n", " ").replace("\r", " ")  # only between values: inside texts they are escaped
        place = _after_space(text, end)
        is_done = text.startswith("]", place)
        if not is_done and not text.startswith(",", place):
            raise InputError(t("{path}: not a JSON array: {error}", path=path, error=_expected("',' or ']'", text, place)))
        if not is_done:
            place = _after_space(text, place + 1)
    if _after_space(text, place + 1) < len(text):
        raise InputError(t("{path}: not a JSON array: {error}", path=path, error=_expected("the end", text, place + 1)))


def _after_space(text: str, place: int) -> int:
    match = SPACE.match(text, place)
    assert match is not None  # it may be empty
    return match.end()


def _expected(what: str, text: str, place: int) -> json.JSONDecodeError:
    return json.JSONDecodeError(f"Expecting {what}", text, place)
