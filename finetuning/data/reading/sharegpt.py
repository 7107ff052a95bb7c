"""ShareGPT's `conversations`, turned into chat messages: `{"from": "human", "value": …}` and the like.

A `function_call` holds the call as JSON text, `observation` what it gave back. What the messages must be is for `messages`.
"""

import json
from typing import Any

from finetuning.data.reading.findings import Problem, excerpt
from finetuning.data.reading.json_line import short_json
from finetuning.data.reading.messages import read_messages

ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
CALL = "function_call"
OWN_NAMES = {"from": "role", "value": "content"}


def as_messages(value: dict[str, Any]) -> dict[str, Any] | Problem:
    """The same record with `messages` instead of `conversations`."""
    messages = read_messages(value, "conversations", _message)
    if isinstance(messages, Problem):
        return messages
    return {**{name: value[name] for name in value if name != "conversations"}, "messages": messages}


def _message(turn: dict[str, Any]) -> dict[str, Any] | Problem:
    if "from" not in turn:  # as some sets have them that were written since
        return turn
    name = turn["from"]
    if not isinstance(name, str):
        return Problem("wrong_type", {"name": "from", "value": short_json(name)})
    if name not in ROLES:
        return Problem("wrong_role", {"role": excerpt(name), "roles": ", ".join(ROLES)}, short_json(turn))
    message = {OWN_NAMES.get(key, key): value for key, value in turn.items()} | {"role": ROLES[name]}
    if "value" not in turn:
        found = ", ".join(map(repr, map(excerpt, turn)))
        return Problem("missing_field", {"name": "value", "found": found}, short_json(turn))
    if name != CALL:
        return message
    try:
        calls = json.loads(turn["value"]) if isinstance(turn["value"], str) else turn["value"]
    except (ValueError, RecursionError):
        calls = None
    if not isinstance(calls, (dict, list)) or not calls:
        return Problem("wrong_type", {"name": CALL, "value": short_json(turn["value"]), "wanted": "calls"})
    return {**message, "content": None, "tool_calls": calls if isinstance(calls, list) else [calls]}
