"""Answers with a key/value cache, against transformers' own generation."""

from pathlib import Path

import pytest
import torch
import transformers

from finetuning.data.prompts.prompt_format import load_prompt_format
from finetuning.data.prompts.tokenizer import open_tokenizer
from finetuning.formats.stored_model import open_model
from finetuning.inference.generate import TextStream, generate_answers
from finetuning.inference.loading import load_net
from finetuning.inference.plain import PlainConversation
from finetuning.model.llama import Llama
from finetuning.model.sampling import Sampling

pytestmark = pytest.mark.unit

END = (509, 502)
GENERATOR = torch.Generator().manual_seed(0)
PROMPTS = [torch.randint(0, 500, (length,), generator=GENERATOR).tolist() for length in (5, 23, 9, 1)]


@pytest.fixture(scope="module", params=["untied", "tied"])
def folder(request: pytest.FixtureRequest, tiny_model: Path, tiny_tied_model: Path) -> Path:
    return tiny_tied_model if request.param == "tied" else tiny_model


@pytest.fixture(scope="module")
def net(folder: Path) -> Llama:
    return load_net(open_model(folder).weights(), torch.device("cpu"), torch.float32)


def test_greedy_answers_are_those_of_transformers(folder: Path, net: Llama) -> None:
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = generate_answers(net, PROMPTS, Sampling(max_new_tokens=24), END, batch_size=3)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        tokens = reference.generate(
            torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=list(END), pad_token_id=END[0]
        )
        theirs = tokens[0, len(prompt) :].tolist()
        assert answer == [token for token in theirs if token not in END]


def test_an_answer_does_not_depend_on_its_neighbors(net: Llama) -> None:
    sampling = Sampling(temperature=1.0, top_p=0.9, top_k=40, max_new_tokens=12)
    together = generate_answers(net, PROMPTS, sampling, END, batch_size=4)
    assert together == generate_answers(net, PROMPTS, sampling, END, batch_size=1)
    another = Sampling(temperature=1.0, top_p=0.9, top_k=40, max_new_tokens=12, seed=5)
    assert together != generate_answers(net, PROMPTS, another, END)


def test_an_answer_ends_at_an_end_token_while_others_go_on(net: Llama) -> None:
    free = generate_answers(net, PROMPTS, Sampling(max_new_tokens=10), ())
    end = free[0][4]
    cut = generate_answers(net, PROMPTS, Sampling(max_new_tokens=10), (end,))
    expected = [answer[: answer.index(end)] if end in answer else answer for answer in free]
    assert cut == expected and len(cut[0]) < 10


def test_the_model_can_be_used_as_before_afterwards(net: Llama) -> None:
    before = [layer.self_attn.attend for layer in net.model.layers.values()]
    generate_answers(net, PROMPTS[:1], Sampling(max_new_tokens=2), END)
    assert [layer.self_attn.attend for layer in net.model.layers.values()] == before


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_conversation_answers_as_if_read_anew_and_reads_only_what_is_new(
    net: Llama, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetuning.model.kv_cache.TOKENS_AT_ONCE", 5)  # several parts of what is added
    sampling = Sampling(temperature=temperature, max_new_tokens=9)
    prompts: list[list[int]] = []
    expected: list[list[int]] = []
    for more in PROMPTS:
        prompts.append((prompts[-1] + expected[-1] if prompts else []) + more)
        expected += generate_answers(net, prompts[-1:], sampling, END)
    for other in (PROMPTS[2], PROMPTS[1], PROMPTS[1][:7]):  # shares nothing; shares nothing; all of it is there
        prompts.append(other)
        expected += generate_answers(net, [other], sampling, END)
    conversation = PlainConversation(net, sampling, END)
    read = []
    for prompt, answer in zip(prompts, expected, strict=True):
        before = conversation.tokens_read
        assert list(conversation.answer(prompt)) == answer
        read.append(conversation.tokens_read - before - len(answer))
    conversation.close()
    # Of a prompt that goes on only the new tokens are read, and the last token of the answer before, which nothing followed.
    assert all(count <= len(more) + 1 for count, more in zip(read, PROMPTS, strict=False))
    assert read[-1] <= 1


def test_an_answer_that_was_left_early_does_not_change_the_next(net: Llama) -> None:
    sampling = Sampling(max_new_tokens=9)
    expected = generate_answers(net, [PROMPTS[1] + PROMPTS[2]], sampling, ())
    conversation = PlainConversation(net, sampling, ())
    for _ in zip(range(3), conversation.answer(PROMPTS[1]), strict=False):
        pass
    conversation.cached.read_more([1, 2, 3])  # as if Ctrl-C had come before it was noted
    assert [list(conversation.answer(PROMPTS[1] + PROMPTS[2]))] == expected
    conversation.close()


def test_a_stream_shows_whole_characters_and_in_the_end_the_whole_text(tiny_model: Path) -> None:
    prompt_format = load_prompt_format(tiny_model, None, None)
    text = "颱風 ok，鱟😀"
    tokens = open_tokenizer(tiny_model / "tokenizer.json").encode(text, add_special_tokens=False).ids
    stream = TextStream(prompt_format)
    parts = [stream.add(token) for token in tokens] + [stream.end()]
    assert "".join(parts) == text and not any("\ufffd" in part for part in parts)
