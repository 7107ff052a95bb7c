"""Chat messages as OpenAI's fine-tuning takes them, checked, and as transformers hands them to a template.

In: a record's `messages`, `tools` and the older `functions`. Out: a `Chat`. Arguments of a call, a JSON text at OpenAI, become
the object that templates write; a list of text parts becomes one text; the older `function_call` becomes a call like any other.
What a message says beyond that is for `fields`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finetuning.data.reading import fields
from finetuning.data.reading.findings import Problem, excerpt
from finetuning.data.reading.json_line import short_json
from finetuning.i18n import t

ROLES = ("system", "developer", "user", "assistant", "tool")
OLDER_ROLES = {"function": "tool"}
ROLES_SHOWN = 6
MAX_DEPTH = 64  # of tools, arguments and results: whatever reads them later calls itself at each level
NAMES = ("name", "tool_call_id")  # texts that a template may write beside the content


@dataclass(frozen=True)
class Chat:
    """A conversation that ends with an answer."""

    messages: tuple[dict[str, Any], ...]
    weights: tuple[float, ...]  # of each answer in the loss
    tools: tuple[dict[str, Any], ...]

    @property
    def is_plain(self) -> bool:
        """Whether it is an optional system message and texts of user and assistant in turns, and nothing else."""
        roles = [message["role"] for message in self.messages]
        spoken = roles[roles[:1] == ["system"] :]
        only_texts = all(message.keys() == {"role", "content"} for message in self.messages)
        return only_texts and not self.tools and spoken == ["user", "assistant"] * (len(spoken) // 2)


def read_messages(
    value: dict[str, Any], name: str, read: Callable[[dict[str, Any]], dict[str, Any] | Problem]
) -> list[dict[str, Any]] | Problem:
    """What `read` makes of each object in the list of this name, or the first problem."""
    found = value[name]
    if not isinstance(found, list) or not all(isinstance(message, dict) for message in found):
        return Problem("wrong_type", {"name": name, "value": short_json(found), "wanted": "messages"})
    messages = []
    for message in found:
        one = read(message)
        if isinstance(one, Problem):
            return one
        messages.append(one)
    return messages


def read_chat(value: dict[str, Any], *, needs_answer: bool = True) -> Chat | Problem:
    """The conversation of a record; without `needs_answer`, one that is to be answered gets an empty last answer."""
    found, messages = value["messages"], read_messages(value, "messages", _message)
    if isinstance(messages, Problem):
        return messages
    roles = [message["role"] for message in messages]
    if not needs_answer and roles and roles[-1] in ("user", "tool"):
        found = [*found, {"role": "assistant"}]
        messages.append({"role": "assistant", "content": ""})
    elif roles[-1:] != ["assistant"] or {message["role"] for message in messages if not _is_blank_system(message)} == {
        "assistant"
    }:
        last_roles = ([""] if len(roles) > ROLES_SHOWN else []) + roles[-ROLES_SHOWN:]
        return Problem("wrong_turns", {"found": ", ".join(role or "…" for role in last_roles) or t("nothing")})
    problem = _empty(messages, needs_answer) or _unknown_call(messages)
    if problem is not None:
        return problem
    tools = _tools(value)
    if isinstance(tools, Problem):
        return tools
    weights = [fields.weight_of(message, "messages[].") for message in found if message["role"] == "assistant"]
    for weight in weights:
        if isinstance(weight, Problem):
            return weight
    numbers = tuple(weight for weight in weights if not isinstance(weight, Problem))
    if needs_answer and not any(numbers):
        return Problem("nothing_trained", {}, _shown(messages))
    return Chat(tuple(messages), numbers, tools)


def _message(found: dict[str, Any]) -> dict[str, Any] | Problem:
    """One message, its keys in the order of transformers' documentation; without those that hold nothing."""
    role = found.get("role")
    if not isinstance(role, str):
        code = "wrong_type" if "role" in found else "missing_field"
        values = {"name": "role", "value": short_json(role), "found": ", ".join(map(repr, map(excerpt, found)))}
        return Problem(code, values, short_json(found))
    role = OLDER_ROLES.get(role, role)
    if role not in ROLES:
        return Problem("wrong_role", {"role": excerpt(role), "roles": ", ".join(ROLES)}, short_json(found))
    message: dict[str, Any] = {"role": role}
    calls = _calls(found) if role == "assistant" else ()
    if isinstance(calls, Problem):
        return calls
    if not (calls and found.get("content") is None):
        content = _content(found, is_result=role == "tool")
        if isinstance(content, Problem):
            return content
        message["content"] = content
    elif "content" in found:
        message["content"] = None
    for name in (*NAMES, *(fields.OF_THOUGHT_READ if role == "assistant" else ())):
        if not fields.is_absent(found.get(name)):
            if not isinstance(found[name], str):
                return Problem("wrong_type", {"name": name, "value": short_json(found[name])})
            message[name] = found[name]
    if calls:
        message["tool_calls"] = list(calls)
    return message


def _content(found: dict[str, Any], *, is_result: bool) -> Any:
    """The text of a message, or what a tool gave back; or the problem with it."""
    if "content" not in found:
        names = ", ".join(map(repr, map(excerpt, found)))
        return Problem("missing_field", {"name": "content", "found": names}, short_json(found))
    content = found["content"]
    if isinstance(content, str):
        return content
    if is_result and isinstance(content, dict):
        return _too_deep("content", content) or content
    if not isinstance(content, list) or not content:
        return Problem("wrong_type", {"name": "content", "value": short_json(content)})
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind != "text":
            return Problem("unsupported_field", {"name": f"messages[].content[].{excerpt(kind)}", "value": short_json(part)})
        if kind is None or not isinstance(part.get("text"), str):
            return Problem("wrong_type", {"name": "content", "value": short_json(part), "wanted": "parts"})
        texts.append(part["text"])
    return "".join(texts)


def _calls(found: dict[str, Any]) -> tuple[dict[str, Any], ...] | Problem:
    """The tool calls of an answer."""
    calls = found.get("tool_calls")
    if fields.is_absent(calls):
        calls = [found["function_call"]] if not fields.is_absent(found.get("function_call")) else []
    if not isinstance(calls, list):
        return Problem("wrong_type", {"name": "tool_calls", "value": short_json(calls), "wanted": "calls"})
    read = [_call(call) for call in calls]
    problem = next((call for call in read if isinstance(call, Problem)), None)
    return problem or tuple(call for call in read if not isinstance(call, Problem))


def _call(call: Any) -> dict[str, Any] | Problem:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        return Problem("wrong_type", {"name": "tool_calls", "value": short_json(call), "wanted": "calls"})
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _parsed(arguments) if arguments.strip() else {}
    if not isinstance(arguments, dict):
        values = {"name": "arguments", "value": short_json(function["arguments"]), "wanted": "arguments"}
        return Problem("wrong_type", values)
    if problem := _too_deep("arguments", arguments):
        return problem
    number = call.get("id")
    if number is not None and not isinstance(number, str):
        return Problem("wrong_type", {"name": "id", "value": short_json(number)})
    beside = {} if number is None else {"id": number}
    return {**beside, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _tools(value: dict[str, Any]) -> tuple[dict[str, Any], ...] | Problem:
    """The tools of a record, each as `{"type": "function", "function": …}`; data sets keep them as JSON text, too."""
    name = "functions" if fields.is_absent(value.get("tools")) else "tools"
    tools = value.get(name)
    if fields.is_absent(tools):
        return ()
    if isinstance(tools, str):
        tools = _parsed(tools) if tools.strip() else []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) and tool for tool in tools):
        return Problem("wrong_type", {"name": name, "value": short_json(value[name]), "wanted": "tools"})
    if problem := _too_deep(name, tools):
        return problem
    wrapped = tuple(
        tool if "function" in tool or "name" not in tool else {"type": "function", "function": tool} for tool in tools
    )
    for tool in wrapped:
        function = tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return Problem("wrong_type", {"name": name, "value": short_json(tool), "wanted": "tools"})
    return wrapped


def _too_deep(name: str, value: Any) -> Problem | None:
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = (entry for entry in level if isinstance(entry, (dict, list)))
        level = [part for entry in inner for part in (entry.values() if isinstance(entry, dict) else entry)]
        if not level:
            return None
    return Problem("wrong_type", {"name": name, "value": short_json(value), "wanted": "depth", "limit": MAX_DEPTH})


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _empty(messages: list[dict[str, Any]], needs_answer: bool) -> Problem | None:
    """An answer without anything in it; the last one may be, where it is still to be given."""
    for place, message in enumerate(messages):
        is_last = place == len(messages) - 1
        if message["role"] == "assistant" and "tool_calls" not in message and not message["content"].strip():
            if needs_answer or not is_last:
                return Problem("empty_answer", {"name": "assistant"}, _shown(messages[:place]))
            if not any(has_something(each) for each in messages):
                return Problem("empty_question", {"name": "user"}, short_json(messages))
    return None


def _unknown_call(messages: list[dict[str, Any]]) -> Problem | None:
    """A result of a call that no message before it makes; where calls have no ids, they cannot be compared."""
    made: set[str] = set()
    for message in messages:
        made |= {call["id"] for call in message.get("tool_calls", ()) if "id" in call}
        answered = message.get("tool_call_id")
        if message["role"] == "tool" and answered is not None and made and answered not in made:
            return Problem("unknown_call", {"id": excerpt(answered)}, _shown([message]))
    return None


def _is_blank_system(message: dict[str, Any]) -> bool:
    """One that says nothing, and is left out."""
    return message["role"] == "system" and not has_something(message)


def has_something(message: dict[str, Any]) -> bool:
    """Whether a message says anything."""
    return bool(text_of(message["content"]).strip()) if message.get("content") is not None else "tool_calls" in message


def text_of(content: Any) -> str:
    """A content as text: what a tool gave back may be an object."""
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _shown(messages: list[dict[str, Any]]) -> str:
    texts = (text_of(message["content"]) for message in reversed(messages) if message.get("content"))
    return excerpt(next(texts, ""))
