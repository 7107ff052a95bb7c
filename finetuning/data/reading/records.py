"""The shapes a record may have, and the one sample they all become.

`{"input", "output"}` · Alpaca `{"instruction", "input", "output"}` · `{"prompt", "completion"}` ·
`{"messages": [{"role", "content"}, …]}` with several turns; each may have a `system` message. A record's shape is told by its
keys, so a file may mix them. What else a record may hold is for `fields`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from finetuning.data.reading import fields
from finetuning.data.reading.findings import Problem, excerpt
from finetuning.data.reading.json_line import read_json_line, short_json
from finetuning.i18n import t

INPUT_OUTPUT, ALPACA, PROMPT_COMPLETION, MESSAGES = "input/output", "Alpaca", "prompt/completion", "messages"
ROLES_SHOWN, KEYS_SHOWN = 6, 10  # in a message


@dataclass(frozen=True)
class Sample:
    """A question and its answer, and what was said before; every answer is trained."""

    line: int  # of its file, from 1
    input: str
    output: str
    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()  # earlier questions and answers

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        return (*self.history, (self.input, self.output))

    def texts(self) -> Iterator[str]:
        """Every text of the sample, in order."""
        if self.system is not None:
            yield self.system
        for turn in self.turns:
            yield from turn


def parse_line(raw: bytes, line: int, *, needs_answer: bool = True) -> tuple[Sample | None, str, list[Problem]]:
    """The sample of a JSON line (None: it cannot be used), the name of its format, and what was found.

    Without `needs_answer` a question alone will do, which is to be answered; its sample has an empty output.
    """
    value, problems, has_value = read_json_line(raw)
    if not has_value:
        return None, "", problems
    sample, name, found_in_record = parse_record(value, line, needs_answer=needs_answer)
    return sample, name, problems + found_in_record


def parse_record(value: Any, line: int, *, needs_answer: bool = True) -> tuple[Sample | None, str, list[Problem]]:
    """The same as `parse_line`, for a value that has been read already."""
    if not isinstance(value, dict):
        return None, "", [Problem("not_an_object", {}, short_json(value))]
    name, used = _format_of(value)
    if problems := fields.unsupported(value, used):
        return None, name, problems
    read = {MESSAGES: _from_messages, ALPACA: _from_alpaca}.get(name)
    outcome = read(value, line, needs_answer) if read else _from_pair(value, used[0], used[1], line, needs_answer)
    if isinstance(outcome, Problem):
        return None, name, [outcome]
    try:
        for text in outcome.texts():
            text.encode("utf-8")
    except UnicodeEncodeError:
        return None, name, [Problem("lone_surrogate", {}, excerpt(outcome.input))]
    if problem := fields.of_other_formats(value, used, outcome.texts()):
        return None, name, [problem]
    return outcome, name, fields.unknown(value, used)


def _format_of(value: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The format of a record, and the keys that are read of it."""
    # Tables have every column in every row.
    there = {key for key in fields.OF_FORMATS if not fields.is_absent(value.get(key))} or value.keys()
    if "messages" in there:
        return MESSAGES, ("messages", "system")
    if "instruction" in there:
        return ALPACA, ("instruction", "input", "output", "system")
    if "prompt" in there or "completion" in there:
        return PROMPT_COMPLETION, ("prompt", "completion", "system")
    return INPUT_OUTPUT, ("input", "output", "system")


def _from_pair(value: dict[str, Any], question: str, answer: str, line: int, needs_answer: bool) -> Sample | Problem:
    problem = _wrong_text(value, question)  # first, as the message lists the fields that are there
    value = _with_answer(value, answer, needs_answer)
    problem = problem or _wrong_text(value, answer) or _wrong_system(value)
    problem = problem or _empty(value, question, answer, needs_answer)
    return problem or Sample(line, value[question], value[answer], _system_of(value))


def _from_alpaca(value: dict[str, Any], line: int, needs_answer: bool) -> Sample | Problem:
    problem = _wrong_text(value, "instruction")  # first, as the message lists the fields that are there
    value = _with_answer(value, "output", needs_answer)
    problem = problem or _wrong_text(value, "output")
    if value.get("input") is None:
        value = {**value, "input": ""}
    problem = (
        problem or _wrong_text(value, "input") or _wrong_system(value) or _empty(value, "instruction", "output", needs_answer)
    )
    if problem:
        return problem
    question = value["instruction"] + ("\n\n" + value["input"] if value["input"].strip() else "")
    return Sample(line, question, value["output"], _system_of(value))


def _from_messages(value: dict[str, Any], line: int, needs_answer: bool) -> Sample | Problem:
    messages = value["messages"]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return Problem("wrong_type", {"name": "messages", "value": short_json(messages)})
    for message in messages:
        problem = _wrong_text(message, "role") or _wrong_text(message, "content")
        if problem:
            return problem
    if not needs_answer and messages and messages[-1]["role"] == "user":
        messages = [*messages, {"role": "assistant", "content": ""}]
    roles = [message["role"] for message in messages]
    has_system = roles[:1] == ["system"]
    spoken = messages[has_system:]
    if not spoken or roles[has_system:] != ["user", "assistant"] * (len(spoken) // 2):
        found = ", ".join(map(excerpt, roles[:ROLES_SHOWN])) + (", …" if len(roles) > ROLES_SHOWN else "")
        return Problem("wrong_turns", {"found": found or t("nothing")})
    turns = [(spoken[i]["content"], spoken[i + 1]["content"]) for i in range(0, len(spoken), 2)]
    for question, answer in turns[:-1]:
        if not answer.strip():
            return Problem("empty_answer", {"name": "assistant"}, excerpt(question))
    last = {"user": turns[-1][0], "assistant": turns[-1][1]}
    if problem := _wrong_system(value) or _empty(last, "user", "assistant", needs_answer):
        return problem
    system = messages[0]["content"] if has_system and messages[0]["content"].strip() else None
    beside = _system_of(value)
    if system is not None and beside is not None and beside.strip() != system.strip():
        return Problem("two_systems", {}, excerpt(beside))
    return Sample(line, *turns[-1], system if system is not None else beside, tuple(turns[:-1]))


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
