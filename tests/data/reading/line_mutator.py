"""Lines of data that somebody has damaged: valid records of every format, changed at random."""

import json
import random
from collections.abc import Iterator
from typing import Any

NESTED: list[Any] = []
for _ in range(400):
    NESTED = [NESTED]
TURNS = [{"role": "user", "content": "一加一？"}, {"role": "assistant", "content": "二。"}]
RECORDS: list[dict[str, Any]] = [
    {"input": "問題", "output": "答案"},
    {"instruction": "譯", "input": "貓", "output": "cat", "history": []},
    {"prompt": "a", "completion": "b", "label": "b", "weight": 1},
    {"messages": TURNS, "tools": None, "id": 7},
    {"messages": [{"role": "system", "content": "s"}, *TURNS, TURNS[0], {**TURNS[1], "tool_calls": [], "weight": 1}]},
    {
        "messages": [
            TURNS[0],
            {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "二"}]},
            {**TURNS[1], "weight": 0},
            TURNS[0],
            TURNS[1],
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    },
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 1}], "tools": "[]"},
    {"text": "一段文字", "source": "web"},
    {"instruction": "i", "output": "o", "history": [["q", "a"], ["r", "b"]]},
    {"input": "<|eot_id|> ### Instruction: 软件", "output": "\ufffd", "system": "s", "source": "web"},
]
NAMES = (
    "input",
    "output",
    "messages",
    "role",
    "content",
    "instruction",
    "prompt",
    "completion",
    "system",
    "weight",
    "tools",
    "\ud800",
    "",
    "x" * 300,
    "\x1b[31m",
    "loss",
    "name",
    "label",
    "history",
    "text",
    "conversations",
    "from",
    "value",
    "tool_calls",
    "function",
    "arguments",
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    " ",
    "text",
    "\ud83d",
    "\udc00\ud800",
    "\u2028\x85",
    "\x00\x1b",
    "user",
    "assistant",
    "system",
    "tool",
    "human",
    "function_call",
    "[2]",
    [],
    {},
    [[]],
    {"": None},
    TURNS,
    [TURNS],
    NESTED,
    "<|begin_of_text|>",
    "長" * 400,
    10**40,
    10**400,
)
PIECES = (
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b",",
    b":",
    b"\\",
    b"\\ud800",
    b"\\u0000",
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xa4\xa4",
    b"\r",
    b"\xe2\x80\xa8",
    b"\xc2\x85",
    b"\x1c",
    b"NaN",
    b"-Infinity",
    b"9" * 5000,
    b"[" * 3000,
    b'{"a":' * 1500,
    b"null",
    b" ",
)


def mutated_lines(seed: int, count: int) -> Iterator[bytes]:
    """Lines without their ends; the same for the same seed."""
    chance = random.Random(seed)
    for _ in range(count):
        record: Any = chance.choice(RECORDS)
        for _ in range(chance.randrange(4)):
            record = _changed(record, chance)
        line = json.dumps(record, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
        for _ in range(chance.choice((0, 0, 0, 0, 1, 1, 2, 5))):
            line = _damaged(line, chance)
        yield line.replace(b"\n", b"")


def _changed(value: Any, chance: random.Random) -> Any:
    """The value with one thing in it exchanged, added or left out."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        name = chance.choice(list(value))
        choice = chance.randrange(4)
        if choice == 0:
            return {key: entry for key, entry in value.items() if key != name}
        if choice == 1:
            return {**value, chance.choice(NAMES): chance.choice(VALUES)}
        return {**value, name: _changed(value[name], chance)}
    if isinstance(value, list) and 0 < len(value) < 50 and chance.random() < 0.8:
        index = chance.randrange(len(value))
        return [*value[:index], _changed(value[index], chance), *value[index + 1 :]]
    return chance.choice(VALUES)


def _damaged(line: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(line) + 1)
    end = min(len(line), place + chance.randrange(8))
    choice = chance.randrange(4)
    if choice == 0:
        return line[:place] + chance.choice(PIECES) + line[place:]
    if choice == 1:
        return line[:place] + line[end:]
    if choice == 2:
        return line[:place] + bytes([chance.randrange(256)]) + line[end:]
    return line[:end] + line[place:]
