"""Traditional Chinese messages: complete, with the same values put in, and nothing left over."""

import ast
import importlib
import string
from itertools import pairwise
from pathlib import Path

import pytest

import finetuning
from finetuning.cli.main import VERBS, build_parser
from finetuning.config.settings import FLAGS
from finetuning.i18n import set_language, t
from finetuning.messages_zh_tw import MESSAGES

pytestmark = pytest.mark.unit

PACKAGE = Path(finetuning.__file__).parent


def test_every_message_is_a_literal_template() -> None:
    not_literal = [place for place, template in calls_of_t() if template is None]
    assert not not_literal, f"t(…) without a literal template cannot be translated: {not_literal}"


def test_every_message_has_a_translation() -> None:
    missing = {text: place for place, text in translated_texts() if text not in MESSAGES}
    assert not missing, "finetuning/messages_zh_tw.py lacks:\n" + "\n".join(
        f"{place}: {text!r}" for text, place in missing.items()
    )


def test_no_translation_is_left_without_a_message() -> None:
    stale = MESSAGES.keys() - {text for _, text in translated_texts()}
    assert not stale, f"finetuning/messages_zh_tw.py translates what no source says: {sorted(stale)}"


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
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg in ("help", "description") and not is_translated(node.value):
                plain.append(f"{file.relative_to(PACKAGE.parent)}:{node.value.lineno}")
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


def translated_texts() -> list[tuple[str, str]]:
    """(place, English text) of everything that is shown through the translations: templates of t(…) and the flags' help."""
    texts = [(place, template) for place, template in calls_of_t() if template is not None]
    for name, flag in FLAGS.items():
        of_flag = (flag.group, flag.help, flag.default_means, flag.details)
        texts += [(f"finetuning/config/settings.py {name}", text) for text in of_flag if text is not None]
    texts += [("finetuning/cli/main.py VERBS", text) for _, text in VERBS.values()]
    return texts


def calls_of_t() -> list[tuple[str, str | None]]:
    """(file:line, template) of every call t(…) in the package; None where the template is not a literal."""
    calls: list[tuple[str, str | None]] = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "t":
                first = node.args[0] if node.args else None
                literal = isinstance(first, ast.Constant) and isinstance(first.value, str)
                calls.append((f"{file.relative_to(PACKAGE.parent)}:{node.lineno}", first.value if literal else None))
    return calls


def placeholders(template: str) -> list[tuple[str, str, str]]:
    """Name, conversion and format of each value, in no order: another language has another word order."""
    parsed = string.Formatter().parse(template)
    values = ((name, conversion or "", form or "") for _, name, form, conversion in parsed if name is not None)
    return sorted(value for value in values if value[2] not in ("s", "es"))  # Chinese nouns have no plural
