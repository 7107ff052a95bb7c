"""The shapes a record may have, and the one sample they all become.

`{"input", "output"}` · Alpaca `{"instruction", "input", "output"}` · `{"prompt", "completion"}` ·
`{"messages": [{"role", "content"}, …]}` with several turns. A record's shape is told by its keys, so a file may mix them.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from finetuning.data.reading.findings import Problem, excerpt
from finetuning.i18n import t

INPUT_OUTPUT, ALPACA, PROMPT_COMPLETION, MESSAGES = "input/output", "Alpaca", "prompt/completion", "messages"
ENCODINGS = (("cp950", "Big5"), ("gb18030", "GBK"))


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


def parse_line(raw: bytes, line: int) -> tuple[Sample | None, str, list[Problem]]:
    """The sample of a JSON line (None: it cannot be used), the name of its format, and what was found."""
    problems = []
    if raw.startswith(b"\xef\xbb\xbf"):
        raw = raw[3:]
        problems.append(Problem("byte_order_mark", {}))
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        found: dict[str, str | int] = {"position": error.start + 1, "looks_like": _other_encoding(raw)}
        return None, "", [*problems, Problem("not_utf8", found, excerpt(raw.decode("utf-8", "replace")))]
    _DOUBLED.clear()
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        values: dict[str, str | int] = {"message": error.msg, "column": error.colno}
        return None, "", [*problems, Problem("bad_json", values, excerpt(text))]
    except (RecursionError, ValueError) as error:  # nested too deeply; a number with thousands of digits
        return None, "", [*problems, Problem("bad_json", {"message": str(error), "column": 1}, excerpt(text))]
    problems += [Problem("duplicate_key", {"name": name}, excerpt(text)) for name in _DOUBLED[:1]]
    sample, name, found_in_record = parse_record(value, line)
    return sample, name, problems + found_in_record


def parse_record(value: Any, line: int) -> tuple[Sample | None, str, list[Problem]]:
    """The same as `parse_line`, for a value that has been read already."""
    if not isinstance(value, dict):
        return None, "", [Problem("not_an_object", {}, excerpt(json.dumps(value, ensure_ascii=False)))]
    if "messages" in value:
        name, outcome = MESSAGES, _from_messages(value, line)
    elif "instruction" in value:
        name, outcome = ALPACA, _from_alpaca(value, line)
    elif "prompt" in value or "completion" in value:
        name, outcome = PROMPT_COMPLETION, _from_pair(value, "prompt", "completion", line)
    else:
        name, outcome = INPUT_OUTPUT, _from_pair(value, "input", "output", line)
    if isinstance(outcome, Problem):
        return None, name, [outcome]
    try:
        for text in outcome.texts():
            text.encode("utf-8")
    except UnicodeEncodeError:
        return None, name, [Problem("lone_surrogate", {}, excerpt(outcome.input))]
    return outcome, name, []


def _from_pair(value: dict[str, Any], question: str, answer: str, line: int) -> Sample | Problem:
    problem = _wrong_text(value, question) or _wrong_text(value, answer) or _empty(value[answer], answer, value[question])
    return problem or Sample(line, value[question], value[answer])


def _from_alpaca(value: dict[str, Any], line: int) -> Sample | Problem:
    value = {**value, "input": value.get("input") or ""}
    problem = _wrong_text(value, "instruction") or _wrong_text(value, "input") or _wrong_text(value, "output")
    problem = problem or _empty(value["output"], "output", value["instruction"])
    if problem:
        return problem
    question = value["instruction"] + ("\n\n" + value["input"] if value["input"].strip() else "")
    return Sample(line, question, value["output"])


def _from_messages(value: dict[str, Any], line: int) -> Sample | Problem:
    messages = value["messages"]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return Problem("wrong_type", {"name": "messages", "value": _short_json(messages)})
    for message in messages:
        problem = _wrong_text(message, "role") or _wrong_text(message, "content")
        if problem:
            return problem
    roles = [message["role"] for message in messages]
    has_system = roles[:1] == ["system"]
    spoken = messages[has_system:]
    if not spoken or roles[has_system:] != ["user", "assistant"] * (len(spoken) // 2):
        found = ", ".join(roles[:6]) + (", …" if len(roles) > 6 else "")
        return Problem("wrong_turns", {"found": found or t("nothing")})
    turns = [(spoken[i]["content"], spoken[i + 1]["content"]) for i in range(0, len(spoken), 2)]
    for question, answer in turns:
        if problem := _empty(answer, "assistant", question):
            return problem
    system = messages[0]["content"] if has_system and messages[0]["content"].strip() else None
    return Sample(line, *turns[-1], system, tuple(turns[:-1]))


def _wrong_text(value: dict[str, Any], name: str) -> Problem | None:
    if name not in value:
        found = ", ".join(map(repr, value)) or t("nothing")
        return Problem("missing_field", {"name": name, "found": found}, excerpt(_short_json(value)))
    if not isinstance(value[name], str):
        return Problem("wrong_type", {"name": name, "value": _short_json(value[name])})
    return None


def _empty(answer: str, name: str, question: str) -> Problem | None:
    return None if answer.strip() else Problem("empty_answer", {"name": name}, excerpt(question))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        _DOUBLED.extend(name for name, number in Counter(name for name, _ in pairs).items() if number > 1)
    return value


# One decoder for all lines: making one takes longer than a line. The keys that stood twice in the last line are left here.
_DOUBLED: list[str] = []
_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _other_encoding(raw: bytes) -> str:
    for codec, name in ENCODINGS:
        try:
            raw.decode(codec)
        except UnicodeDecodeError:
            continue
        return name
    return ""


def _short_json(value: Any) -> str:
    return excerpt(json.dumps(value, ensure_ascii=False, default=str))
