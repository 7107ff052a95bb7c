"""The tokenizer of a model folder, opened in one place, and text to tokens.

In: tokenizer.json, and the names of its special tokens from tokenizer_config.json. A folder's own code is never run.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from tokenizers import Tokenizer
from tokenizers.models import BPE

from finetuning.errors import InputError
from finetuning.files.documents import read_json, read_text
from finetuning.i18n import t

TOKENIZER_FILE = "tokenizer.json"
MAX_TOKENIZER_BYTES = 256 << 20
TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

T = TypeVar("T", bound=msgspec.Struct)
Segments = list[tuple[str, bool]]  # (text, is control text)


class _AddedToken(msgspec.Struct):
    content: str


class _NamedTemplate(msgspec.Struct):
    name: str
    template: str


class TokenizerSettings(msgspec.Struct):
    """What is used of tokenizer_config.json; older models name their special tokens in special_tokens_map.json."""

    bos_token: str | _AddedToken | None = None
    eos_token: str | _AddedToken | None = None
    unk_token: str | _AddedToken | None = None
    sep_token: str | _AddedToken | None = None
    pad_token: str | _AddedToken | None = None
    cls_token: str | _AddedToken | None = None
    mask_token: str | _AddedToken | None = None
    chat_template: str | dict[str, str] | list[_NamedTemplate] | None = None
    added_tokens_decoder: dict[str, Any] | None = None  # see named_tokens

    def special_tokens(self) -> dict[str, str]:
        """The texts of the special tokens by name, those that there are."""
        found = {name: getattr(self, name) for name in TOKEN_NAMES}
        texts = {name: token.content if isinstance(token, _AddedToken) else token for name, token in found.items()}
        return {name: text for name, text in texts.items() if text}


class _Generation(msgspec.Struct):
    eos_token_id: int | list[int] | None = None


class _Config(msgspec.Struct):
    vocab_size: int | None = None
    eos_token_id: int | list[int] | None = None


def read_tokenizer_settings(model_path: Path) -> TokenizerSettings:
    """
    Raises:
        InputError: a file is damaged, or a key holds something else than it must; names file, key and rule.
    """
    settings = _read(model_path / "tokenizer_config.json", TokenizerSettings)
    if settings.added_tokens_decoder is None:
        older = _read(model_path / "special_tokens_map.json", TokenizerSettings)
        for name in TOKEN_NAMES:
            if (token := getattr(older, name)) is not None:
                setattr(settings, name, token)
    return settings


def read_end_token_ids(model_path: Path) -> set[int]:
    """The tokens at which transformers ends an answer, besides the tokenizer's own; config.json has a say only where no
    generation_config.json is."""
    generation = model_path / "generation_config.json"
    source = read_json(generation, _Generation) if generation.is_file() else _read(model_path / "config.json", _Config)
    found = source.eos_token_id
    return set() if found is None else set(found) if isinstance(found, list) else {found}


def read_table_size(model_path: Path) -> int | None:
    """How many tokens the embedding table has a row for; None: the folder does not say."""
    return _read(model_path / "config.json", _Config).vocab_size


def open_tokenizer(file: Path) -> Tokenizer:
    """A tokenizer that neither cuts nor pads: tokenizer.json may hold both, left by a program that saved it.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        text = read_text(file, MAX_TOKENIZER_BYTES)
        with _as_faults():
            tokenizer = Tokenizer.from_str(text)
    except FileNotFoundError as error:
        raise unreadable(file, error) from None
    except TokenizerFault as error:
        raise InputError(t("{file}: cannot read the tokenizer: {error}", file=file, error=error)) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def unreadable(file: Path, error: OSError) -> InputError:
    if not isinstance(error, FileNotFoundError):
        return InputError(t("{file}: cannot read the tokenizer: {error}", file=file, error=error.strerror))
    return InputError(
        t(
            "{file}: cannot read the tokenizer: {error}; `finetune export {folder} OUT --base MODEL` writes the folder with "
            "that of another model",
            file=file,
            error=error.strerror,
            folder=file.parent,
        )
    )


class TokenizerFault(Exception):
    """The tokenizers library could not read or apply what a file says."""


def encode_each(tokenizer: Tokenizer, entries: Sequence[Segments]) -> "list[list[int] | TokenizerFault]":
    """Tokens of each entry, or why the tokenizer fails on it.

    The segments of an entry are joined, so that words may merge across, unless one of its texts looks special.
    """
    try:
        return list(_encode_all(tokenizer, entries))
    except TokenizerFault as fault:
        if len(entries) == 1:
            return [fault]
    return [encode_each(tokenizer, [segments])[0] for segments in entries]


def _encode_all(tokenizer: Tokenizer, entries: Sequence[Segments]) -> list[list[int]]:
    pattern = special_pattern(special_tokens(tokenizer))
    is_plain = [not any(pattern.search(text) for text, is_control in segments if not is_control) for segments in entries]
    joined = ["".join(text for text, _ in segments) for segments, plain in zip(entries, is_plain, strict=True) if plain]
    with _as_faults():
        plain_ids = iter(tokenizer.encode_batch_fast(joined, add_special_tokens=False))
        return [
            next(plain_ids).ids if plain else _encode_apart(tokenizer, segments)
            for segments, plain in zip(entries, is_plain, strict=True)
        ]


def token_starts(tokenizer: Tokenizer, text: str) -> list[int]:
    """Where in a text each of its tokens begins."""
    with _as_faults():
        return [start for start, _ in tokenizer.encode(text, add_special_tokens=False).offsets]


def decode_tokens(tokenizer: Tokenizer, tokens: list[int], *, skip_special_tokens: bool) -> str:
    with _as_faults():
        return tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)


def reads_by_place(tokenizer: Tokenizer) -> bool:
    """Whether a text has other tokens behind another one than alone: SentencePiece's tokenizers write a mark (`▁`) before what
    they are given, and a token may take in the white space beside it."""
    written = tokenizer.normalizer.normalize_str("a") if tokenizer.normalizer is not None else "a"
    if tokenizer.pre_tokenizer is not None:
        written = "".join(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(written))
    return written != "a" or any(token.lstrip or token.rstrip for token in tokenizer.get_added_tokens_decoder().values())


def dropout_of(tokenizer: Tokenizer) -> float:
    """The share of merges that it leaves out by chance."""
    return (tokenizer.model.dropout or 0.0) if isinstance(tokenizer.model, BPE) else 0.0


def special_tokens(tokenizer: Tokenizer) -> tuple[str, ...]:
    return tuple(token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special)


@lru_cache(maxsize=4)
def special_pattern(tokens: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")


def _encode_apart(tokenizer: Tokenizer, segments: Segments) -> list[int]:
    tokens: list[int] = []
    try:
        for text, is_control in segments:
            tokenizer.encode_special_tokens = not is_control
            tokens += tokenizer.encode(text, add_special_tokens=False).ids
    finally:
        tokenizer.encode_special_tokens = False
    return tokens


@contextmanager
def _as_faults() -> Iterator[None]:
    """tokenizers raises bare Exception; where its Rust code gives up, a PanicException, which is none."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        raise TokenizerFault(str(error).splitlines()[0] if str(error) else type(error).__name__) from None


def _read(file: Path, schema: type[T]) -> T:
    return read_json(file, schema) if file.is_file() else schema()
