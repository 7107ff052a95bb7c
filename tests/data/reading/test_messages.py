"""OpenAI's chat format and ShareGPT become the same conversations, and what is wrong with one is told."""

import json
from typing import Any

import pytest

from finetuning.data.reading.finding_words import describe
from finetuning.data.reading.records import Sample, parse_record

pytestmark = pytest.mark.unit

QUESTION, ANSWER = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
TOOL = {"name": "add", "description": "adds", "parameters": {"type": "object"}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
CONVERSATION = (
    QUESTION,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "4"},
    ANSWER,
)
WHOLE = Sample(1, "2+2?", "4", messages=CONVERSATION, tools=({"type": "function", "function": TOOL},))


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def messages(*turns: dict[str, Any], **fields: object) -> dict[str, Any]:
    return {"messages": list(turns), **fields}


def read(record: dict[str, Any]) -> Sample:
    sample, _, problems = parse_record(record, 1)
    assert sample is not None and not problems, problems
    return sample


@pytest.mark.parametrize(
    "record",
    [
        messages(*CONVERSATION, tools=list(WHOLE.tools)),
        messages(*CONVERSATION, tools=json.dumps([TOOL])),
        messages(*CONVERSATION, functions=[TOOL], parallel_tool_calls=True),
        messages(
            QUESTION,
            {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 2, "b": 2}'}},
            {"role": "function", "content": "4"},
            ANSWER,
            functions=[TOOL],
        ),
        {
            "conversations": [
                {"from": "human", "value": "2+2?"},
                {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2, "b": 2}}'},
                {"from": "observation", "value": "4"},
                {"from": "gpt", "value": "4"},
            ],
            "tools": json.dumps([TOOL]),
            "system": "",
        },
    ],
)
def test_every_way_to_write_a_call_is_the_same_conversation(record: dict[str, Any]) -> None:
    assert read(record) == WHOLE


def test_turns_without_more_are_read_as_a_question_and_its_answer() -> None:
    expected = Sample(1, "2+2?", "4", "Be brief.", (("1+1?", "2"),))
    first = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2", "weight": 1}]
    system = {"role": "system", "content": "Be brief."}
    in_parts = {"role": "user", "content": [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]}
    assert read(messages(system, *first, in_parts, ANSWER)) == expected
    conversations = [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}, QUESTION, ANSWER]
    assert read({"conversations": conversations, "system": "Be brief."}) == expected
    for pair in (
        {"input": "2+2?", "output": "4"},
        {"instruction": "2+2?", "output": "4"},
        {"prompt": "2+2?", "completion": "4"},
    ):
        assert read({**pair, "system": "Be brief.", "history": [["1+1?", "2"]]}) == expected


def test_weights_are_kept_for_each_answer() -> None:
    earlier = {"role": "assistant", "content": "?", "weight": 0}
    assert read(messages(QUESTION, earlier, QUESTION, {**ANSWER, "train": True, "loss": 1})).weights == (0.0, 1.0)
    sharegpt = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 0}, {"from": "gpt", "value": "c"}]
    assert read({"conversations": sharegpt}).weights == (0.0, 1.0)
    assert read(messages(QUESTION, {**ANSWER, "weight": 1.0})).weights == ()


def test_a_text_alone_is_a_sample_and_beside_other_fields_is_none() -> None:
    assert read({"text": "一段文字", "input": None}) == Sample(1, "", "一段文字", is_text=True)
    sample, name, (problem,) = parse_record({"input": "a", "output": "b", "text": "a b"}, 1)
    assert (sample, name, problem.code) == (Sample(1, "a", "b"), "input/output", "unknown_field")


def test_a_conversation_that_is_to_be_answered_ends_with_its_prompt() -> None:
    asked, _, problems = parse_record(messages(*CONVERSATION[:3], tools=[TOOL]), 1, needs_answer=False)
    assert asked is not None and not problems
    assert asked.messages[-1] == {"role": "assistant", "content": ""} and asked.output == ""


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (messages(QUESTION, ANSWER, {"role": "critic", "content": "no"}), "the role 'critic' is unknown; use system,"),
        ({"conversations": [{"from": "alien", "value": "a"}]}, "the role 'alien' is unknown; use system, human"),
        ({"conversations": [{"from": 3, "value": "a"}]}, "field 'from' must be text, but is 3"),
        ({"conversations": [{"from": "human"}]}, "field 'value' is missing; found 'from'"),
        ({"conversations": ["a"]}, "field 'conversations' must be a list of objects, one for each message"),
        (
            messages(QUESTION, ANSWER, QUESTION),
            "must hold a question and end with the assistant's answer; found user, assistant,",
        ),
        (messages(ANSWER), "must hold a question and end with the assistant's answer; found assistant"),
        (messages(QUESTION, {**ANSWER, "weight": 0}), "no answer of it is trained: each has the weight 0"),
        (
            messages(QUESTION, {**ANSWER, "weight": 1.5}),
            "field 'messages[].weight' is 1.5; an answer is trained (1) or not (0); only 'weight' may be between",
        ),
        (messages(QUESTION, {**ANSWER, "loss": "no"}), "field 'messages[].loss' is \"no\"; an answer is trained (1)"),
        (
            messages(QUESTION, {**ANSWER, "weight": 1, "train": False}),
            "'messages[].weight', 'messages[].train' do not agree on whether the answer is trained",
        ),
        (
            messages(
                QUESTION,
                {"role": "assistant", "tool_calls": [{**CALL, "id": "x"}]},
                {"role": "tool", "tool_call_id": "y", "content": "4"},
                ANSWER,
            ),
            "the result of a call 'y' that no message before it makes",
        ),
        (
            messages(QUESTION, {"role": "assistant", "tool_calls": [{"id": "1"}]}),
            "field 'tool_calls' must hold calls, each a function",
        ),
        (messages(QUESTION, {"role": "assistant", "tool_calls": "add"}), "field 'tool_calls' must hold calls, each a function"),
        (
            messages(QUESTION, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{2"}}]}),
            "field 'arguments' of a call must be an object, or the JSON text of one, but is \"{2\"",
        ),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "f()"}]}, "must hold calls"),
        (
            messages(QUESTION, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": nested(99)}}]}),
            "field 'arguments' is nested more than 64 levels deep: {\"a\":",
        ),
        (messages(QUESTION, ANSWER, tools=[{**TOOL, "parameters": nested(99)}]), "field 'tools' is nested more than 64 levels"),
        (messages(QUESTION, {"role": "tool", "content": nested(99)}, ANSWER), "field 'content' is nested more than 64 levels"),
        (
            messages(QUESTION, ANSWER, tools="f"),
            "field 'tools' must be a list of functions, each with its 'name', but has \"f\"",
        ),
        (messages(QUESTION, ANSWER, tools=[{"type": "function"}]), "field 'tools' must be a list of functions"),
        (
            messages(QUESTION, {"role": "assistant", "content": [3]}),
            "must be text, or a list of parts of the type 'text', but has 3",
        ),
        (
            messages({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, ANSWER),
            "field 'messages[].content[].image_url' would change the sample and is not supported",
        ),
        (messages(QUESTION, {"role": "assistant", "content": None}), "field 'content' must be text, but is null"),
        (messages(QUESTION, {"role": "assistant", "content": " "}), "the answer ('assistant') is empty"),
        (messages({**QUESTION, "name": 3}, ANSWER), "field 'name' must be text, but is 3"),
        ({"input": "a", "output": "b", "history": [["q"]]}, 'must be a list of pairs of question and answer, but is [["q"]]'),
        ({"input": "a", "output": "b", "history": "q"}, 'must be a list of pairs of question and answer, but is "q"'),
        ({"input": "a", "output": "b", "history": [["q", " "]]}, "the answer ('history') is empty"),
        ({"text": 3}, "field 'text' must be text, but is 3"),
        ({"text": " "}, "the answer ('text') is empty"),
        (
            messages(QUESTION, {**CONVERSATION[1], "tool_calls": [{"function": {"name": "f\ud800"}}]}, ANSWER),
            "half a character",
        ),
    ],
)
def test_what_is_wrong_with_a_conversation_is_told(record: dict[str, Any], message: str) -> None:
    sample, _, (problem,) = parse_record(record, 1)
    assert sample is None
    assert message in describe(problem.code, problem.values)


def test_a_text_has_no_question_to_be_answered() -> None:
    sample, _, (problem,) = parse_record({"text": "a"}, 1, needs_answer=False)
    assert sample is None and describe(problem.code, problem.values) == "a text has no question that could be answered"
