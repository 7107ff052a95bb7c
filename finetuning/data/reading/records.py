"""The shapes a record may have, and the one sample they all become.

`{"input", "output"}` · Alpaca `{"instruction", "input", "output"}` · `{"prompt", "completion"}`, each with earlier turns as
`history` · OpenAI's `{"messages": [{"role", "content"}, …]}` and ShareGPT's `{"conversations": [{"from", "value"}, …]}` with
several turns and tools · `{"text"}` without a question. A record's shape is told by its keys, so a file may mix them. What
else a record may hold is for `fields`, what a message may, for `messages`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from finetuning.data.reading import fields
from finetuning.data.reading.columns import Columns, rename
from finetuning.data.reading.findings import Problem, excerpt
from finetuning.data.reading.json_line import read_json_line, short_json
from finetuning.data.reading.messages import Chat, read_chat, text_of
from finetuning.data.reading.sharegpt import as_messages
from finetuning.i18n import t

INPUT_OUTPUT, ALPACA, PROMPT_COMPLETION, MESSAGES = "input/output", "Alpaca", "prompt/completion", "messages"
SHAREGPT, TEXT = "ShareGPT", "text"
KEYS_SHOWN = 10  # in a message
# The keys that are read of each format.
USED = {
    INPUT_OUTPUT: ("input", "output", "system", "history"),
    ALPACA: ("instruction", "input", "output", "system", "history"),
    PROMPT_COMPLETION: ("prompt", "completion", "system", "history"),
    MESSAGES: ("messages", "system", "tools", "functions", "parallel_tool_calls"),
    SHAREGPT: ("messages", "conversations", "system", "tools", "functions", "parallel_tool_calls"),
    TEXT: ("text",),
}
# What must be there; of a question and its answer, in this order.
REQUIRED = {
    INPUT_OUTPUT: ("input", "output"),
    ALPACA: ("instruction", "output"),
    PROMPT_COMPLETION: ("prompt", "completion"),
    MESSAGES: ("messages",),
    SHAREGPT: ("conversations",),
    TEXT: ("text",),
}


@dataclass(frozen=True)
class Sample:
    """A question and its answer, and what was said before; or a text that is trained from its first token on."""

    line: int  # of its file, from 1
    input: str  # the last question; of a text, nothing
    output: str  # the last answer, or the text
    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()  # earlier questions and answers
    weights: tuple[float, ...] = ()  # of each answer in the loss; none: 1 each
    messages: tuple[dict[str, Any], ...] = ()  # all of the conversation, where it is more than a system message and turns
    tools: tuple[dict[str, Any], ...] = ()  # that it may call
    is_text: bool = False

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        assert not self.messages and not self.is_text
        return (*self.history, (self.input, self.output))

    @property
    def answer_weights(self) -> tuple[float, ...]:
        """How much each answer is trained, in order."""
        if self.weights:
            return self.weights
        answers = sum(message["role"] == "assistant" for message in self.messages)
        return (1.0,) * (answers if self.messages else len(self.history) + 1)

    def texts(self) -> Iterator[str]:
        """Every text of the sample, in order; the last one is, or belongs to, the last answer. What tools are is none."""
        if self.system is not None:
            yield self.system
        if self.is_text:
            yield self.output
        elif not self.messages:
            for turn in self.turns:
                yield from turn
        for message in self.messages:
            yield from (message[name] for name in fields.OF_THOUGHT_READ if name in message)
            if message.get("content") is not None:
                yield text_of(message["content"])
            for call in message.get("tool_calls", ()):
                yield json.dumps(call["function"], ensure_ascii=False)


def parse_line(
    raw: bytes, line: int, *, needs_answer: bool = True, columns: Columns = ()
) -> tuple[Sample | None, str, list[Problem]]:
    """The sample of a JSON line (None: it cannot be used), the name of its format, and what was found.

    Without `needs_answer` a question alone will do, which is to be answered; its sample has an empty output.
    """
    value, problems, has_value = read_json_line(raw)
    if not has_value:
        return None, "", problems
    sample, name, found_in_record = parse_record(value, line, needs_answer=needs_answer, columns=columns)
    return sample, name, problems + found_in_record


def parse_record(
    value: Any, line: int, *, needs_answer: bool = True, columns: Columns = ()
) -> tuple[Sample | None, str, list[Problem]]:
    """The same as `parse_line`, for a value that has been read already."""
    if not isinstance(value, dict):
        return None, "", [Problem("not_an_object", {}, short_json(value))]
    if columns:
        renamed = rename(value, columns)
        if isinstance(renamed, Problem):
            return None, "", [renamed]
        value = renamed
    name = _format_of(value)
    used = USED[name]
    if name == SHAREGPT:
        converted = as_messages(value)
        if isinstance(converted, Problem):
            return None, name, [converted]
        value = converted
    if problems := fields.unsupported(value, used):
        return None, name, problems
    outcome = _read(value, name, line, needs_answer)
    if isinstance(outcome, Problem):
        return None, name, [outcome]
    try:
        for text in outcome.texts():
            text.encode("utf-8")
        if outcome.messages:
            json.dumps([outcome.messages, outcome.tools], ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return None, name, [Problem("lone_surrogate", {}, excerpt(outcome.input))]
    if problem := fields.of_other_formats(value, used, outcome.texts()):
        return None, name, [problem]
    return outcome, name, fields.unknown(value, used)


def _format_of(value: dict[str, Any]) -> str:
    # Tables have every column in every row.
    filled = {key for key in fields.OF_FORMATS if not fields.is_absent(value.get(key))}
    there = filled or value.keys()
    if "messages" in there:
        return MESSAGES
    if "conversations" in there:
        return SHAREGPT
    if "instruction" in there:
        return ALPACA
    if "prompt" in there or "completion" in there:
        return PROMPT_COMPLETION
    has_text = not fields.is_absent(value.get("text")) or not value.keys() & {"input", "output"}
    return TEXT if not filled and "text" in value and has_text else INPUT_OUTPUT


def _read(value: dict[str, Any], name: str, line: int, needs_answer: bool) -> Sample | Problem:
    if name in (MESSAGES, SHAREGPT):
        return _from_messages(value, line, needs_answer)
    if name == ALPACA:
        return _from_alpaca(value, line, needs_answer)
    if name == TEXT:
        return _from_text(value, line, needs_answer)
    question, answer = REQUIRED[name]
    return _from_pair(value, question, answer, line, needs_answer)


def _from_text(value: dict[str, Any], line: int, needs_answer: bool) -> Sample | Problem:
    problem = _wrong_text(value, "text")
    if problem is None and not needs_answer:
        problem = Problem("no_question", {}, excerpt(value["text"]))
    if problem is None and not value["text"].strip():
        problem = Problem("empty_answer", {"name": "text"})
    return problem or Sample(line, "", value["text"], is_text=True)


def _from_pair(value: dict[str, Any], question: str, answer: str, line: int, needs_answer: bool) -> Sample | Problem:
    problem = _wrong_text(value, question)  # first, as the message lists the fields that are there
    value = _with_answer(value, answer, needs_answer)
    problem = problem or _wrong_text(value, answer) or _wrong_system(value)
    problem = problem or _empty(value, question, answer, needs_answer)
    if problem is not None:
        return problem
    history = _history(value)
    if isinstance(history, Problem):
        return history
    return Sample(line, value[question], value[answer], _system_of(value), history)


def _from_alpaca(value: dict[str, Any], line: int, needs_answer: bool) -> Sample | Problem:
    problem = _wrong_text(value, "instruction")  # first, as the message lists the fields that are there
    value = _with_answer(value, "output", needs_answer)
    problem = problem or _wrong_text(value, "output")
    if value.get("input") is None:
        value = {**value, "input": ""}
    problem = (
        problem or _wrong_text(value, "input") or _wrong_system(value) or _empty(value, "instruction", "output", needs_answer)
    )
    if problem is not None:
        return problem
    history = _history(value)
    if isinstance(history, Problem):
        return history
    question = value["instruction"] + ("\n\n" + value["input"] if value["input"].strip() else "")
    return Sample(line, question, value["output"], _system_of(value), history)


def _history(value: dict[str, Any]) -> tuple[tuple[str, str], ...] | Problem:
    """Earlier questions and answers of a record of one turn."""
    found = value.get("history")
    if fields.is_absent(found):
        return ()
    turns: list[Any] = found if isinstance(found, list) else [None]
    for turn in turns:
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            return Problem("wrong_type", {"name": "history", "value": short_json(found), "wanted": "history"})
        if not turn[1].strip():
            return Problem("empty_answer", {"name": "history"}, excerpt(turn[0]))
    return tuple((question, answer) for question, answer in turns)


def _from_messages(value: dict[str, Any], line: int, needs_answer: bool) -> Sample | Problem:
    chat = read_chat(value, needs_answer=needs_answer)
    if isinstance(chat, Problem):
        return chat
    if problem := _wrong_system(value):
        return problem
    first = chat.messages[0]
    own = first["content"] if first["role"] == "system" and first["content"].strip() else None
    beside = _system_of(value)
    if own is not None and beside is not None and beside.strip() != own.strip():
        return Problem("two_systems", {}, excerpt(beside))
    system = own if own is not None else beside
    spoken = chat.messages[first["role"] == "system" :]
    weights = () if all(weight == 1 for weight in chat.weights) else chat.weights
    if chat.is_plain:
        texts = [message["content"] for message in spoken]
        *history, (question, answer) = zip(texts[::2], texts[1::2], strict=True)
        return Sample(line, question, answer, system, tuple(history), weights)
    if system is not None:
        spoken = (first if own is not None else {"role": "system", "content": system}, *spoken)
    return _conversation(line, Chat(spoken, weights, chat.tools))


def _conversation(line: int, chat: Chat) -> Sample:
    contents = {message["role"]: text_of(message.get("content") or "") for message in chat.messages}
    *_, last = chat.messages
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in last.get("tool_calls", ())]
    output = "\n".join([*filter(None, [contents["assistant"]]), *calls])
    return Sample(line, contents.get("user", ""), output, weights=chat.weights, messages=chat.messages, tools=chat.tools)


def _with_answer(value: dict[str, Any], answer: str, needs_answer: bool) -> dict[str, Any]:
    return value if needs_answer or value.get(answer) is not None else {**value, answer: ""}


def _system_of(value: dict[str, Any]) -> str | None:
    system = value.get("system")
    return system if system and system.strip() else None


def _wrong_system(value: dict[str, Any]) -> Problem | None:
    return None if value.get("system") is None else _wrong_text(value, "system")


def _wrong_text(value: dict[str, Any], name: str) -> Problem | None:
    if name not in value:
        found = ", ".join(repr(excerpt(key)) for key in list(value)[:KEYS_SHOWN]) + (", …" if len(value) > KEYS_SHOWN else "")
        return Problem("missing_field", {"name": name, "found": found or t("nothing")}, short_json(value))
    if not isinstance(value[name], str):
        return Problem("wrong_type", {"name": name, "value": short_json(value[name])})
    return None


def _empty(value: dict[str, Any], question: str, answer: str, needs_answer: bool) -> Problem | None:
    if needs_answer and not value[answer].strip():
        return Problem("empty_answer", {"name": answer}, excerpt(value[question]))
    if not needs_answer and not value[question].strip() and not value[answer].strip():
        return Problem("empty_question", {"name": question}, short_json(value))
    return None
