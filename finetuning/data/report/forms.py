"""A sample as a record of a form that others read, and that is read here as the same sample again."""

import json
from collections.abc import Callable
from typing import Any

from finetuning.data.reading.messages import text_of
from finetuning.data.reading.records import Sample

SHAREGPT_ROLES = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


def as_shortest(sample: Sample) -> dict[str, Any]:
    """`{"input", "output"}` or `{"text"}`; messages where there is more than that."""
    if sample.is_text:
        return {"text": sample.output}
    if sample.messages or sample.system is not None or sample.history or sample.weights:
        return _with_tools({"messages": _messages(sample)}, sample)
    return {"input": sample.input, "output": sample.output}


def as_input_output(sample: Sample) -> dict[str, Any] | None:
    """None: it is more than a question and its answer."""
    if sample.is_text or sample.messages or sample.history or sample.weights:
        return None
    return ({"system": sample.system} if sample.system is not None else {}) | {"input": sample.input, "output": sample.output}


def as_openai(sample: Sample) -> dict[str, Any] | None:
    """Arguments are JSON text there, and every call has an id, which its result repeats. None: a text has no messages."""
    if sample.is_text:
        return None
    messages, unanswered, made = [], [], 0
    for message in _messages(sample):
        calls = []
        for call in message.get("tool_calls", ()):
            made += 1
            call = {"id": f"call_{made}", **call}
            unanswered.append(call["id"])
            arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
            calls.append({**call, "function": {**call["function"], "arguments": arguments}})
        if calls:
            message = {"role": message["role"], "content": message.get("content"), **message, "tool_calls": calls}
        if message["role"] == "tool":
            answered = message.get("tool_call_id") or (unanswered[0] if unanswered else None)
            unanswered = [number for number in unanswered if number != answered]
            beside = {"tool_call_id": answered} if answered is not None else {}
            message = {**message, "content": text_of(message["content"]), **beside}
        messages.append(message)
    return _with_tools({"messages": messages}, sample)


def as_sharegpt(sample: Sample) -> dict[str, Any] | None:
    """None: there is a text, a developer, or an answer that says something and calls a tool at once."""
    if sample.is_text:
        return None
    turns = []
    for message in _messages(sample):
        calls = message.get("tool_calls")
        if message["role"] not in SHAREGPT_ROLES or (calls and message.get("content")):
            return None
        turn = {"from": SHAREGPT_ROLES[message["role"]], "value": text_of(message.get("content") or "")}
        if calls:
            flat = [{name: call[name] for name in ("id",) if name in call} | call["function"] for call in calls]
            value = json.dumps(flat[0] if len(flat) == 1 else flat, ensure_ascii=False)
            turn = {"from": "function_call", "value": value}
        beside = ("role", "content", "tool_calls")
        turns.append(turn | {name: value for name, value in message.items() if name not in beside})
    record = _with_tools({"conversations": turns}, sample)
    if sample.tools:
        record["tools"] = json.dumps(record["tools"], ensure_ascii=False)  # as the sets have it that are on the hub
    return record


FORMS: dict[str, Callable[[Sample], dict[str, Any] | None]] = {
    "jsonl": as_shortest,
    "openai": as_openai,
    "sharegpt": as_sharegpt,
    "input_output": as_input_output,
}


def _messages(sample: Sample) -> list[dict[str, Any]]:
    """All messages, with the weight of each answer where they are not all the same."""
    messages = [dict(message) for message in sample.messages]
    if not sample.messages:
        messages = [{"role": "system", "content": sample.system}] if sample.system is not None else []
        for question, answer in sample.turns:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if sample.weights:
        answers = (message for message in messages if message["role"] == "assistant")
        for message, weight in zip(answers, sample.weights, strict=True):
            message["weight"] = weight if 0 < weight < 1 else int(weight)
    return messages


def _with_tools(record: dict[str, Any], sample: Sample) -> dict[str, Any]:
    return record | ({"tools": list(sample.tools)} if sample.tools else {})
