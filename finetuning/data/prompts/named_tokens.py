"""Tokens that other files of a model folder name: tokenizer.json, which alone is read, must have every one of them.

transformers 5.23 adds those that are missing and takes over how they are described (`TokenizersBackend.__init__`), so the same
text would become other tokens there. In: the folder and what its tokenizer says of itself. Out: messages.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from finetuning.data.prompts.limited import AddedToken, TokenizerFacts
from finetuning.data.prompts.tokenizer import TOKENIZER_FILE
from finetuning.files.documents import as_schema, read_json
from finetuning.i18n import t


class _Described(msgspec.Struct):
    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


class _Lists(msgspec.Struct):
    additional_special_tokens: list[str | _Described] | dict[str, str | _Described] | None = None
    extra_special_tokens: list[str | _Described] | dict[str, str | _Described] | None = None
    added_tokens_decoder: dict[str, _Described] | None = None
    split_special_tokens: bool | None = None


def named_token_problems(model_path: Path, facts: TokenizerFacts) -> list[str]:
    """A message for every file that transformers would read otherwise than tokenizer.json.

    Raises:
        InputError: a file is damaged.
    """
    settings = model_path / "tokenizer_config.json"
    raw = read_json(settings, dict[str, Any]) if settings.is_file() else {}
    lists = as_schema(raw, _Lists, settings)
    described = lists.added_tokens_decoder
    names = {settings: set(_named(raw, lists)) | {token.content for token in (described or {}).values()}}
    if described is None:  # older models
        older, added = model_path / "special_tokens_map.json", model_path / "added_tokens.json"
        if older.is_file():
            known = read_json(older, dict[str, Any])
            names[older] = set(_named(known, as_schema(known, _Lists, older)))
        if added.is_file():
            names[added] = set(read_json(added, dict[str, int]))
    problems = []
    for file, tokens in names.items():
        if missing := sorted(tokens - facts.added_tokens.keys()):
            problems.append(
                t(
                    "{file}: names tokens that {tokenizer} does not have ({tokens}); transformers would add them, and texts "
                    "become other tokens. {remedy}",
                    file=file,
                    tokenizer=TOKENIZER_FILE,
                    tokens=_shown(missing),
                    remedy=_remedy(model_path),
                )
            )
    if changed := sorted(token.content for token in (described or {}).values() if _differs(token, facts)):
        problems.append(
            t(
                "{file}: says otherwise than {tokenizer} how {tokens} are found in a text, and transformers would follow it. "
                "{remedy}",
                file=settings,
                tokenizer=TOKENIZER_FILE,
                tokens=_shown(changed),
                remedy=_remedy(model_path),
            )
        )
    if lists.split_special_tokens:
        problems.append(
            t(
                "{file}: split_special_tokens is true, so that the template's own tokens would become plain text; set it to "
                "false",
                file=settings,
            )
        )
    return problems


def _named(raw: dict[str, Any], lists: _Lists) -> Iterator[str]:
    for key, value in raw.items():
        found = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(found, str) and found:
            yield found
    for entries in (lists.additional_special_tokens, lists.extra_special_tokens):
        for token in entries.values() if isinstance(entries, dict) else entries or ():
            yield token.content if isinstance(token, _Described) else token


def _differs(token: _Described, facts: TokenizerFacts) -> bool:
    own = facts.added_tokens.get(token.content)
    if own is None:
        return False
    told = AddedToken(token.single_word, token.lstrip, token.rstrip, token.normalized if facts.normalizes else own.normalized)
    return told != own


def _shown(tokens: list[str]) -> str:
    return ", ".join(tokens[:3]) + (f", … ({len(tokens)})" if len(tokens) > 3 else "")


def _remedy(model_path: Path) -> str:
    folder = str(model_path)
    return t(
        "Save it again: {code}",
        code=f"transformers.AutoTokenizer.from_pretrained({folder!r}).save_pretrained({folder!r})",
    )
