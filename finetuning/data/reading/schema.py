"""The records that are read, as JSON Schema (2020-12): made from the tables by which they are read.

What a schema cannot say stays with `finetune data check`: that calls and results belong together, what a chat template writes,
lengths, duplicates.
"""

from typing import Any

from finetuning.data.reading import fields, messages, sharegpt
from finetuning.data.reading.records import ALPACA, INPUT_OUTPUT, MESSAGES, PROMPT_COMPLETION, REQUIRED, SHAREGPT, TEXT, USED

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ABSENT: list[Any] = [None, "", [], {}]  # the same as a field that is not there
JSON_TEXT = {"type": "string"}  # of a list
ANSWER = {"type": "string", "pattern": r"\S"}
NAMED = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
FUNCTION = {"type": "object", "required": ["function"], "properties": {"function": NAMED}}
PARTS = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["type", "text"],
        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    },
}
TITLES = {
    INPUT_OUTPUT: "a question and its answer",
    ALPACA: "Alpaca: an instruction, and its input",
    PROMPT_COMPLETION: "a prompt and its completion",
    MESSAGES: "a conversation in OpenAI's format",
    SHAREGPT: "a conversation in ShareGPT's format",
    TEXT: "a text for continued pre-training",
}


def record_schema() -> dict[str, Any]:
    """The schema of a line."""
    return {
        "$schema": DIALECT,
        "title": "a record of training data",
        "anyOf": [{"$ref": f"#/$defs/{name.replace('/', '~1')}"} for name in USED],  # a pointer's own way to write it
        "$defs": {
            **{name: _record(name) for name in USED},
            "message": {"anyOf": [_message(role) for role in (*messages.ROLES, *messages.OLDER_ROLES)]},
            "turn": {"anyOf": [*(_turn(name) for name in sharegpt.ROLES), {"$ref": "#/$defs/message"}]},
        },
    }


def _record(name: str) -> dict[str, Any]:
    required = REQUIRED[name]
    text = {"type": "string"}
    kinds: dict[str, dict[str, Any]] = {
        "system": text,
        "history": {"type": "array", "items": {"type": "array", "prefixItems": [text, ANSWER], "minItems": 2, "maxItems": 2}},
        "tools": {"anyOf": [{"type": "array", "items": {"anyOf": [FUNCTION, NAMED]}}, JSON_TEXT]},
        "functions": {"anyOf": [{"type": "array", "items": {"anyOf": [FUNCTION, NAMED]}}, JSON_TEXT]},
        "parallel_tool_calls": {},
        required[-1]: ANSWER,  # of a pair, and a text
        "messages": {"type": "array", "items": {"$ref": "#/$defs/message"}, "minItems": 2},
        "conversations": {"type": "array", "items": {"$ref": "#/$defs/turn"}, "minItems": 2},
    }
    read = {field: kinds.get(field, text) for field in USED[name] if field != "messages" or name == MESSAGES}
    properties = {field: kind if field in required else _or_absent(kind) for field, kind in read.items()}
    return {
        "title": TITLES[name],
        "type": "object",
        "required": list(required),
        "properties": properties | _refused(fields.MEANT_OF_RECORD - read.keys(), done=[1, True]),
    }


def _message(role: str) -> dict[str, Any]:
    """A message as OpenAI writes it."""
    read = fields.READ_OF_MESSAGE.get(role, fields.READ_OF_OTHERS)
    content: dict[str, Any] = {"anyOf": [{"type": "string"}, PARTS]}
    if messages.OLDER_ROLES.get(role, role) == "tool":
        content["anyOf"].append({"type": "object"})
    if "tool_calls" in read:
        content["anyOf"].append({"type": "null"})  # beside calls
    return {
        "type": "object",
        "required": ["role"] if "tool_calls" in read else ["role", "content"],
        "properties": {"role": {"const": role}, "content": content} | _beside(read, is_answer=role == "assistant"),
    }


def _turn(name: str) -> dict[str, Any]:
    """The same as ShareGPT writes it."""
    role = sharegpt.ROLES[name]
    read = fields.READ_OF_MESSAGE.get(role, fields.READ_OF_OTHERS)
    value: dict[str, Any] = {"anyOf": [{"type": "string"}, PARTS]}
    if name == sharegpt.CALL:
        value = {"type": ["string", "object", "array"]}
    elif role == "tool":
        value["anyOf"].append({"type": "object"})
    elif "tool_calls" in read:
        value["anyOf"].append({"type": "null"})
    return {
        "type": "object",
        "required": ["from", "value"],
        "properties": {"from": {"const": name}, "value": value} | _beside(read, is_answer=role == "assistant"),
    }


def _beside(read: frozenset[str], *, is_answer: bool) -> dict[str, Any]:
    """What a message may have beside its content."""
    kinds: dict[str, dict[str, Any]] = {
        "tool_calls": {"type": "array", "items": {"anyOf": [FUNCTION, NAMED]}},
        "function_call": NAMED,
        **{name: {"enum": [0, 1, False, True]} for name in fields.OF_LOSS},
        fields.WEIGHT: {"anyOf": [{"type": "number", "minimum": fields.MIN_WEIGHT, "maximum": 1}, {"enum": [0, False, True]}]},
    }
    known = {name: _or_absent(kinds.get(name, {"type": "string"})) for name in read}
    return known | _refused(fields.MEANT_OF_MESSAGE - read, done=[int(is_answer), is_answer])


def _refused(names: frozenset[str], done: list[Any]) -> dict[str, Any]:
    """Fields that may be there only where they say nothing, or what is done anyway."""
    return {name: {"enum": [*ABSENT, *(done if name in fields.OF_LOSS else ())]} for name in sorted(names)}


def _or_absent(kind: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [kind, {"enum": ABSENT}]} if kind else {}
