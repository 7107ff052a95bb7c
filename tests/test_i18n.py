"""The language of the messages."""

import re
from collections.abc import Iterator

import pytest

from finetuning.i18n import language_of_environment, set_language, t
from tools.catalogue import translated_texts

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _english_again() -> Iterator[None]:
    yield
    set_language("en")


@pytest.mark.parametrize(
    ("locale", "language"),
    [
        ({"LANG": "zh_TW.UTF-8"}, "zh-TW"),
        ({"LANG": "zh_HK"}, "zh-TW"),
        ({"LANG": "zh-Hant-TW"}, "zh-TW"),
        ({"LANG": "zh_CN.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8"}, "en"),
        ({}, "en"),
        ({"LC_ALL": "C", "LANG": "zh_TW.UTF-8"}, "en"),
        ({"LC_MESSAGES": "zh_TW.UTF-8", "LANG": "en_US.UTF-8"}, "zh-TW"),
        ({"LC_ALL": "", "LANG": "zh_TW.UTF-8"}, "zh-TW"),
    ],
)
def test_the_first_locale_variable_that_is_set_decides(
    locale: dict[str, str], language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in locale.items():
        monkeypatch.setenv(name, value)
    assert language_of_environment() == language


def test_values_are_put_into_the_english_template() -> None:
    assert t("{count:,} of {name!r}", count=1234, name="x") == "1,234 of 'x'"


def test_a_translated_template_is_used_in_chinese_only() -> None:
    assert t("--{name} is required", name="lr") == "--lr is required"
    set_language("zh-TW")
    assert t("--{name} is required", name="lr") == "必須給 --lr"


def test_a_template_without_a_translation_is_shown_in_english() -> None:
    set_language("zh-TW")
    assert t("nobody has translated {this}", this="that") == "nobody has translated that"


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 errors in 0 processes"),
        (1, "1 error in 1 process"),
        (2, "2 errors in 2 processes"),
        (1.2, "1 error in 1 process"),
    ],
)
def test_one_has_no_plural(count: float, expected: str) -> None:
    assert t("{count:.0f} error{count:s} in {count:.0f} process{count:es}", count=count) == expected


NOUNS = (
    "samples|tokens|steps|errors|warnings|processes|nodes|GPUs|CPUs|cores|layers|answers|prompts|files|folders|records|lines"
)
NUMBER_AND_NOUN = re.compile(rf"\{{(\w+)(?::[^}}]*)?\}} (?:(?:CPU|more|answer) )?({NOUNS})\b")
NEVER_ONE = {
    "length",
    "limit",
    "at_least",
    "most",
    "largest",
    "times",
    "padded",
    "parameters",
    "heads",
    "groups",
    "epochs",
    "rows",
}
VERB_FOLLOWS = ("do not fit", "share", "trainable")  # of numbers that are not one there


def test_every_number_before_a_noun_is_asked_whether_it_is_one() -> None:
    found = {
        template
        for _, template in translated_texts()
        if any(match[1] not in NEVER_ONE for match in NUMBER_AND_NOUN.finditer(template))
        and not any(words in template for words in VERB_FOLLOWS)
    }
    assert not found
