"""Documents that somebody has damaged: valid JSON values, changed at random, in half of the cases their bytes as well."""

import copy
import json
import random
from typing import Any

NESTED: list[Any] = []
for _ in range(400):
    NESTED = [NESTED]
VALUES = (
    None,
    True,
    0,
    -1,
    3,
    2.5,
    float("nan"),
    float("-inf"),
    10**400,
    2**63,
    "",
    "x",
    "../x",
    "/",
    "\ud800",
    "\x1b[31m",
    "\0",
    [],
    {},
    [[]],
    {"": None},
    ["x"],
    "2026-01-01",
    "9" * 5000,
    NESTED,
)
PIECES = (
    b"{",
    b"}",
    b"[",
    b'"',
    b",",
    b":",
    b"\\ud800",
    b"\\",
    b"\x00",
    b"\xff",
    b"NaN",
    b"9" * 5000,
    b"[" * 3000,
    b'{"a":' * 1500,
)


def mutated(value: Any, generator: random.Random) -> str:
    """JSON with some values exchanged, left out or put in, or cut anywhere."""
    found = _changed(value, generator)
    text = json.dumps(found)
    return text[: generator.randrange(len(text))] if generator.random() < 0.1 else text


def mutated_bytes(value: Any, generator: random.Random) -> bytes:
    """The same with damaged bytes."""
    found = _changed(value, generator)
    content = json.dumps(found, ensure_ascii=generator.random() < 0.5).encode("utf-8", "surrogatepass")
    for _ in range(generator.choice((0, 0, 1, 2))):
        place = generator.randrange(len(content) + 1)
        kind = generator.randrange(3)
        if kind == 0:
            content = content[:place] + generator.choice(PIECES) + content[place:]
        elif kind == 1:
            content = content[:place] + content[place + generator.randint(1, 8) :]
        else:
            content = content[:place] + bytes([generator.randrange(256)]) + content[place + 1 :]
    return content


def _changed(value: Any, generator: random.Random) -> Any:
    found = copy.deepcopy(value)
    for _ in range(generator.randint(1, 3)):
        place, key = found, _key(found, generator)
        while isinstance(place[key], dict | list) and place[key] and generator.random() < 0.6:
            place = place[key]
            key = _key(place, generator)
        if generator.random() < 0.2 and len(place) > 1:
            del place[key]
        else:
            place[key] = copy.deepcopy(generator.choice(VALUES))
    return found


def _key(place: Any, generator: random.Random) -> Any:
    return generator.choice(list(place)) if isinstance(place, dict) else generator.randrange(len(place))
