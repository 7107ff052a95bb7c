"""From a question and its answer to tokens: the tokenizer's chat template, or a template of the user's.

A sample becomes prompt tokens followed by answer tokens; only the answer, with the token that ends it, is trained.
Special tokens come from the template alone: text such as `<|eot_id|>` inside a question or an answer is encoded as
ordinary characters. There is exactly one begin-of-text token, and the prompt of a training sample is, token for token,
the prompt that is used when an answer is generated.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jinja2
import numpy as np
from tokenizers import Tokenizer

from finetuning.data.prompts.chat_template import DATE_STRING, TOKEN_NAMES, ChatTemplate, read_chat_template
from finetuning.data.reading.findings import Problem, excerpt
from finetuning.data.reading.records import Sample
from finetuning.errors import InputError
from finetuning.i18n import t

# Rendered in place of the real texts to find what the template puts around them; private-use characters, so that no
# template contains them. The spaces tell whether the template trims.
INPUT_MARK, OUTPUT_MARK, SYSTEM_MARK = "\ue000input\ue001", "\ue000output\ue001", "\ue000system\ue001"
CHECKED_SAMPLES = 16


class Renderer(Protocol):
    def __call__(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str: ...


Segments = list[tuple[str, bool]]  # (text, is control text)


@dataclass(frozen=True)
class PromptFormat:
    """What surrounds questions and answers, and how text becomes tokens."""

    tokenizer: Tokenizer
    special_tokens: tuple[str, ...]
    before: str  # control text before the first question, begin-of-text included
    between: str
    after: str  # control text after an answer; starts with the end token
    again: str | None  # control text between an answer's end and the next question; None: turns cannot follow each other
    own_system: tuple[str, str] | None  # control text around a sample's own system message, to its question; None: no place
    trims: bool  # the chat template strips white space around every text
    is_custom: bool  # from --prompt_template, not the tokenizer's own
    end_token_ids: tuple[int, ...]
    fingerprint: str  # changes with the tokenizer's file, the template and the system prompt

    def problem_of(self, sample: Sample) -> Problem | None:
        """Why this format cannot write the sample, if so."""
        if sample.system is not None and self.own_system is None:
            return Problem("system_has_no_place", {}, excerpt(sample.system))
        if sample.history and self.again is None:
            return Problem("turns_have_no_place", {}, excerpt(sample.history[0][0]))
        return None

    def prompt_text(self, sample: Sample) -> str:
        """Everything before the last answer."""
        parts = [text for segments, _ in self._parts(sample)[:-1] for text, _ in segments]
        return "".join(parts)

    def whole_text(self, sample: Sample) -> str:
        """The whole sample, control text included."""
        return "".join(text for segments, _ in self._parts(sample) for text, _ in segments)

    def encode_prompt(self, sample: Sample) -> list[int]:
        """Tokens of everything before the last answer."""
        return [token for segments, _ in self._parts(sample)[:-1] for token in self._encode(segments)]

    def encode(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of the whole sample (int32), and which of them are trained (bool)."""
        return self.encode_all([sample])[0]

    def encode_all(self, samples: list[Sample]) -> list[tuple[np.ndarray, np.ndarray]]:
        """`encode` of many samples at once, by several threads where the tokenizer is allowed to."""
        parts = [self._parts(sample) for sample in samples]
        flat = [segments for sample_parts in parts for segments, _ in sample_parts]
        is_plain = [not self._looks_special(segments) for segments in flat]
        joined = ["".join(text for text, _ in segments) for segments, plain in zip(flat, is_plain, strict=True) if plain]
        plain_ids = iter(self.tokenizer.encode_batch_fast(joined, add_special_tokens=False))
        ids = iter(
            next(plain_ids).ids if plain else self._encode(segments) for segments, plain in zip(flat, is_plain, strict=True)
        )
        encoded = []
        for sample_parts in parts:
            pieces = [(next(ids), is_answer) for _, is_answer in sample_parts]
            tokens = np.concatenate([np.array(piece, dtype=np.int32) for piece, _ in pieces])
            trained = np.repeat([is_answer for _, is_answer in pieces], [len(piece) for piece, _ in pieces])
            encoded.append((tokens, trained))
        return encoded

    def cut_input(self, sample: Sample, seq_length: int) -> Sample | None:
        """The sample with its longest questions cut at their end so that it fits; None: answers and template alone do not."""
        while (excess := len(self.encode(sample)[0]) - seq_length) > 0:
            questions = [question for question, _ in sample.turns]
            longest = max(range(len(questions)), key=lambda index: len(questions[index]))
            offsets = self.tokenizer.encode(questions[longest], add_special_tokens=False).offsets
            if not offsets:
                return None
            keep = len(offsets) - excess
            cut = min(offsets[keep][0], len(questions[longest]) - 1) if keep > 0 else 0
            questions[longest] = questions[longest][:cut]
            *history, last = zip(questions, (answer for _, answer in sample.turns), strict=True)
            sample = dataclasses.replace(sample, input=last[0], history=tuple(history))
        return sample

    def decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def chat_template(self) -> str | None:
        """Jinja chat template that writes the same prompts, where the tokenizer's own does not (None: it does)."""
        if not self.is_custom:
            return None
        assert self.again is not None
        before, between, after, again = (
            json.dumps(text, ensure_ascii=False) for text in (self.before, self.between, self.after, self.again)
        )
        return (
            "{%- for message in messages -%}"
            "{%- if message['role'] == 'user' -%}{{ " + before + " if loop.first else " + again + " }}{{ message['content'] }}"
            "{{ " + between + " }}{%- elif message['role'] == 'assistant' -%}{{ message['content'] }}{{ " + after + " }}"
            "{%- endif -%}{%- endfor -%}"
        )

    def _parts(self, sample: Sample) -> list[tuple[Segments, bool]]:
        """Prompt, answer, prompt, answer … as (segments, is an answer); each part becomes tokens by itself."""
        opening: Segments = [(self.before, True)]
        if sample.system is not None:
            assert self.own_system is not None
            head, tail = self.own_system
            opening = [(head, True), (self._trimmed(sample.system), False), (tail, True)]
        parts: list[tuple[Segments, bool]] = []
        for question, answer in sample.turns:
            parts.append(([*opening, (self._trimmed(question), False), (self.between, True)], False))
            parts.append(([(self._trimmed(answer), False), (self.after, True)], True))
            opening = [(self.again or "", True)]
        return parts

    def _trimmed(self, text: str) -> str:
        return text.strip() if self.trims else text

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.special_tokens)) or r"(?!)")

    def special_token_in(self, text: str) -> str | None:
        found = self._special_pattern.search(text)
        return found[0] if found else None

    def _looks_special(self, segments: Segments) -> bool:
        return any(self.special_token_in(text) for text, is_control in segments if not is_control)

    def _encode(self, segments: Segments) -> list[int]:
        """Encodes segments; joined, so that words may merge across, where no text looks special."""
        if not self._looks_special(segments):
            return self.tokenizer.encode("".join(text for text, _ in segments), add_special_tokens=False).ids
        tokens = []
        for text, is_control in segments:
            self.tokenizer.encode_special_tokens = not is_control
            tokens += self.tokenizer.encode(text, add_special_tokens=False).ids
        self.tokenizer.encode_special_tokens = False
        return tokens


def load_prompt_format(
    model_path: Path, prompt_template: str | None, system_prompt: str | None, *, has_text: bool = True
) -> PromptFormat:  # fmt: skip
    """Reads the tokenizer of a local model folder and settles the prompt format.

    With `has_text=False` the data are tokens already, and a tokenizer without chat template, that of a base model, will do.

    Raises:
        InputError: no tokenizer, no chat template, or a template that cannot train a proper end of answer.
    """
    file = model_path / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception for a missing as well as for a broken file
        raise InputError(t("{file}: cannot read the tokenizer: {error}", file=file, error=error)) from None
    settings = _tokenizer_settings(model_path)
    special = tuple(token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special)
    begin, end = _token_text(settings.get("bos_token")), _token_text(settings.get("eos_token"))
    end_token_ids = _end_token_ids(model_path, tokenizer, settings)
    if prompt_template is None and not has_text and not has_chat_template(model_path):
        parts = _template_parts("{input}{output}", None, begin, end)
    elif prompt_template is None:
        parts = _chat_parts(model_path, system_prompt)
    else:
        parts = _template_parts(prompt_template, system_prompt, begin, end)
    _check_control_text(tokenizer, parts.before, parts.after, begin, end_token_ids)
    digest = hashlib.sha256(file.read_bytes())
    digest.update(json.dumps(parts).encode())
    return PromptFormat(
        tokenizer, special, *parts, prompt_template is not None, tuple(sorted(end_token_ids)), digest.hexdigest()[:16]
    )


def has_chat_template(model_path: Path) -> bool:
    return bool(read_chat_template(model_path, _tokenizer_settings(model_path)))


class TemplateParts(NamedTuple):
    """The control text of a template; as in PromptFormat."""

    before: str
    between: str
    after: str
    again: str | None
    own_system: tuple[str, str] | None
    trims: bool


def check_against_chat_template(
    prompt_format: PromptFormat, model_path: Path, system_prompt: str | None, samples: list[Sample]
) -> None:
    """Renders the first samples with transformers itself and compares: a template may depend on its content.

    Raises:
        InputError: the chat template writes a sample differently from its pattern.
    """
    from transformers import AutoTokenizer  # takes seconds, and is not needed to start with tokens that have been checked

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model_path))
    except Exception as error:  # transformers raises what it and its file formats' libraries have
        raise InputError(t("{path}: transformers cannot read the tokenizer: {error}", path=model_path, error=error)) from None

    def render(messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        return str(tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, date_string=DATE_STRING
        ))  # fmt: skip

    for sample in samples[:CHECKED_SAMPLES]:
        if prompt_format.problem_of(sample) is not None:
            continue
        prompt, whole = _texts(render, sample, system_prompt)
        if prompt_format.prompt_text(sample) != prompt or not whole.startswith(prompt):
            raise InputError(
                t("the tokenizer's chat template depends on the text itself (line {line}); give --prompt_template",
                  line=sample.line)
            )  # fmt: skip


def _texts(render: Renderer, sample: Sample, system_prompt: str | None) -> tuple[str, str]:
    """Prompt and whole of a sample, as transformers renders them."""
    messages = _messages(sample.system or system_prompt, sample.turns)
    return render(messages[:-1], add_generation_prompt=True), render(messages, add_generation_prompt=False)


def _messages(system: str | None, turns: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def _chat_renderer(model_path: Path) -> Renderer:
    """A function from messages to text, as transformers renders them."""
    settings = _tokenizer_settings(model_path)
    try:
        text = read_chat_template(model_path, settings)
        if not text:
            raise InputError(
                t("{path}: the tokenizer has no chat template (a base model?); use an -Instruct model, or give "
                  "--prompt_template, for example '{example}'", path=model_path, example=r"問題：{input}\n回答：{output}")
            )  # fmt: skip
        tokens = {name: token for name in TOKEN_NAMES if (token := _token_text(settings.get(name)))}
        template = ChatTemplate(text, tokens)
    except (jinja2.TemplateError, OSError, UnicodeDecodeError) as error:
        raise _unusable(model_path, error) from None

    def render(messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        try:
            return template.render(messages, add_generation_prompt=add_generation_prompt)
        except jinja2.TemplateError as error:
            raise _unusable(model_path, error) from None

    return render


def _unusable(model_path: Path, error: Exception) -> InputError:
    return InputError(
        t(
            "{path}: the chat template cannot be used ({error}); mend it, or give --prompt_template",
            path=model_path,
            error=error,
        )
    )


def _chat_parts(model_path: Path, system_prompt: str | None) -> TemplateParts:
    render = _chat_renderer(model_path)
    turn = (f" {INPUT_MARK} ", f" {OUTPUT_MARK} ")
    messages = _messages(system_prompt, [turn])
    prompt = render(messages[:-1], add_generation_prompt=True)
    whole = render(messages, add_generation_prompt=False)
    trims = f" {INPUT_MARK}" not in prompt
    question, answer = (INPUT_MARK, OUTPUT_MARK) if trims else turn
    if prompt.count(question) != 1 or not whole.startswith(prompt) or not whole[len(prompt) :].startswith(answer):
        raise InputError(
            t(
                "{path}: the chat template does not put the answer right after the prompt; give --prompt_template",
                path=model_path,
            )
        )
    before, between = prompt.split(question)
    after = whole[len(prompt) + len(answer) :]
    two_turns = render(_messages(system_prompt, [turn, turn]), add_generation_prompt=False)
    again = two_turns.removeprefix(whole).partition(question)[0]
    repeats = two_turns == whole + again + question + between + answer + after
    return TemplateParts(before, between, after, again if repeats else None, _system_parts(render, turn, trims, between), trims)


def _system_parts(render: Renderer, turn: tuple[str, str], trims: bool, between: str) -> tuple[str, str] | None:
    """What stands before a sample's own system message, and between it and the question; None: it has no place."""
    try:
        prompt = render(_messages(f" {SYSTEM_MARK} ", [turn])[:-1], add_generation_prompt=True)
    except InputError:  # some templates refuse a system message
        return None
    system, question = (SYSTEM_MARK, INPUT_MARK) if trims else (f" {SYSTEM_MARK} ", turn[0])
    if prompt.count(system) != 1 or prompt.count(question) != 1 or not prompt.endswith(question + between):
        return None
    head, _, rest = prompt.partition(system)
    return head, rest.removesuffix(question + between)


def _template_parts(template: str, system_prompt: str | None, begin: str, end: str) -> TemplateParts:
    if system_prompt:
        raise InputError(t("--system_prompt has no effect with --prompt_template; write it into the template"))
    # A shell passes \n as two characters. Only these two escapes: unicode_escape would garble Chinese.
    template = template.replace(r"\n", "\n").replace(r"\t", "\t")
    if (
        template.count("{input}") != 1
        or template.count("{output}") != 1
        or template.index("{input}") > template.index("{output}")
    ):
        raise InputError(
            t("--prompt_template {template!r}: must contain {{input}} once and, after it, {{output}} once", template=template)
        )
    before, _, rest = template.partition("{input}")
    between, _, after = rest.partition("{output}")
    again = before.removeprefix(begin)
    after = after if after.startswith(end) else after + end
    return TemplateParts(begin + again, between, after, again, None, trims=False)


def _end_token_ids(model_path: Path, tokenizer: Tokenizer, settings: dict[str, Any]) -> set[int]:
    found = _read_json(model_path / "generation_config.json").get("eos_token_id", [])
    ids = set(found if isinstance(found, list) else [found])
    own = tokenizer.token_to_id(_token_text(settings.get("eos_token")))
    return ids | ({own} if own is not None else set())


def _check_control_text(tokenizer: Tokenizer, before: str, after: str, begin: str, end_token_ids: set[int]) -> None:
    begin_id = tokenizer.token_to_id(begin)
    head = tokenizer.encode(before, add_special_tokens=False).ids
    tail = tokenizer.encode(after, add_special_tokens=False).ids
    if begin_id is not None and (head[:1] != [begin_id] or head.count(begin_id) != 1):
        raise InputError(
            t("the prompt must begin with exactly one {token}; it begins with {text!r}", token=begin, text=before[:60])
        )
    if not set(tail) & end_token_ids:
        raise InputError(
            t("answers would end with {text!r}, which holds no end token, so the model would never learn to stop", text=after)
        )


def _token_text(value: str | dict[str, Any] | None) -> str:
    """tokenizer_config.json holds a special token as text or as {"content": text, …}."""
    return (value.get("content", "") if isinstance(value, dict) else value) or ""


def _tokenizer_settings(model_path: Path) -> dict[str, Any]:
    """tokenizer_config.json; older models name their special tokens in a file of its own."""
    settings = _read_json(model_path / "tokenizer_config.json")
    return settings if "added_tokens_decoder" in settings else settings | _read_json(model_path / "special_tokens_map.json")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise InputError(t("{file}: not valid JSON: {error}", file=path, error=error)) from None
