"""The engine's answers beside the plain way's, on the CPU: the same code as on a GPU, with plain formulas for its kernels."""

import dataclasses
import random

import pytest
import torch

from finetuning.config.llama import LlamaConfig
from finetuning.config.rope import RopeScaling
from finetuning.errors import InputError
from finetuning.inference.conversation import Conversation
from finetuning.inference.engine import Engine, pages_beside
from finetuning.inference.plain import PlainConversation, plain_answers
from finetuning.model.llama import Llama
from finetuning.model.lora import LoraLinear, StretchedLinear, add_lora
from finetuning.model.sampling import Sampling

pytestmark = pytest.mark.unit

SCALING = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
CONFIG = LlamaConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    rope_scaling=SCALING,
    max_position_embeddings=256,
    tie_word_embeddings=False,
    dtype="float32",
)
NUMBERS = random.Random(0)
PROMPTS = [[NUMBERS.randrange(96) for _ in range(length)] for length in (5, 70, 9, 1, 64, 33, 2, 17, 40, 3, 65)]
GREEDY = Sampling(max_new_tokens=20)
DRAWN = Sampling(temperature=1.0, top_p=0.9, top_k=40, seed=2**40 + 5, max_new_tokens=20)


def make_net(config: LlamaConfig = CONFIG) -> Llama:
    torch.manual_seed(1)
    net = Llama(config)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net.requires_grad_(False)


def with_adapters(net: Llama) -> Llama:
    add_lora(net, 3, 6.0, ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"))
    for module in [module for module in net.modules() if isinstance(module, LoraLinear)]:
        torch.nn.init.normal_(module.lora_A.weight, std=0.3)
        torch.nn.init.normal_(module.lora_B.weight, std=0.3)
    attention = net.model.layers["1"].self_attn
    attention.v_proj = StretchedLinear(attention.v_proj, torch.linspace(0.5, 2.0, 16))
    return net


@pytest.mark.parametrize(
    ("kind", "num_slots", "sampling"),
    [
        ("untied", 1, GREEDY),
        ("untied", 16, DRAWN),
        ("tied", 3, GREEDY),
        ("adapters", 3, DRAWN),
        ("adapters", 16, GREEDY),
    ],
)
def test_answers_are_those_of_the_plain_way(kind: str, num_slots: int, sampling: Sampling) -> None:
    net = make_net(dataclasses.replace(CONFIG, tie_word_embeddings=kind == "tied"))
    net = with_adapters(net) if kind == "adapters" else net
    free = plain_answers(net, PROMPTS, sampling, (), 4)
    ends = (free[0][4], free[1][0], free[5][19])
    expected = plain_answers(net, PROMPTS, sampling, ends, 4)
    assert len({len(answer) for answer in expected}) > 3
    engine = Engine(net, sampling, ends, [len(prompt) for prompt in PROMPTS], num_slots)
    told: list[list[int]] = [[] for _ in PROMPTS]
    assert engine.answer(PROMPTS, lambda number, token: told[number].append(token)) == expected == told
    assert engine.answer(PROMPTS[:2]) == expected[:2]
    assert len(engine.slots.steps) <= 1 + num_slots.bit_length()
    engine.close()
    assert plain_answers(net, PROMPTS, sampling, ends, 4) == expected  # the model is as before


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_little_memory_makes_answers_wait_and_changes_none(sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    net = make_net()
    expected = plain_answers(net, PROMPTS, sampling, (), 4)
    monkeypatch.setattr("finetuning.inference.engine.affordable_pages", lambda *_: 3)
    monkeypatch.setattr("finetuning.inference.engine.PROMPT_TOKENS", 20)  # some prompts are longer
    engine = Engine(net, sampling, (), [len(prompt) for prompt in PROMPTS], 16)
    assert engine.answer(PROMPTS) == expected
    assert sorted(engine.cache.free) == [1, 2, 3]  # the longest prompt and its answer need two


def test_what_does_not_fit_the_memory_is_refused_with_both_sizes() -> None:
    needs = r"1000 tokens of a prompt and its answer need 0\.0 GiB .* and 0\.0 GiB are free; give a smaller --max_new_tokens"
    with pytest.raises(InputError, match=needs):
        pages_beside(2**20, CONFIG, torch.float32, 1000, 1000, 1)
    assert pages_beside(2**30, CONFIG, torch.float32, 1000, 1000, 1) > 1000


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_a_conversation_is_the_plain_one(sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetuning.model.paged_cache.TOKENS_AT_ONCE", 5)  # several parts of what is added
    monkeypatch.setattr("finetuning.inference.conversation.PROMPT_TOKENS", 60)
    net = make_net()
    plain = PlainConversation(net, sampling, ())
    prompts: list[list[int]] = []
    expected: list[list[int]] = []
    for more in PROMPTS[:4]:
        prompts.append((prompts[-1] + expected[-1] if prompts else []) + more)
        expected.append(list(plain.answer(prompts[-1])))
    for other in (PROMPTS[2], PROMPTS[1], PROMPTS[1][:7]):  # shares nothing; shares nothing; all of it is there
        prompts.append(other)
        expected.append(list(plain.answer(other)))
    plain.close()
    conversation = Conversation(net, sampling, ())
    for _ in zip(range(3), conversation.answer(PROMPTS[1]), strict=False):  # left early
        pass
    read = []
    for prompt, answer in zip(prompts, expected, strict=True):
        before = conversation.tokens_read
        assert list(conversation.answer(prompt)) == answer
        read.append(conversation.tokens_read - before)
    assert read[1:4] == [len(more) + 1 for more in PROMPTS[1:4]]  # nothing followed the last token of the answer before
    assert read[-1] == 1
    assert conversation.num_positions == CONFIG.max_position_embeddings
    conversation.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("num_slots", [1, 3, 16])
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_answers_on_a_gpu_are_those_of_the_plain_way_in_float32(sampling: Sampling, num_slots: int) -> None:
    config = dataclasses.replace(CONFIG, hidden_size=256, intermediate_size=640, head_dim=32, num_attention_heads=8)
    net = make_net(config).cuda()
    expected = plain_answers(net, PROMPTS, sampling, (7, 8), 4)
    engine = Engine(net, sampling, (7, 8), [len(prompt) for prompt in PROMPTS], num_slots)
    assert engine.answer(PROMPTS) == expected
    captured = {size: step.graph for size, step in engine.slots.steps.items()}
    assert engine.answer(PROMPTS) == expected
    assert {size: step.graph for size, step in engine.slots.steps.items() if captured.get(size)} == {
        size: graph for size, graph in captured.items() if graph
    }  # nothing is captured again
    engine.close()
    said = []
    for kind in (PlainConversation, Conversation):
        conversation = kind(net, sampling, ())
        said.append([list(conversation.answer(p)) for p in (PROMPTS[0], PROMPTS[0] + PROMPTS[1], PROMPTS[2])])
        conversation.close()
    assert said[0] == said[1]
