"""Chat templates, found and rendered as transformers does it, but without importing it: that takes seconds.

A template is a program of unknown origin, so it runs in Jinja's sandbox, in a process with limits, and gets the functions that
transformers 5.23 gives it (utils/chat_template_utils.py) and no others. The clock that it may ask stands still: a prompt must
not be another one tomorrow.
"""

import json
from datetime import date, datetime, time
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from typing_extensions import override

from finetuning.data.prompts.tokenizer import TokenizerSettings
from finetuning.errors import InputError
from finetuning.files.documents import read_text
from finetuning.i18n import t

DATE = date(2024, 7, 26)  # that of Llama 3.1's own template
OTHER_MOMENT = datetime.combine(date(1995, 2, 4), time(16, 5, 6, 789))  # differs from DATE in whatever can be asked for
DATE_FORMAT = "%d %b %Y"
MAX_TEMPLATE_BYTES = 1 << 20
MAX_WRITTEN = 1 << 20  # characters that a template may write around the texts


def read_chat_template(model_path: Path, settings: TokenizerSettings) -> str | None:
    """The template of a model folder, whose tokenizer_config.json holds `settings`; of several, the default. None: it has none.

    Raises:
        InputError: the file cannot be read, or is too large.
    """
    file = model_path / "chat_template.jinja"
    if file.is_file():
        return read_text(file, MAX_TEMPLATE_BYTES)
    found = settings.chat_template
    if isinstance(found, list):
        found = {entry.name: entry.template for entry in found}
    text = (found.get("default") if isinstance(found, dict) else found) or None
    if text is not None and len(text) > MAX_TEMPLATE_BYTES:
        file = model_path / "tokenizer_config.json"
        raise InputError(t("{file}: larger than {most} MiB", file=file, most=MAX_TEMPLATE_BYTES >> 20))
    return text


class TemplateFault(Exception):
    """A template is no Jinja, refuses the messages, or fails on them."""


class ChatTemplate:
    """A template, with the special tokens it may name and the date on which it is rendered.

    To be used in a process with limits (finetuning.runtime.limited_process) only.
    """

    def __init__(self, text: str, tokens: dict[str, str], moment: date = DATE, *, tells_date: bool = True):
        """`tokens`: texts by the names of TOKEN_NAMES. Without `tells_date` the template has to ask the clock."""
        self.text, self.tokens = text, tokens
        self.moment = moment if isinstance(moment, datetime) else datetime.combine(moment, time())
        self.date_string = {"date_string": self.moment.strftime(DATE_FORMAT)} if tells_date else {}
        self.asked: set[str] = set()  # formats in which it has asked the clock

    def render(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None, *, add_generation_prompt: bool
    ) -> str:
        """The text of a conversation; no `tools` at all are None to the template, as with transformers.

        Raises:
            TemplateFault: of whatever kind the template's error is.
        """
        try:
            text = self._compiled.render(
                messages=[dict(message) for message in messages],
                tools=tools or None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.tokens,
                **self.date_string,
            )
        except jinja2.TemplateError as error:
            raise TemplateFault(str(error)) from None
        except MemoryError:
            raise TemplateFault(t("it takes too much memory")) from None
        except Exception as error:  # a template is a program: it may divide by zero
            raise TemplateFault(f"{type(error).__name__}: {error}") from None
        given = sum(map(_characters, messages)) + (len(json.dumps(tools)) if tools else 0)
        if len(text) > MAX_WRITTEN + 4 * given:
            raise TemplateFault(t("it writes {count:,} character{count:s}", count=len(text)))
        return text

    def pinned(self, conversations: list[tuple[list[dict[str, str]], bool]]) -> str | None:
        """The same template with its date written into it, where transformers would render another; None: it would not.

        Args:
            conversations: of the kinds that matter, with whether an answer is asked for; those that it refuses do not count.

        Raises:
            TemplateFault: it asks for the date in a way that is not understood, or chance decides what it writes.
        """
        ours = self._rendered_all(conversations)
        elsewhere = ChatTemplate(self.text, self.tokens, OTHER_MOMENT, tells_date=False)
        if elsewhere._rendered_all(conversations) == ours:
            return None
        again = ChatTemplate(self.text, self.tokens, self.moment, tells_date=bool(self.date_string))
        if again._rendered_all(conversations) != ours:
            raise TemplateFault(t("it writes another text each time"))
        dates = {form: _escaped(self.moment.strftime(form)) for form in sorted(self.asked | elsewhere.asked)}
        cases = "".join(f"{{% if format == {_quoted(form)} %}}{text}{{% endif %}}" for form, text in dates.items())
        set_date = f"{{% set date_string = {_quoted(self.moment.strftime(DATE_FORMAT))} %}}"
        text = f"{set_date}{{% macro strftime_now(format) %}}{cases}{{% endmacro +%}}{self.text}"
        if ChatTemplate(text, self.tokens, OTHER_MOMENT, tells_date=False)._rendered_all(conversations) != ours:
            raise TemplateFault(t("it asks for the date in a way that cannot be fixed for an export"))
        return text

    def _rendered_all(self, conversations: list[tuple[list[dict[str, str]], bool]]) -> list[str | None]:
        """Each conversation; None where the template refuses it."""
        texts: list[str | None] = []
        for messages, asks in conversations:
            try:
                texts.append(self.render(messages, add_generation_prompt=asks))
            except TemplateFault:
                texts.append(None)
        return texts

    def _strftime_now(self, format: str) -> str:  # the name is transformers', as a template may use it
        self.asked.add(format)
        return self.moment.strftime(format)

    @cached_property
    def _compiled(self) -> jinja2.Template:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {
            "raise_exception": _raise,
            "strftime_now": self._strftime_now,
            "dict": _Dictionary(),
            "namespace": _Namespace,
        }
        return environment.from_string(self.text)


def _characters(message: dict[str, Any]) -> int:
    """What a message gives a template to write."""
    if len(message) == 2 and isinstance(message.get("content"), str):  # a role and a text, as most are
        return len(message["content"])
    return len(json.dumps(message, ensure_ascii=False))


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


def _escaped(text: str) -> str:
    """The text as a template that writes it."""
    return "{{ " + _quoted(text) + " }}"


def _quoted(text: str) -> str:
    """The text as a string of Jinja."""
    return json.dumps(text, ensure_ascii=False)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
