"""Chat templates, found and rendered as transformers does it, but without importing it: that takes seconds.

A template is a program of unknown origin, so it runs in Jinja's sandbox and gets the functions that transformers 5.23 gives it
(utils/chat_template_utils.py) and no others. `check_against_chat_template` compares with transformers itself.
"""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from typing_extensions import override

DATE_STRING = "26 Jul 2024"  # the date of Llama 3.1's own template
TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read_chat_template(model_path: Path, settings: dict[str, Any]) -> str | None:
    """The template of a model folder, whose tokenizer_config.json holds `settings`; of several, the default. None: it has none.

    Raises:
        OSError: the file cannot be read.
    """
    file = model_path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = settings.get("chat_template")
    if isinstance(found, list):
        found = {entry["name"]: entry["template"] for entry in found}
    return (found.get("default") if isinstance(found, dict) else found) or None


class ChatTemplate:
    """A compiled template, with the special tokens it may name."""

    def __init__(self, template: str, tokens: dict[str, str]):
        """`tokens`: texts by the names of TOKEN_NAMES. Raises jinja2.TemplateError for a template that is not Jinja."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {
            "raise_exception": _raise, "strftime_now": _now, "dict": _Dictionary(), "namespace": _Namespace
        }  # fmt: skip
        self.template = environment.from_string(template)
        self.tokens = tokens

    def render(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        """The text of a conversation. Raises jinja2.TemplateError when the template refuses it."""
        # Llama 3.2's template would otherwise write today's date into every sample: another prompt each day.
        return self.template.render(
            messages=[dict(message) for message in messages], tools=None, documents=None,
            add_generation_prompt=add_generation_prompt, **self.tokens, date_string=DATE_STRING,
        )  # fmt: skip


class _Generation(Extension):
    """`{% generation %}` marks answers for those who ask where they are; its content is written as it is."""

    tags = {"generation"}  # noqa: RUF012

    @override
    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Dictionary:
    """`dict` without the type's attributes, by which a template could break out."""

    def __call__(self, *arguments: Any, **entries: Any) -> dict[Any, Any]:
        return dict(*arguments, **entries)

    def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
        return dict.fromkeys(*arguments)


class _Namespace(jinja2.utils.Namespace):
    """`namespace` that takes no names with an underscore in front, by which a template could break out."""

    def __init__(*arguments: Any, **entries: Any):
        self, *rest = arguments
        attributes = dict(*rest, **entries)
        for name in attributes:
            _refuse_hidden(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    @override
    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_hidden(name)
        super().__setitem__(name, value)


def _refuse_hidden(name: str) -> None:
    if name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a chat template cannot set {name!r}")


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None,
             sort_keys: bool = False) -> str:  # fmt: skip
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
