"""The language of the messages."""

from collections.abc import Iterator

import pytest

from finetuning.i18n import language_of_environment, set_language, t
from finetuning.messages_zh_tw import MESSAGES

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _english_again() -> Iterator[None]:
    yield
    set_language("en")


@pytest.mark.parametrize(
    ("locale", "language"),
    [
        ({"LANG": "zh_TW.UTF-8"}, "zh-TW"), ({"LANG": "zh_HK"}, "zh-TW"), ({"LANG": "zh-Hant-TW"}, "zh-TW"),
        ({"LANG": "zh_CN.UTF-8"}, "en"), ({"LANG": "en_US.UTF-8"}, "en"), ({}, "en"),
        ({"LC_ALL": "C", "LANG": "zh_TW.UTF-8"}, "en"), ({"LC_MESSAGES": "zh_TW.UTF-8", "LANG": "en_US.UTF-8"}, "zh-TW"),
        ({"LC_ALL": "", "LANG": "zh_TW.UTF-8"}, "zh-TW"),
    ],
)  # fmt: skip
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


def test_a_translated_template_is_used_in_chinese_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MESSAGES, "model of {name}", "{name}的模型")
    assert t("model of {name}", name="a") == "model of a"
    set_language("zh-TW")
    assert t("model of {name}", name="a") == "a的模型"


def test_a_template_without_a_translation_is_shown_in_english() -> None:
    set_language("zh-TW")
    assert t("nobody has translated {this}", this="that") == "nobody has translated that"
