"""The process in which a model folder's chat template is run, and its tokenizer opened, tried and applied.

`python -m finetuning.data.prompts.limited` answers the requests of `_ask`. Only processes that have limits themselves,
those that read large data, open the tokenizer too (`tokenizer_here`).
"""

import json
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from finetuning.data.prompts.chat_template import ChatTemplate, TemplateFault
from finetuning.data.prompts.conversation import Conversation, Pieces, write_conversation
from finetuning.data.prompts.template_parts import (
    Difference,
    TemplateParts,
    chat_parts,
    difference,
    kinds_of_conversations,
    writes_names,
)
from finetuning.data.prompts.tokenizer import (
    TOKENIZER_FILE,
    Segments,
    TokenizerFault,
    decode_tokens,
    dropout_of,
    encode_each,
    open_tokenizer,
    reads_by_place,
    special_pattern,
    special_tokens,
    token_starts,
)
from finetuning.errors import InputError
from finetuning.i18n import t
from finetuning.runtime.limited_process import LimitedProcess, NoAnswer, cpu_limit, serve

Turns = tuple[str | None, list[tuple[str, str]]]  # a sample's own system message, and its turns
OPEN_S, TRY_S = 20.0, 2.0  # CPU time for opening a tokenizer, and for a few short texts
CHARACTERS_PER_S = 20_000  # a slow tokenizer does some 500 000
MAX_ID = 1 << 32  # the tokenizers library counts in 32 bits
CHARACTERS_PER_TOKEN = 16  # more than any has on average
# Where a regular expression goes wrong, it mostly does on a run of one character.
TRIED_TEXTS = [character * 40 + "!" for character in "ax0_- .\n\t中"]

_process = LimitedProcess("finetuning.data.prompts.limited")


class FormatSource(msgspec.Struct, frozen=True):
    """What decides how samples are written, besides the template's parts."""

    model_path: str
    tokenizer_digest: str
    tokens: dict[str, str]  # special tokens by name
    ends: tuple[str, ...]  # texts of the end tokens
    chat_template: str | None  # None: the user's own is used
    system_prompt: str | None
    day: str

    @property
    def tokenizer_file(self) -> Path:
        return Path(self.model_path) / TOKENIZER_FILE

    def template(self) -> ChatTemplate | None:
        if self.chat_template is None:
            return None
        return _compiled(self.chat_template, tuple(self.tokens.items()), self.day)


@lru_cache(maxsize=4)
def _compiled(text: str, tokens: tuple[tuple[str, str], ...], day: str) -> ChatTemplate:
    """A template is compiled once, not for each of many requests."""
    return ChatTemplate(text, dict(tokens), date.fromisoformat(day))


class Settled(msgspec.Struct):
    """What is found by rendering a chat template."""

    parts: TemplateParts | None  # None: the answer does not follow the prompt
    pinned: str | None  # the template with its date, where it needs one
    writes_names: bool  # of who says a message


class AddedToken(msgspec.Struct, frozen=True):
    """How a token is found in a text, as the tokenizers library says it."""

    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool


class TokenizerFacts(msgspec.Struct, frozen=True):
    """What is asked of a tokenizer again and again."""

    special_tokens: tuple[str, ...]
    special_ids: tuple[int, ...]
    added_tokens: dict[str, AddedToken]  # the special ones among them
    vocab_size: int
    normalizes: bool
    reads_by_place: bool
    dropout: float
    ids: dict[str, int]  # of the texts that were asked for; those that it knows
    texts: dict[int, str]  # of the ids that were asked for


def find_facts(source: FormatSource, texts: list[str], ids: list[int]) -> TokenizerFacts:
    """
    Raises:
        InputError: the tokenizer cannot be read, or takes too much time or memory.
    """
    found: TokenizerFacts = msgspec.convert(_ask(source, "facts", TRY_S, texts, ids), TokenizerFacts, strict=False)
    return found


def settle(source: FormatSource) -> Settled:
    """
    Raises:
        InputError: the chat template fails, or needs too much time or memory.
    """
    return msgspec.convert(_ask(source, "settle", TRY_S, is_template=True), Settled)


def try_tokenizer(source: FormatSource, texts: list[str]) -> list[list[int]]:
    """The tokens of control texts, after the tokenizer has been tried on some that are hard for a bad one.

    Raises:
        InputError: it fails, or needs too much time or memory.
    """
    found = encode_limited(source, [[(text, True)] for text in (*texts, *TRIED_TEXTS)], TRY_S)
    for tokens in found:
        if isinstance(tokens, str):
            raise InputError(t("{file}: the tokenizer fails: {error}", file=source.tokenizer_file, error=tokens))
    return [tokens for tokens in found[: len(texts)] if not isinstance(tokens, str)]


def encode_limited(source: FormatSource, segments: list[Segments], cpu_s: float | None = None) -> list[list[int] | str]:
    """Tokens of each entry, or the tokenizer's error."""
    characters = sum(len(text) for entry in segments for text, _ in entry)
    found: list[list[int] | str] = _ask(source, "encode", cpu_s or _time_for(characters), segments)
    return found


def token_starts_limited(source: FormatSource, text: str) -> list[int]:
    """Where in a text its tokens begin."""
    found: list[int] = _ask(source, "token starts", _time_for(len(text)), text)
    return found


def decode_limited(source: FormatSource, tokens: list[list[int]], *, skip_special_tokens: bool) -> list[str]:
    """The text of each list of tokens."""
    count = sum(map(len, tokens))
    found: list[str] = _ask(source, "decode", _time_for(CHARACTERS_PER_TOKEN * count), tokens, skip_special_tokens)
    return found


def token_text_limited(source: FormatSource, token: int) -> str | None:
    found: str | None = _ask(source, "token text", TRY_S, token)
    return found


def differences_limited(
    source: FormatSource, parts: TemplateParts, conversations: list[Turns], *, with_answer: bool
) -> list[list[str] | None]:
    """`difference` of each conversation."""
    characters = sum(len(text) for _, turns in conversations for turn in turns for text in turn)
    found: list[list[str] | None] = _ask(
        source, "differences", _time_for(characters), parts, conversations, with_answer, is_template=True
    )
    return found


def write_limited(source: FormatSource, conversations: list[Conversation]) -> list[Pieces | Difference]:
    """`write_here`, in the process with limits."""
    characters = sum(len(json.dumps(msgspec.to_builtins(conversation))) for conversation in conversations)
    found = _ask(source, "write", _time_for(characters), msgspec.to_builtins(conversations), is_template=True)
    return [Difference(*one["differs"]) if "differs" in one else msgspec.convert(one["pieces"], Pieces) for one in found]


def write_here(source: FormatSource, conversations: list[Conversation]) -> list[Pieces | Difference]:
    """Conversations in pieces, as the chat template writes them; in this process, which must have limits."""
    template = source.template()
    assert template is not None
    special = special_pattern(special_tokens(tokenizer_here(source)))
    return [write_conversation(template, each, source.system_prompt, source.ends, special) for each in conversations]


def _ask(source: FormatSource, do: str, cpu_s: float, *arguments: Any, is_template: bool = False) -> Any:
    try:
        request = {"do": do, "source": msgspec.to_builtins(source), "arguments": arguments, "cpu_s": cpu_s}
        return _process.call(request, OPEN_S + cpu_s)
    except NoAnswer as reason:
        if is_template:
            raise InputError(
                t("{path}: the chat template {reason}; give --prompt_template", path=source.model_path, reason=reason)
            ) from None
        raise InputError(t("{file}: the tokenizer {reason}", file=source.tokenizer_file, reason=reason)) from None


def _time_for(characters: int) -> float:
    return TRY_S + characters / CHARACTERS_PER_S


def _answer(request: dict[str, Any]) -> Any:
    source = msgspec.convert(request["source"], FormatSource)
    tokenizer = tokenizer_here(source)
    with cpu_limit(request["cpu_s"]):  # after opening, which has a limit of its own
        try:
            return _do(request["do"], source, tokenizer, request["arguments"])
        except TokenizerFault as error:
            raise InputError(t("{file}: the tokenizer fails: {error}", file=source.tokenizer_file, error=error)) from None


def _do(what: str, source: FormatSource, tokenizer: Tokenizer, arguments: list[Any]) -> Any:
    match what:
        case "facts":
            return msgspec.to_builtins(_facts(tokenizer, *arguments), str_keys=True)
        case "decode":
            return [decode_tokens(tokenizer, tokens, skip_special_tokens=arguments[1]) for tokens in arguments[0]]
        case "token text":
            return tokenizer.id_to_token(arguments[0])
        case "settle":
            return msgspec.to_builtins(_settle(source))
        case "encode":
            return [found if isinstance(found, list) else str(found) for found in encode_each(tokenizer, arguments[0])]
        case "token starts":
            return token_starts(tokenizer, arguments[0])
        case "differences":
            template, parts = source.template(), msgspec.convert(arguments[0], TemplateParts)
            assert template is not None
            return [
                difference(parts, template, source.system_prompt, system, turns, with_answer=arguments[2])
                for system, turns in arguments[1]
            ]
        case "write":
            written = write_here(source, msgspec.convert(arguments[0], list[Conversation]))
            return [{"differs": one} if isinstance(one, Difference) else {"pieces": one} for one in written]
    raise AssertionError(what)


def _facts(tokenizer: Tokenizer, texts: list[str], ids: list[int]) -> TokenizerFacts:
    found_ids = {text: found for text in texts if (found := tokenizer.token_to_id(text)) is not None}
    asked = {*ids, *found_ids.values()}
    found_texts = {number: text for number in asked if 0 <= number < MAX_ID and (text := tokenizer.id_to_token(number))}
    added = tokenizer.get_added_tokens_decoder()
    special = {number: token.content for number, token in added.items() if token.special}
    return TokenizerFacts(
        tuple(special.values()),
        tuple(special),
        {
            token.content: AddedToken(token.single_word, token.lstrip, token.rstrip, token.normalized)
            for token in added.values()
        },
        tokenizer.get_vocab_size(),
        tokenizer.normalizer is not None,
        reads_by_place(tokenizer),
        dropout_of(tokenizer),
        found_ids,
        found_texts,
    )


def _settle(source: FormatSource) -> Settled:
    template = source.template()
    assert template is not None
    try:
        parts = chat_parts(template, source.system_prompt, source.ends)
        pinned = template.pinned(kinds_of_conversations(source.system_prompt))
        return Settled(parts, pinned, writes_names(template))
    except TemplateFault as error:
        raise InputError(
            t(
                "{path}: the chat template cannot be used ({error}); fix it, or give --prompt_template",
                path=source.model_path,
                error=error,
            )
        ) from None


def tokenizer_here(source: FormatSource) -> Tokenizer:
    """The tokenizer in this process, which must have limits."""
    return _open(source.tokenizer_file, source.tokenizer_digest)


@lru_cache(maxsize=1)
def _open(file: Path, digest: str) -> Tokenizer:
    return open_tokenizer(file)


if __name__ == "__main__":
    serve(_answer)
