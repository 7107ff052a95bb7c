"""Traditional Chinese messages: complete, with the same values put in, and nothing left over."""

import ast
import importlib
import string
from itertools import pairwise

import pytest

from finetuning.cli.main import VERBS, build_parser
from finetuning.config.settings import FLAGS
from finetuning.i18n import set_language, t, translated
from tools import catalogue
from tools.catalogue import calls_of_t, translated_texts

pytestmark = pytest.mark.unit

MESSAGES = {message.id: message.string for message in catalogue.read_catalogue() if message.id}


def test_every_message_is_a_literal_template() -> None:
    not_literal = [place for place, template in calls_of_t() if template is None]
    assert not not_literal, f"t(…) without a literal template cannot be translated: {not_literal}"


def test_every_message_has_a_translation() -> None:
    missing = {text: place for place, text in translated_texts() if not MESSAGES.get(text)}
    listed = "\n".join(f"{place}: {text!r}" for text, place in missing.items())
    assert not missing, f"not translated in {catalogue.CATALOGUE} (`python tools/catalogue.py` adds what is new):\n{listed}"


def test_the_program_reads_the_catalogue_as_babel_does() -> None:
    assert {text: in_chinese(text) for text in MESSAGES} == {text: said or text for text, said in MESSAGES.items()}


def in_chinese(text: str) -> str:
    set_language("zh-TW")
    try:
        return translated(text)
    finally:
        set_language("en")


def test_no_translation_is_left_without_a_message() -> None:
    stale = MESSAGES.keys() - {text for _, text in translated_texts()}
    assert not stale, (
        f"{catalogue.CATALOGUE} translates what no source says (`python tools/catalogue.py` removes it): {sorted(stale)}"
    )


def test_a_translation_puts_in_the_same_values() -> None:
    templates = {template for _, template in calls_of_t() if template is not None}
    different = {
        template: MESSAGES[template]
        for template in templates & MESSAGES.keys()
        if placeholders(MESSAGES[template]) != placeholders(template)
    }
    assert not different


def test_a_flag_s_translation_keeps_the_names_that_are_typed() -> None:
    for flag in FLAGS.values():
        for text in filter(None, (flag.help, flag.details)):
            typed = {word.strip("(),;:") for word in text.split() if "_" in word or "{" in word}
            assert all(word in MESSAGES[text] for word in typed if "NAME" not in word), text


def test_translations_have_full_width_punctuation_after_chinese() -> None:
    for translation in MESSAGES.values():
        for before, mark in pairwise(translation):
            assert not ("\u4e00" <= before <= "\u9fff" and mark in ",;:?()"), translation


def test_a_message_appears_in_the_language_that_is_set() -> None:
    set_language("zh-TW")
    try:
        assert t("--{name} is required", name="dataset_path") == "必須給 --dataset_path"
        assert "基本執行選項" in build_parser("finetune train").format_help()
    finally:
        set_language("en")
    assert t("--{name} is required", name="dataset_path") == "--dataset_path is required"
    assert "Basic execution" in build_parser("finetune train").format_help()


def test_every_help_text_goes_through_the_translations() -> None:
    plain = []
    for file in sorted(catalogue.PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg in ("help", "description") and not is_translated(node.value):
                plain.append(f"{file.relative_to(catalogue.ROOT)}:{node.value.lineno}")
    assert not plain


def is_translated(value: ast.expr) -> bool:
    """Not a text as it stands, nor one with values put in."""
    return not isinstance(value, ast.JoinedStr) and not (isinstance(value, ast.Constant) and isinstance(value.value, str))


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "train"])
def test_every_verb_has_help_in_chinese(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    set_language("zh-TW")
    try:
        with pytest.raises(SystemExit):
            importlib.import_module(VERBS[verb][0]).main(["--help"])
    finally:
        set_language("en")
    printed = capsys.readouterr().out
    assert MESSAGES["show this help and stop"] in " ".join(printed.split())
    words = printed[printed.index("options:") :]
    assert "show this help message" not in words and "left out" not in words


def placeholders(template: str) -> list[tuple[str, str, str]]:
    """Name, conversion and format of each value, in no order: another language has another word order."""
    parsed = string.Formatter().parse(template)
    values = ((name, conversion or "", form or "") for _, name, form, conversion in parsed if name is not None)
    return sorted(value for value in values if value[2] not in ("s", "es"))  # Chinese nouns have no plural
