"""A conversation that is more than questions and answers in turns, as the chat template itself writes it.

Tools, calls and their results, several messages in a row and other roles have no fixed surroundings that could be found once
(`template_parts`), so here the template runs on each sample. An answer is what the whole has after the prompt that the template
writes when that answer is asked for, up to the first end token.

Example, ChatML, one call: `<|im_start|>user\\nq<|im_end|>\\n<|im_start|>assistant\\n` · **call**`<|im_end|>` ·
`\\n<|im_start|>tool\\n4<|im_end|>\\n<|im_start|>assistant\\n` · **answer**`<|im_end|>`; each becomes tokens by itself.
"""

import json
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import msgspec

from finetuning.data.prompts.chat_template import ChatTemplate, TemplateFault
from finetuning.data.prompts.template_parts import Difference, cut_at_end, from_difference, shown
from finetuning.data.prompts.tokenizer import Segments

# Around the number of a text that looks like a special token, or is one of these marks: it is put in again as plain text when
# all is written.
OPEN, CLOSE = "\ue002", "\ue003"
HIDDEN = re.compile(f"{OPEN}(\\d+){CLOSE}")
SYSTEM_ROLES = ("system", "developer")
DEVELOPER = "developer"

Pieces = list[tuple[Segments, bool]]  # segments, and whether they are trained


class Conversation(msgspec.Struct):
    """What is written of a sample."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    trained: list[bool]  # each answer, in order


def write_conversation(
    template: ChatTemplate, conversation: Conversation, system_prompt: str | None, ends: Iterable[str], special: re.Pattern[str]
) -> Pieces | Difference:
    """The sample in pieces, up to the end of its last answer; or where the template does not keep what it must."""
    hidden: list[str] = []

    def hide(found: re.Match[str]) -> str:
        hidden.append(found[0])
        return f"{OPEN}{len(hidden) - 1}{CLOSE}"

    messages, tools = _for_template(conversation.messages, template, system_prompt), conversation.tools
    pattern = _hidden_pattern(special.pattern)
    if pattern.search(json.dumps([messages, tools], ensure_ascii=False)):
        messages, tools = _each_text(messages, pattern, hide), _each_text(tools, pattern, hide)
    try:
        written = _written(template, messages, tools, conversation.trained, tuple(ends))
    except TemplateFault as error:
        return Difference("error", shown(str(error)), "")
    if isinstance(written, Difference):
        return written
    pieces = [(_segments(text, hidden), is_trained) for text, is_trained in written]
    put_in = sum(not is_control for segments, _ in pieces for _, is_control in segments)
    if put_in < len(hidden):
        return Difference("not_written", hidden[0], "")
    return pieces


def _written(
    template: ChatTemplate,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]],
    trained: list[bool],
    ends: tuple[str, ...],
) -> list[tuple[str, bool]] | Difference:
    is_open = not messages[-1].get("content") and "tool_calls" not in messages[-1]  # it is still to be answered
    whole = template.render(messages[:-1] if is_open else messages, tools, add_generation_prompt=is_open)
    answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    pieces: list[tuple[str, bool]] = []
    start = 0
    for place, is_trained in zip(answers, trained, strict=True):
        is_last = place == answers[-1]
        if not is_trained and not is_last:
            continue
        prompt = template.render(messages[:place], tools, add_generation_prompt=True)
        if not whole.startswith(prompt) or len(prompt) < start:
            return Difference("prompt", *from_difference(prompt, whole))
        through = whole if is_last else template.render(messages[: place + 1], tools, add_generation_prompt=False)
        answer, _ = cut_at_end(through[len(prompt) :], ends)
        if not through.startswith(prompt) or not whole.startswith(answer, len(prompt)):
            return Difference("answer", *from_difference(through, whole))
        if is_trained and (name := _missing_of_answer(messages[place], answer)):
            return Difference("not_written", name, "")
        pieces += [(whole[start : len(prompt)], False), (answer, is_trained)]
        start = len(prompt) + len(answer)
    name = _missing(messages, tools, whole)
    if tools and name is None:  # the name of one may be a letter, and in the text by chance
        without = template.render(messages[:-1] if is_open else messages, add_generation_prompt=is_open)
        name = "tools" if without == whole else None
    return Difference("not_written", name, "") if name else pieces


def _for_template(messages: list[dict[str, Any]], template: ChatTemplate, system_prompt: str | None) -> list[dict[str, Any]]:
    """The messages with the run's system message, where they have none of their own.

    `developer` is OpenAI's newer name of `system`; few templates know it, and others would write a role that no model has seen.
    """
    if system_prompt and messages[0]["role"] not in SYSTEM_ROLES:
        messages = [{"role": "system", "content": system_prompt}, *messages]
    if DEVELOPER in template.text:
        return messages
    return [{**message, "role": "system"} if message["role"] == DEVELOPER else message for message in messages]


def _missing_of_answer(message: dict[str, Any], answer: str) -> str | None:
    """The name of what an answer says and the template leaves out."""
    for name in ("content", "reasoning_content"):
        if not _is_in(message.get(name) or "", answer):
            return name
    return next(("tool_calls" for call in message.get("tool_calls", ()) if not _is_in(call["function"]["name"], answer)), None)


def _missing(messages: list[dict[str, Any]], tools: list[dict[str, Any]], whole: str) -> str | None:
    """The same of all that stands before an answer. Thoughts of earlier answers may go: templates write them once."""
    for message in messages:
        content = message.get("content")
        if isinstance(content, str) and not _is_in(content, whole):
            return "content"
    names = [call["function"]["name"] for message in messages for call in message.get("tool_calls", ())]
    if not all(_is_in(name, whole) for name in names):
        return "tool_calls"
    return "tools" if not all(_is_in(tool["function"]["name"], whole) for tool in tools) else None


def _is_in(text: str, written: str) -> bool:
    """Whether a text is written: as it is, without white space around it, or as a text of JSON."""
    text = text.strip()
    return text in written or json.dumps(text, ensure_ascii=False)[1:-1] in written


@lru_cache(maxsize=4)
def _hidden_pattern(special: str) -> re.Pattern[str]:
    return re.compile(f"{special}|[{OPEN}{CLOSE}]")


def _segments(text: str, hidden: list[str]) -> Segments:
    parts = HIDDEN.split(text)  # text, number, text, number, … text
    return [(hidden[int(part)], False) if place % 2 else (part, True) for place, part in enumerate(parts) if place % 2 or part]


def _each_text(value: Any, pattern: re.Pattern[str], change: Callable[[re.Match[str]], str]) -> Any:
    if isinstance(value, str):
        return pattern.sub(change, value)
    if isinstance(value, list):
        return [_each_text(entry, pattern, change) for entry in value]
    if isinstance(value, dict):
        return {pattern.sub(change, name): _each_text(entry, pattern, change) for name, entry in value.items()}
    return value
