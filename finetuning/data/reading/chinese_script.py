"""Simplified and Traditional Chinese, told apart by characters that only one of them uses.

`chinese_characters.txt` has two lines: characters of GB 2312 that OpenCC 1.1 (Apache-2.0, as packaged in
opencc-python-reimplemented 0.1.7) converts to another Traditional one and that are not among the common characters of
Big5; and characters of Big5 that it converts to another Simplified one and that are not in GB 2312. Characters that both
use, such as 台 or 里, are in neither.
"""

import re
from pathlib import Path

SIMPLIFIED, TRADITIONAL = map(
    frozenset, (Path(__file__).with_name("chinese_characters.txt")).read_text(encoding="utf-8").splitlines()
)
KANA = re.compile("[\u3041-\u30ff]")


def only_simplified(text: str) -> str:
    """The characters of a text that Traditional Chinese does not use, each once; none where the text is Japanese."""
    return _those_of(text, SIMPLIFIED)


def only_traditional(text: str) -> str:
    return _those_of(text, TRADITIONAL)


def _those_of(text: str, characters: frozenset[str]) -> str:
    if text.isascii():
        return ""
    found = characters.intersection(text)
    if not found or KANA.search(text):  # Japanese shares many simplified forms
        return ""
    return "".join(sorted(found, key=text.index))
