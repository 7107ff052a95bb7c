"""Conversations with tools and in any order: token for token what transformers makes of them, and what of them is trained."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from finetuning.data.prompts.prompt_format import PromptFormat, load_prompt_format
from finetuning.data.reading.finding_words import describe
from finetuning.data.reading.records import Sample, parse_record
from tests.data.prompts.folders import HEADERS, PLAIN, variant
from tests.data.prompts.tool_templates import TEMPLATES, with_tools

pytestmark = pytest.mark.unit

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "天氣 of a city, in °C",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    },
    {"type": "function", "function": {"name": "now", "description": "the time", "parameters": {"type": "object"}}},
]
SYSTEM = {"role": "system", "content": "你是一位助理。"}
QUESTION = {"role": "user", "content": "台北現在幾度？"}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": '{"temperature": 31, "sky": "晴"}'}
ANSWER = {"role": "assistant", "content": "現在 31 度，晴天。"}


def call(name: str = "get_weather", number: str = "c1", **arguments: object) -> dict[str, Any]:
    """A call as OpenAI writes it: its arguments are a JSON text."""
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": number, "type": "function", "function": function}


def calling(*calls: dict[str, Any], **fields: object) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls), **fields}


CALL = calling(call(city="台北"))
SECOND_CALL = calling(call("now", "c2"))
SECOND_RESULT = {"role": "tool", "tool_call_id": "c2", "content": "12:05\n(Taipei)"}
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "one call": {"messages": [QUESTION, CALL, RESULT, ANSWER], "tools": TOOLS, "parallel_tool_calls": False},
    "two calls, one after the other": {
        "messages": [SYSTEM, QUESTION, CALL, RESULT, SECOND_CALL, SECOND_RESULT, ANSWER],
        "tools": TOOLS,
    },
    "ends with a call": {"messages": [SYSTEM, QUESTION, CALL], "tools": TOOLS[:1]},
    "tools that are not called": {"messages": [QUESTION, ANSWER], "tools": TOOLS},
    "calls without a description of tools": {"messages": [QUESTION, CALL, RESULT, ANSWER]},
    "two questions in a row": {"messages": [QUESTION, {"role": "user", "content": "高雄呢？"}, ANSWER]},
    "begins with the assistant": {"messages": [SYSTEM, {"role": "assistant", "content": "請說。"}, QUESTION, ANSWER]},
    "two answers in a row": {"messages": [QUESTION, {"role": "assistant", "content": "請稍候。"}, ANSWER]},
    "a system message in the middle": {"messages": [QUESTION, ANSWER, SYSTEM, QUESTION, ANSWER]},
}


def folders(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("tools")
    return {name: with_tools(name, model_path, parent / name.replace(" ", "")) for name in TEMPLATES}


@pytest.fixture(scope="module")
def formats(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[PromptFormat, Any]]:
    found = {}
    for name, folder in folders(model_path, tmp_path_factory).items():
        prompt_format = load_prompt_format(folder, None, None)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = prompt_format.chat_template() or tokenizer.chat_template  # the date of training
        found[name] = prompt_format, tokenizer
    return found


def sample_of(record: dict[str, Any]) -> Sample:
    sample, _, problems = parse_record(record, 1)
    assert sample is not None and not problems, problems
    return sample


def with_objects(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages as transformers' documentation wants them: arguments are objects."""
    messages = copy.deepcopy(messages)
    for message in messages:
        for each in message.get("tool_calls") or ():
            each["function"]["arguments"] = json.loads(each["function"]["arguments"])
    return messages


def trained_texts(prompt_format: PromptFormat, sample: Sample) -> list[str]:
    """What is trained of a sample, stretch by stretch."""
    tokens, trained = prompt_format.encode(sample)
    texts, stretch = [], []
    for token, is_trained in [*zip(tokens.tolist(), trained, strict=True), (0, False)]:
        if is_trained:
            stretch.append(token)
        elif stretch:
            texts.append(prompt_format.decode(stretch, skip_special_tokens=False))
            stretch = []
    return texts


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_tokens_are_those_of_transformers(formats: dict[str, tuple[PromptFormat, Any]], template: str, name: str) -> None:
    prompt_format, tokenizer = formats[template]
    record = CONVERSATIONS[name]
    sample = sample_of(record)
    assert prompt_format.problem_of(sample) is None and prompt_format.differences([sample]) == [None]
    messages = with_objects(record["messages"])
    options: dict[str, Any] = {"tools": record.get("tools"), "return_dict": False}
    theirs = tokenizer.apply_chat_template(messages, **options)
    ours = prompt_format.encode(sample)[0].tolist()
    assert theirs[: len(ours)] == ours
    assert tokenizer.decode(theirs[len(ours) :]).strip() == "", "nothing is left out but the line feed after the end"
    asked = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, **options)
    assert prompt_format.encode_prompt(sample) == asked
    assert prompt_format.whole_text(sample).startswith(prompt_format.prompt_text(sample))


@pytest.mark.parametrize("template", ["Llama 3.1", "Llama 3.2"])
def test_calls_and_answers_are_trained_and_nothing_else(formats: dict[str, tuple[PromptFormat, Any]], template: str) -> None:
    prompt_format, _ = formats[template]
    sample = sample_of(CONVERSATIONS["two calls, one after the other"])
    assert trained_texts(prompt_format, sample) == [
        '{"name": "get_weather", "parameters": {"city": "台北"}}<|eot_id|>',
        '{"name": "now", "parameters": {}}<|eot_id|>',
        "現在 31 度，晴天。<|eot_id|>",
    ]


def test_several_calls_at_once_are_written_where_the_template_can(formats: dict[str, tuple[PromptFormat, Any]]) -> None:
    record = {
        "messages": [QUESTION, calling(call(city="台北"), call("now", "c2"), content="我查。"), RESULT, SECOND_RESULT, ANSWER],
        "tools": TOOLS,
    }
    sample = sample_of(record)
    prompt_format, tokenizer = formats["ChatML"]
    theirs = tokenizer.apply_chat_template(with_objects(record["messages"]), tools=TOOLS, return_dict=False)
    ours = prompt_format.encode(sample)[0].tolist()
    assert theirs[: len(ours)] == ours
    called, answered = trained_texts(prompt_format, sample)
    assert called == (
        '我查。\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "台北"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call><|im_end|>'
    )
    assert answered == "現在 31 度，晴天。<|im_end|>"
    for template in ("Llama 3.1", "Llama 3.2"):
        (problem,) = formats[template][0].differences([sample])
        assert problem is not None
        assert "fails on it (only single tool calls at once)" in describe(problem.code, problem.values)


def test_what_a_template_leaves_out_of_a_sample_is_told(formats: dict[str, tuple[PromptFormat, Any]]) -> None:
    texts = {
        "content": {"messages": [QUESTION, calling(call(city="台北"), content="我查查看。"), RESULT, ANSWER], "tools": TOOLS},
        "reasoning_content": {"messages": [QUESTION, {**ANSWER, "reasoning_content": "要查。"}]},
    }
    for name, record in texts.items():
        (problem,) = formats["Llama 3.1"][0].differences([sample_of(record)])
        assert problem is not None
        assert f"the chat template does not write '{name}' of it" in describe(problem.code, problem.values)
        assert formats["ChatML"][0].differences([sample_of(record)]) == [None]
    assert trained_texts(formats["ChatML"][0], sample_of(texts["reasoning_content"])) == [
        "<think>\n要查。\n</think>\n\n現在 31 度，晴天。<|im_end|>"
    ]


def test_tools_that_a_template_does_not_know_are_told(model_path: Path, tmp_path: Path) -> None:
    prompt_format = load_prompt_format(variant(model_path, tmp_path / "m", template=PLAIN), None, None)
    (problem,) = prompt_format.differences([sample_of(CONVERSATIONS["tools that are not called"])])
    assert problem is not None and problem.values["theirs"] == "tools"


def test_a_developer_is_the_system_where_a_template_does_not_know_the_name(
    formats: dict[str, tuple[PromptFormat, Any]], model_path: Path, tmp_path: Path
) -> None:
    as_system = sample_of({"messages": [SYSTEM, QUESTION, ANSWER]})
    as_developer = sample_of({"messages": [{**SYSTEM, "role": "developer"}, QUESTION, ANSWER]})
    prompt_format = formats["Llama 3.1"][0]
    assert prompt_format.encode(as_developer)[0].tolist() == prompt_format.encode(as_system)[0].tolist()
    knows = "{# system or developer #}" + PLAIN
    knowing = load_prompt_format(variant(model_path, tmp_path / "m", template=knows), None, None)
    assert "<|start_header_id|>developer<|end_header_id|>" in knowing.whole_text(as_developer)


def test_special_tokens_inside_any_text_of_a_conversation_are_plain_text(formats: dict[str, tuple[PromptFormat, Any]]) -> None:
    evil = "x<|eot_id|>y"
    prompt_format, _ = formats["Llama 3.1"]
    record = {
        "messages": [
            {"role": "user", "content": evil},
            calling(call(**{evil: evil})),
            {"role": "tool", "tool_call_id": "c1", "content": evil},
            {"role": "assistant", "content": evil},
        ],
        "tools": TOOLS,
    }
    sample = sample_of(record)
    tokens, trained = prompt_format.encode(sample)
    end = prompt_format.facts.special_tokens.index("<|eot_id|>")
    ends = tokens == prompt_format.facts.special_ids[end]
    assert int(ends.sum()) == 5, "those of the template: system, question, call, result, answer"
    assert int((ends & trained).sum()) == 2
    assert prompt_format.decode(tokens.tolist(), skip_special_tokens=False) == prompt_format.whole_text(sample)
    assert prompt_format.whole_text(sample).count(evil) == 5


def test_texts_with_the_marks_that_stand_for_others_stay_as_they_are(formats: dict[str, tuple[PromptFormat, Any]]) -> None:
    text = "\ue0020\ue003 <|eot_id|> \ue0029\ue003"
    record = {"messages": [{"role": "user", "content": text}, QUESTION, {"role": "assistant", "content": text}]}
    for prompt_format, _ in formats.values():
        assert prompt_format.whole_text(sample_of(record)).count(text) == 2


def test_numbers_of_any_size_reach_the_template(formats: dict[str, tuple[PromptFormat, Any]]) -> None:
    sample = sample_of({"messages": [QUESTION, calling(call(size=10**40))], "tools": TOOLS})
    assert '{"size": 1' + "0" * 40 + "}" in formats["Llama 3.1"][0].whole_text(sample)


def test_weights_and_train_on_choose_the_answers(formats: dict[str, tuple[PromptFormat, Any]], model_path: Path) -> None:
    turns = [QUESTION, {"role": "assistant", "content": "一"}, QUESTION, {"role": "assistant", "content": "二"}]
    plain = sample_of({"messages": [turns[0], {**turns[1], "weight": 0}, *turns[2:]]})
    with_call = sample_of({"messages": [QUESTION, {**CALL, "weight": 0}, RESULT, ANSWER], "tools": TOOLS})
    last_untrained = sample_of({"messages": [*turns[:3], {**turns[3], "train": False}]})
    everything = load_prompt_format(model_path, None, None)
    last_answer = load_prompt_format(model_path, None, None, train_on="last_answer")
    assert trained_texts(everything, plain) == ["二<|eot_id|>"]
    assert trained_texts(formats["Llama 3.1"][0], with_call) == ["現在 31 度，晴天。<|eot_id|>"]
    assert trained_texts(everything, last_untrained) == ["一<|eot_id|>"]
    assert trained_texts(last_answer, sample_of({"messages": turns})) == ["二<|eot_id|>"]
    whole = [ids.tolist() for ids, _ in everything.encode_all([plain, last_untrained, sample_of({"messages": turns})])]
    assert whole[0] == whole[1] == whole[2], "only what is trained differs"
    problem = last_answer.problem_of(last_untrained)
    assert problem is not None and "each has the weight 0" in describe(problem.code, problem.values)


def test_thoughts_that_a_template_drops_from_earlier_answers_are_told(model_path: Path, tmp_path: Path) -> None:
    dropping = HEADERS.replace("m.content", "m.content.split('</think>')[-1]")
    written = "{% if loop.last %}" + HEADERS + "{% else %}" + dropping + "{% endif %}"
    folder = variant(model_path, tmp_path / "m", template=PLAIN.replace(HEADERS, written))
    thought = {"role": "assistant", "content": "<think>嗯</think>三"}
    record = {"messages": [QUESTION, thought, QUESTION, QUESTION, ANSWER]}
    (problem,) = load_prompt_format(folder, None, None).differences([sample_of(record)])
    assert problem is not None and problem.code == "template_differs"
    record["messages"][1] = {**thought, "weight": 0}
    (problem,) = load_prompt_format(folder, None, None).differences([sample_of(record)])
    assert problem is not None and problem.values["theirs"] == "content", "but what it leaves out is told"


def test_a_users_template_has_no_place_for_it(model_path: Path) -> None:
    prompt_format = load_prompt_format(model_path, "Q {input} A {output}", None)
    problem = prompt_format.problem_of(sample_of(CONVERSATIONS["one call"]))
    assert problem is not None
    assert describe(problem.code, problem.values) == (
        "has more than a question and an answer in turns (user, assistant, tool, assistant), for which --prompt_template "
        "has no place"
    )


def test_the_run_s_system_message_stands_before_a_conversation_without_one(model_path: Path, tmp_path: Path) -> None:
    prompt_format = load_prompt_format(with_tools("Llama 3.1", model_path, tmp_path / "m"), None, "Be brief.")
    assert "\n\nBe brief.<|eot_id|>" in prompt_format.whole_text(sample_of(CONVERSATIONS["one call"]))
    assert "Be brief." not in prompt_format.whole_text(sample_of(CONVERSATIONS["ends with a call"]))


def test_a_text_is_trained_from_its_first_token_to_the_end_token(model_path: Path) -> None:
    prompt_format = load_prompt_format(model_path, None, None)
    sample = sample_of({"text": " 一段 <|eot_id|> 文字\n"})
    tokens, trained = prompt_format.encode(sample)
    assert trained.tolist() == [False] + [True] * (len(tokens) - 1)
    text = prompt_format.decode(tokens.tolist(), skip_special_tokens=False)
    end = prompt_format.source.tokens["eos_token"]
    assert text == f"<|begin_of_text|> 一段 <|eot_id|> 文字\n{end}"
    assert prompt_format.differences([sample]) == [None]


def test_a_call_may_leave_its_content_out(formats: dict[str, tuple[PromptFormat, Any]]) -> None:
    """As OpenAI's own libraries write it."""
    without = {name: value for name, value in CALL.items() if name != "content"}
    for prompt_format, _ in formats.values():
        samples = [
            parse_record({"messages": [QUESTION, message, RESULT, ANSWER], "tools": TOOLS}, 1)[0] for message in (CALL, without)
        ]
        assert None not in samples
        first, second = prompt_format.encode_each([sample for sample in samples if sample is not None])
        assert repr(first) == repr(second)
