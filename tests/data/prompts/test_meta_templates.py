"""Llama 3.1's and 3.2's own tool templates, where this machine has them: token for token what transformers makes of them.

They stand under Meta's license and are not in this repository: it has templates of its own after their layout
(`tool_templates.py`). Used here are those of a download that is in the hub's cache, or of a folder that the variable names.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import transformers
from huggingface_hub import snapshot_download

from finetuning.data.prompts.prompt_format import PromptFormat, load_prompt_format
from finetuning.data.reading.finding_words import describe
from tests.data.prompts.test_conversation import (
    ANSWER,
    CALL,
    CONVERSATIONS,
    QUESTION,
    RESULT,
    SECOND_RESULT,
    SYSTEM,
    TOOLS,
    call,
    calling,
    sample_of,
    trained_texts,
    with_objects,
)

pytestmark = pytest.mark.unit

MODELS = {
    "LLAMA_3_1_INSTRUCT": ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Meta-Llama-3.1-8B-Instruct"),
    "LLAMA_3_2_INSTRUCT": ("meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-3B-Instruct"),
}
RECORDS: dict[str, dict[str, Any]] = CONVERSATIONS | {
    "a result that is an object": {"messages": [QUESTION, CALL, RESULT | {"content": {"sky": "晴", "n": [1, 2.5]}}, ANSWER]},
    "a result that is text": {
        "messages": [SYSTEM, QUESTION, CALL, RESULT | {"content": 'plain "text"\n'}, ANSWER],
        "tools": TOOLS,
    },
    "arguments of every kind": {
        "messages": [QUESTION, calling(call(city='台"北', days=3, on=True, at=None, all=["a", {"b": 1.5}])), RESULT, ANSWER],
        "tools": TOOLS,
    },
    "white space around texts": {"messages": [SYSTEM, {"role": "user", "content": " a \n"}, ANSWER | {"content": "\n b "}]},
}


@pytest.fixture(scope="module", params=MODELS)
def of_meta(request: pytest.FixtureRequest) -> tuple[PromptFormat, Any]:
    folder = Path(os.environ.get(request.param, "")) if os.environ.get(request.param) else in_cache(MODELS[request.param])
    if folder is None:
        pytest.skip(f"none of {', '.join(MODELS[request.param])} is in the hub's cache, and {request.param} names no folder")
    prompt_format = load_prompt_format(folder, None, None)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = prompt_format.chat_template() or tokenizer.chat_template  # the date of training
    return prompt_format, tokenizer


def in_cache(names: tuple[str, ...]) -> Path | None:
    for name in names:
        try:
            return Path(snapshot_download(name, local_files_only=True, allow_patterns=["*.json", "*.jinja"]))
        except OSError:  # it is not there
            continue
    return None


@pytest.mark.parametrize("name", RECORDS)
def test_tokens_are_those_of_transformers(of_meta: tuple[PromptFormat, Any], name: str) -> None:
    prompt_format, tokenizer = of_meta
    record = RECORDS[name]
    sample = sample_of(record)
    assert prompt_format.problem_of(sample) is None and prompt_format.differences([sample]) == [None]
    messages, options = with_objects(record["messages"]), {"tools": record.get("tools"), "return_dict": False}
    assert prompt_format.encode(sample)[0].tolist() == tokenizer.apply_chat_template(messages, **options)
    asked = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, **options)
    assert prompt_format.encode_prompt(sample) == asked
    answers = [message for message in record["messages"] if message["role"] == "assistant"]
    assert len(trained_texts(prompt_format, sample)) == len(answers)
    assert all(text.endswith("<|eot_id|>") for text in trained_texts(prompt_format, sample))


def test_several_calls_at_once_are_refused_in_its_own_words(of_meta: tuple[PromptFormat, Any]) -> None:
    calls = calling(call(city="台北"), call("now", "c2"))
    sample = sample_of({"messages": [QUESTION, calls, RESULT, SECOND_RESULT, ANSWER], "tools": TOOLS})
    (problem,) = of_meta[0].differences([sample])
    assert problem is not None
    assert "This model only supports single tool-calls at once!" in describe(problem.code, problem.values)
