"""A model behind an address that speaks OpenAI's protocol: vLLM, SGLang, llama-server, Ollama; asked for what it tells.

All of them answer conversations. Some tell the tokens of the prompt (vLLM; llama-server and SGLang by addresses of their own),
those of the answer with their log-probabilities, and what their tokenizer makes of a text; what a server does not tell is None.
"""

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec

from finetuning.errors import InputError, RunError
from finetuning.i18n import t

TIMEOUT_S = 600.0  # of an answer; a large model on a CPU takes minutes
KEY = "OPENAI_API_KEY"  # of servers that ask for one
Message = dict[str, str]


@dataclass(frozen=True)
class ServedAnswer:
    """A greedy answer; None: the server does not tell."""

    text: str
    has_ended: bool  # by itself, before the limit
    tokens: list[int] | None = None  # all of them; the end token may be the last
    logprobs: list[tuple[int, float]] = field(default_factory=list)  # natural, of tokens in order; some may be left out
    prompt: list[int] | None = None  # tokens
    prompt_length: int | None = None


class Served(Protocol):
    """A model as it is served."""

    @property
    def name(self) -> str: ...

    def answer(self, messages: Sequence[Message], max_new_tokens: int) -> ServedAnswer: ...

    def tokenize(self, texts: Sequence[str]) -> list[list[int]] | None:
        """What its tokenizer makes of texts alone."""

    def logprobs(self, tokens: Sequence[int]) -> list[float] | None:
        """Of each token but the first, given those before it."""


class _Entry(msgspec.Struct):
    logprob: float
    id: int | None = None  # llama-server's
    token: str = ""


class _Logprobs(msgspec.Struct):
    content: list[_Entry] | None = None


class _Text(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Text
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[int] | None = None  # vLLM's


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None
    prompt_token_ids: list[int] | None = None  # vLLM's


class _EchoLogprobs(msgspec.Struct):
    token_logprobs: list[float | None]


class _EchoChoice(msgspec.Struct):
    logprobs: _EchoLogprobs | None = None


class _Echo(msgspec.Struct):
    choices: list[_EchoChoice]


class _TextChoice(msgspec.Struct):
    token_ids: list[int] | None = None  # vLLM's


class _TextCompletion(msgspec.Struct):
    choices: list[_TextChoice]


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Prompt(msgspec.Struct):
    prompt: str


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


@dataclass(frozen=True)
class OpenAIServer:
    """A server by the address that clients are given, which ends in /v1."""

    url: str
    model: str | None = None  # None: the only one that it has

    @cached_property
    def name(self) -> str:
        """
        Raises:
            InputError: nothing answers, it has no such model, or several and none was asked for.
        """
        try:
            found = [entry.id for entry in self._ask("GET", f"{self.url}/models", None, _Models).data]
        except RunError as error:
            raise InputError(str(error)) from None
        if self.model is None and len(found) == 1:
            return found[0]
        if self.model in found:
            return str(self.model)
        raise InputError(
            t(
                "{url}: serves {names}; give the one that was trained as --served_model",
                url=self.url,
                names=", ".join(found) or t("no model"),
            )
        )

    def answer(self, messages: Sequence[Message], max_new_tokens: int) -> ServedAnswer:
        """
        Raises:
            RunError: the server refuses, or answers something else than OpenAI's protocol has.
        """
        wanted: dict[str, Any] = {"model": self.name, "messages": list(messages), "max_tokens": max_new_tokens}
        wanted |= {"temperature": 0, "seed": 0, "stream": False}
        more = {"logprobs": True, "top_logprobs": 1, "return_token_ids": True}
        address = f"{self.url}/chat/completions"
        try:
            found = self._ask("POST", address, wanted | more, _Completion)
        except (
            _Refused
        ):  # a server that knows no log-probabilities, or llama-server, which takes answers apart and fails at some
            found = self._ask("POST", address, wanted, _Completion)
        choice = found.choices[0]
        entries = (choice.logprobs.content if choice.logprobs is not None else None) or []
        usage = found.usage or _Usage()
        ids = [entry.id for entry in entries if entry.id is not None]
        # Of a character of several tokens llama-server tells the last one only.
        tokens = choice.token_ids or (ids if ids and len(ids) == usage.completion_tokens else None)
        numbers = tokens if tokens is not None and len(tokens) == len(entries) else ids
        return ServedAnswer(
            choice.message.content or "",
            choice.finish_reason != "length",
            tokens,
            [(token, entry.logprob) for token, entry in zip(numbers, entries, strict=True)]
            if len(numbers) == len(entries)
            else [],
            found.prompt_token_ids or self._prompt(messages),
            usage.prompt_tokens,
        )

    def complete(self, tokens: Sequence[int], settings: dict[str, Any]) -> list[int]:
        """The tokens that follow on these; the end token may be the last.

        Args:
            settings: of vLLM's address for completions: how tokens are chosen, and where they end.

        Raises:
            RunError: the server refuses, or does not tell tokens.
        """
        wanted = {"model": self.name, "prompt": list(tokens), "return_token_ids": True} | settings
        (choice,) = self._ask("POST", f"{self.url}/completions", wanted, _TextCompletion).choices
        if choice.token_ids is None:
            raise RunError(t("{url}: does not tell the tokens of its answers; vLLM does from 0.10.2 on", url=self.url))
        return choice.token_ids

    def tokenize(self, texts: Sequence[str]) -> list[list[int]] | None:
        found = []
        for text in texts:
            # llama-server's names, and those of vLLM and SGLang.
            wanted = {"content": text, "add_special": False, "parse_special": False}
            wanted |= {"model": self.name, "prompt": text, "add_special_tokens": False}
            tokens = self._try(f"{self._root}/tokenize", wanted, _Tokens)
            if tokens is None:
                return None
            found.append(tokens.tokens)
        return found

    def logprobs(self, tokens: Sequence[int]) -> list[float] | None:
        wanted = {"model": self.name, "prompt": list(tokens), "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
        found = self._try(f"{self.url}/completions", wanted, _Echo)
        if found is None or not found.choices or found.choices[0].logprobs is None:
            return None
        values = found.choices[0].logprobs.token_logprobs[1 : len(tokens)]
        known = [value for value in values if value is not None]
        return known if len(known) == len(tokens) - 1 else None

    def _prompt(self, messages: Sequence[Message]) -> list[int] | None:
        """The tokens of a conversation, from addresses beside OpenAI's."""
        text = self._try(f"{self._root}/apply-template", {"messages": list(messages)}, _Prompt)
        if text is not None:
            wanted: dict[str, Any] = {"content": text.prompt, "add_special": True, "parse_special": True}
        else:
            wanted = {"model": self.name, "messages": list(messages), "add_generation_prompt": True}
        tokens = self._try(f"{self._root}/tokenize", wanted, _Tokens)
        return tokens.tokens if tokens is not None else None

    @property
    def _root(self) -> str:
        return self.url.removesuffix("/v1")

    def _try(self, address: str, wanted: dict[str, Any], schema: Any) -> Any:
        """None: the server has no such address, or answers something else there."""
        try:
            return self._ask("POST", address, wanted, schema)
        except RunError:
            return None

    def _ask(self, method: str, address: str, wanted: dict[str, Any] | None, schema: Any) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        body = json.dumps(wanted).encode() if wanted is not None else None
        request = urllib.request.Request(address, body, headers, method=method)
        try:
            with _opener(address).open(request, timeout=TIMEOUT_S) as response:
                return msgspec.json.decode(response.read(), type=schema)
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(1000).decode(errors="replace")
            raise _Refused(
                t("{url}: refused ({code}): {reason}", url=address, code=error.code, reason=said.strip()[:300])
            ) from None
        except urllib.error.URLError as error:
            raise RunError(t("{url}: nothing answers there ({reason})", url=address, reason=error.reason)) from None
        except (OSError, http.client.HTTPException) as error:
            raise RunError(
                t("{url}: nothing answers there ({reason})", url=address, reason=error or type(error).__name__)
            ) from None
        except msgspec.DecodeError as error:
            raise RunError(
                t("{url}: answers something else than OpenAI's protocol has: {error}", url=address, error=error)
            ) from None


class _Refused(RunError):
    """The server has answered with an error."""


def _opener(address: str) -> urllib.request.OpenerDirector:
    """Of this machine itself no proxy is asked."""
    is_here = urlsplit(address).hostname in ("127.0.0.1", "localhost", "::1")
    return urllib.request.build_opener(urllib.request.ProxyHandler({})) if is_here else urllib.request.build_opener()
