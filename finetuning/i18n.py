"""Messages in English and in Traditional Chinese (Taiwan).

`t("… {name} …", name=value)` looks its English template up in the catalogue `locale/zh_TW` when Chinese is asked for by
`--lang` or the locale; a template without a translation is shown in English. `tools/catalogue.py` keeps the catalogue.
"""

from __future__ import annotations

import json
import os
import re
import string
from functools import lru_cache
from pathlib import Path
from typing import Any

# All control characters but tab and line feed, those that turn the order of what follows on the screen (bidirectional
# embeddings, overrides, isolates), and halves of characters, which no terminal's encoding knows.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

CATALOGUE = Path(__file__).parent / "locale" / "zh_TW" / "LC_MESSAGES" / "finetuning.po"

_language = "en"


def language_of_environment() -> str:
    """'zh-TW' when LC_ALL, LC_MESSAGES or LANG (the first that is set) names Traditional Chinese, else 'en'."""
    locale = next((os.environ[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if os.environ.get(name)), "")
    return "zh-TW" if locale.replace("-", "_").startswith(("zh_TW", "zh_HK", "zh_Hant")) else "en"


def set_language(language: str) -> None:
    global _language
    _language = language


def language() -> str:
    """The language of the messages: 'en' or 'zh-TW'."""
    return _language


def t(template: str, /, **values: object) -> str:
    """The message in the chosen language, with `values` put in as by `str.format`; `printable`, whatever they hold.

    "{count} error{count:s}" and "{count} process{count:es}" read "1 error" and "2 processes".
    """
    return printable(_FORMATTER.vformat(translated(template), (), values))


class _Formatter(string.Formatter):
    """That of `str.format`, and the endings `s` and `es` of a noun that a number stands before."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if format_spec in ("s", "es"):
            return "" if round(float(value)) == 1 else format_spec
        return format(value, format_spec)


_FORMATTER = _Formatter()


def printable(text: str) -> str:
    """The text without what could write anything over a terminal: escape codes of data, of file names, of a model's answers."""
    return UNPRINTABLE.sub("\ufffd", text)


def translated(text: str) -> str:
    """`text` in the chosen language, as it stands: for texts of a table, which have nothing to put in."""
    return _catalogue().get(text, text) if _language == "zh-TW" else text


@lru_cache  # functools.cache is too new for the Pythons that read this to say that they are too old
def _catalogue() -> dict[str, str]:
    """English text -> translation. Texts of a PO file are written as JSON writes them, and go on in the lines below theirs."""
    entries: list[dict[str, str]] = []
    name = ""
    with CATALOGUE.open(encoding="utf-8") as file:
        for line in file:
            if line.startswith("msg"):
                name, _, text = line.partition(" ")
                if name == "msgid":
                    entries.append({})
                entries[-1][name] = json.loads(text)
            elif line.startswith('"'):
                entries[-1][name] += json.loads(line)
    return {entry["msgid"]: entry["msgstr"] for entry in entries if entry["msgstr"]}
