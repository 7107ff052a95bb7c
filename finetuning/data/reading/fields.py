"""Which keys of a record are read, which say nothing, and which would change the sample and are not supported.

Nothing is dropped silently: a key with a meaning that is not supported is an error, one that nobody knows a warning. A key
whose value is null, "", [] or {} counts as absent: tables have every column in every row.
"""

from collections.abc import Iterable
from typing import Any

from finetuning.data.reading.findings import Problem, excerpt
from finetuning.data.reading.json_line import short_json

# What says where a record comes from, and never what is asked or answered.
HARMLESS = frozenset(
    (
        "id",
        "idx",
        "index",
        "uuid",
        "source",
        "dataset",
        "split",
        "category",
        "topic",
        "task",
        "tags",
        "lang",
        "language",
        "license",
        "url",
        "model",
        "created",
        "created_at",
        "date",
        "timestamp",
        "meta",
        "metadata",
        "prompt_id",
        "conversation_id",
        "__index_level_0__",
    )
)
# What would change the prompt, the answer, or how much it is trained.
OF_TOOLS = ("tools", "functions", "tool_choice", "parallel_tool_calls", "tool_calls", "tool_call_id", "function_call")
OF_MEDIA = ("image", "images", "audio", "audios", "video", "videos")
OF_THOUGHT_READ = ("reasoning_content",)
OF_THOUGHT = ("reasoning", "thinking", *OF_THOUGHT_READ)
WEIGHT = "weight"  # may also be a fraction: how much an answer counts in the loss
OF_LOSS = (WEIGHT, "train", "trainable", "loss")  # 1 or true: trained, 0 or false: not
OF_PREFERENCE = ("chosen", "rejected", "kto_tag")  # and "label", where it is true or false
OTHERS = ("history", "system_prompt", "context", "documents", "chat_template_kwargs", "loss_mask", "mask", "sample_weight")
MEANT_OF_RECORD = frozenset((*OF_TOOLS, *OF_MEDIA, *OF_THOUGHT, *OF_LOSS, *OF_PREFERENCE, *OTHERS))
MEANT_OF_MESSAGE = frozenset((*OF_TOOLS, *OF_MEDIA, *OF_THOUGHT, *OF_LOSS, "name", "refusal", "loss_mask", "mask", "recipient"))
KNOWN_OF_MESSAGE = MEANT_OF_MESSAGE | HARMLESS | {"role", "content", "from", "value"}
# Of the former, what is read, by the role that may say it.
READ_OF_MESSAGE = {
    "assistant": frozenset(("name", "tool_calls", "function_call", *OF_THOUGHT_READ, *OF_LOSS)),
    "tool": frozenset(("name", "tool_call_id")),
    "function": frozenset(("name", "tool_call_id")),
}
READ_OF_OTHERS = frozenset(("name",))
# Keys that make a record one of a format; two formats in one record may ask two things.
OF_FORMATS = ("messages", "conversations", "instruction", "prompt", "completion", "input", "output")
KNOWN_OF_RECORD = MEANT_OF_RECORD | HARMLESS | frozenset(OF_FORMATS)
MAX_TOLD = 5  # fields of one record
MIN_WEIGHT = 1e-6  # of what is trained; less would be lost beside a weight of 1


def unsupported(value: dict[str, Any], used: Iterable[str]) -> list[Problem]:
    """The fields of a record, and of its messages, that would change the sample and are not supported."""
    problems = [_problem(name, value[name]) for name in value if name not in used and _has_meaning(name, value[name])]
    messages = value.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict):
            role = message.get("role")
            read = READ_OF_MESSAGE.get(role, READ_OF_OTHERS) if isinstance(role, str) else READ_OF_OTHERS
            problems += [
                _problem(f"messages[].{name}", message[name])
                for name in message
                if name in MEANT_OF_MESSAGE
                and name not in read
                and not is_absent(message[name])
                and not _is_usual(name, message[name], role == "assistant")
            ]
        if len(problems) >= MAX_TOLD:
            break
    return problems[:MAX_TOLD]


def weight_of(message: dict[str, Any], where: str = "") -> float | Problem:
    """How much an answer is trained, by whatever key says so; 1 where none does."""
    given = {name: message[name] for name in OF_LOSS if not is_absent(message.get(name))}
    for name, value in given.items():
        is_fraction = name == WEIGHT and _is_number(value) and MIN_WEIGHT <= value <= 1
        if not (_is_number(value) and value in (0, 1)) and not is_fraction:
            return Problem("wrong_weight", {"name": where + name, "value": short_json(value)})
    if len({float(value) for value in given.values()}) > 1:
        return Problem("several_weights", {"names": ", ".join(repr(where + name) for name in given)}, short_json(given))
    return float(next(iter(given.values()), 1))


def of_other_formats(value: dict[str, Any], used: Iterable[str], texts: Iterable[str]) -> Problem | None:
    """Keys of another format, unless they only say again what is one of the sample's `texts`."""
    known = {text.strip() for text in texts}
    others = [
        name
        for name in OF_FORMATS
        if name in value
        and name not in used
        and not is_absent(value[name])
        and not (isinstance(value[name], str) and value[name].strip() in known)
    ]
    if not others:
        return None
    return Problem("several_formats", {"names": ", ".join(map(repr, others))}, short_json(value[others[0]]))


def unknown(value: dict[str, Any], used: Iterable[str]) -> list[Problem]:
    """A problem for each key that nobody knows, in the record and in its messages."""
    found = {
        excerpt(name): None for name in value if name not in KNOWN_OF_RECORD and name not in used and not is_absent(value[name])
    }
    messages = value.get("messages")
    for message in messages if isinstance(messages, list) else ():
        for name in message:
            if name not in KNOWN_OF_MESSAGE and not is_absent(message[name]):
                found[excerpt(f"messages[].{name}")] = None
    return [Problem("unknown_field", {"name": name, "count": 1}) for name in found]


def is_absent(value: Any) -> bool:
    return value is None or (isinstance(value, (str, list, dict)) and not value)


def _has_meaning(name: str, value: Any) -> bool:
    if name == "label":
        return isinstance(value, bool)
    return name in MEANT_OF_RECORD and not is_absent(value) and not _is_usual(name, value, is_answer=True)


def _is_usual(name: str, value: Any, is_answer: bool) -> bool:
    """What is done anyway: answers are trained and everything else is not."""
    return name in OF_LOSS and _is_number(value) and value == int(is_answer)


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float))


def _problem(name: str, value: Any) -> Problem:
    return Problem("unsupported_field", {"name": name, "value": short_json(value)})
