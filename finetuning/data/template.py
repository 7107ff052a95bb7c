"""From a question and its answer to tokens: the tokenizer's chat template, or a template of the user's.

A sample becomes prompt tokens followed by answer tokens; only the answer, with the token that ends it, is trained.
Special tokens come from the template alone: text such as `<|eot_id|>` inside a question or an answer is encoded as
ordinary characters. There is exactly one begin-of-text token, and the prompt of a training sample is, token for token,
the prompt that is used when an answer is generated.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from finetuning.data.jsonl import Sample
from finetuning.errors import InputError
from finetuning.i18n import t

# Rendered in place of the real texts to find what the template puts around them; private-use characters, so that no
# template contains them. The spaces tell whether the template trims.
INPUT_MARK, OUTPUT_MARK = "\ue000input\ue001", "\ue000output\ue001"
CHECKED_SAMPLES = 16
DATE_STRING = "26 Jul 2024"  # the date of Llama 3.1's own template


@dataclass(frozen=True)
class PromptFormat:
    """What surrounds question and answer, and how text becomes tokens."""

    tokenizer: Tokenizer
    special_tokens: tuple[str, ...]
    before: str  # control text before the question, begin-of-text included
    between: str
    after: str  # control text after the answer; starts with the end token
    trims: bool  # the chat template strips white space around both texts
    is_custom: bool  # from --prompt_template, not the tokenizer's own
    end_token_ids: tuple[int, ...]
    fingerprint: str  # changes with the tokenizer's file, the template and the system prompt

    def prompt_text(self, question: str) -> str:
        return self.before + self._trimmed(question) + self.between

    def encode_prompt(self, question: str) -> list[int]:
        """Tokens of everything before the answer."""
        return self._encode([(self.before, True), (self._trimmed(question), False), (self.between, True)])

    def encode(self, question: str, answer: str) -> tuple[list[int], int]:
        """Tokens of the whole sample, and how many of them are prompt."""
        prompt = self.encode_prompt(question)
        return prompt + self._encode([(self._trimmed(answer), False), (self.after, True)]), len(prompt)

    def decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def chat_template(self) -> str | None:
        """Jinja chat template that writes the same prompts, where the tokenizer's own does not (None: it does)."""
        if not self.is_custom:
            return None
        before, between, after = (json.dumps(text, ensure_ascii=False) for text in (self.before, self.between, self.after))
        return (
            "{%- for message in messages -%}"
            "{%- if message['role'] == 'user' -%}{{ " + before + " }}{{ message['content'] }}{{ " + between + " }}"
            "{%- elif message['role'] == 'assistant' -%}{{ message['content'] }}{{ " + after + " }}{%- endif -%}"
            "{%- endfor -%}"
        )

    def _trimmed(self, text: str) -> str:
        return text.strip() if self.trims else text

    def _encode(self, segments: list[tuple[str, bool]]) -> list[int]:
        """Encodes (text, is_control) segments; joined, so that words may merge across, where no text looks special."""
        if not any(token in text for text, is_control in segments if not is_control for token in self.special_tokens):
            return self.tokenizer.encode("".join(text for text, _ in segments), add_special_tokens=False).ids
        tokens = []
        for text, is_control in segments:
            self.tokenizer.encode_special_tokens = not is_control
            tokens += self.tokenizer.encode(text, add_special_tokens=False).ids
        self.tokenizer.encode_special_tokens = False
        return tokens


def load_prompt_format(model_path: Path, prompt_template: str | None, system_prompt: str | None) -> PromptFormat:
    """Reads the tokenizer of a local model folder and settles the prompt format.

    Raises:
        InputError: no tokenizer, no chat template, or a template that cannot train a proper end of answer.
    """
    file = model_path / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception for a missing as well as for a broken file
        raise InputError(t("{file}: cannot read the tokenizer: {error}", file=file, error=error)) from None
    settings = _read_json(model_path / "tokenizer_config.json")
    special = tuple(token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special)
    begin, end = _token_text(settings.get("bos_token")), _token_text(settings.get("eos_token"))
    if prompt_template is None:
        before, between, after, trims = _chat_parts(model_path, system_prompt)
    else:
        before, between, after = _template_parts(prompt_template, system_prompt, begin, end)
        trims = False
    end_token_ids = _end_token_ids(model_path, tokenizer, settings)
    _check_control_text(tokenizer, before, after, begin, end_token_ids)
    digest = hashlib.sha256(file.read_bytes())
    digest.update(json.dumps([before, between, after, trims]).encode())
    return PromptFormat(
        tokenizer, special, before, between, after, trims, prompt_template is not None, tuple(sorted(end_token_ids)),
        digest.hexdigest()[:16],
    )  # fmt: skip


def check_against_chat_template(
    prompt_format: PromptFormat, model_path: Path, system_prompt: str | None, samples: list[Sample]
) -> None:
    """Renders the first samples with transformers itself and compares: a template may depend on its content.

    Raises:
        InputError: the chat template writes a sample differently from its pattern.
    """
    render = _chat_renderer(model_path, system_prompt)
    for sample in samples[:CHECKED_SAMPLES]:
        expected = render(sample.input, sample.output)
        if prompt_format.prompt_text(sample.input) != expected[0] or not expected[1].startswith(expected[0]):
            raise InputError(
                t("the tokenizer's chat template depends on the text itself (line {line}); give --prompt_template",
                  line=sample.line)
            )  # fmt: skip


def _chat_renderer(model_path: Path, system_prompt: str | None) -> Callable[[str, str], tuple[str, str]]:
    """A function from question and answer to (prompt, whole text), as transformers renders them."""
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model_path))
    except Exception as error:  # transformers raises what it and its file formats' libraries have
        raise InputError(t("{path}: transformers cannot read the tokenizer: {error}", path=model_path, error=error)) from None
    if not tokenizer.chat_template:
        raise InputError(
            t("{path}: the tokenizer has no chat template (a base model?); use an -Instruct model, or give "
              "--prompt_template, for example '{example}'", path=model_path, example=r"問題：{input}\n回答：{output}")
        )  # fmt: skip
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []

    def render(messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        # Llama 3.2's template would otherwise write today's date into every sample: another prompt each day.
        try:
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt, date_string=DATE_STRING
            )
        except TemplateError as error:
            raise InputError(
                t("{path}: the chat template cannot be used ({error}); mend it, or give --prompt_template", path=model_path,
                  error=error)
            ) from None  # fmt: skip
        return str(text)

    def render_both(question: str, answer: str) -> tuple[str, str]:
        messages = [*system, {"role": "user", "content": question}]
        whole = [*messages, {"role": "assistant", "content": answer}]
        return render(messages, add_generation_prompt=True), render(whole, add_generation_prompt=False)

    return render_both


def _chat_parts(model_path: Path, system_prompt: str | None) -> tuple[str, str, str, bool]:
    prompt, whole = _chat_renderer(model_path, system_prompt)(f" {INPUT_MARK} ", f" {OUTPUT_MARK} ")
    trims = f" {INPUT_MARK}" not in prompt
    question, answer = (INPUT_MARK, OUTPUT_MARK) if trims else (f" {INPUT_MARK} ", f" {OUTPUT_MARK} ")
    if prompt.count(question) != 1 or not whole.startswith(prompt) or not whole[len(prompt) :].startswith(answer):
        raise InputError(
            t(
                "{path}: the chat template does not put the answer right after the prompt; give --prompt_template",
                path=model_path,
            )
        )
    before, between = prompt.split(question)
    return before, between, whole[len(prompt) + len(answer) :], trims


def _template_parts(template: str, system_prompt: str | None, begin: str, end: str) -> tuple[str, str, str]:
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
    return begin + before.removeprefix(begin), between, after if after.startswith(end) else after + end


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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise InputError(t("{file}: not valid JSON: {error}", file=path, error=error)) from None
