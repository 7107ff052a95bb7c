"""Adapters against PEFT's on transformers' Llama."""

from collections.abc import Callable

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from finetuning.config.settings import LORA_TARGETS
from finetuning.model.attention import make_documents
from finetuning.model.llama import Llama
from finetuning.model.lora import add_lora, freeze_all_but_lora, initial_adapter, is_adapter
from tests.closeness import assert_all_near, assert_near

pytestmark = pytest.mark.unit

RANK, ALPHA, SEED = 4, 10.0, 1234
PREFIX = "base_model.model."
every_targets = pytest.mark.parametrize("targets", [LORA_TARGETS, ("q_proj", "v_proj"), ("down_proj",)], ids=",".join)

MakePair = Callable[..., tuple[Llama, transformers.LlamaForCausalLM]]


def test_at_the_start_the_logits_are_exactly_those_of_the_base_model(make_pair: MakePair) -> None:
    model, _ = make_pair()
    base = logits(model)
    add_lora_keeping_weights(model, LORA_TARGETS)
    fill(model, initial_values(model))
    assert torch.equal(logits(model), base)


@every_targets
def test_adapters_have_the_names_and_shapes_of_peft(make_pair: MakePair, targets: tuple[str, ...]) -> None:
    ours, theirs = make_pair()
    add_lora(ours, RANK, ALPHA, targets)
    expected = peft.get_peft_model_state_dict(peft_model(theirs, targets))
    found = {PREFIX + name: parameter.shape for name, parameter in adapters(ours).items()}
    assert found == {name: value.shape for name, value in expected.items()}


def test_weights_keep_the_names_of_the_base_model(make_pair: MakePair) -> None:
    model, _ = make_pair()
    before = {name: parameter.shape for name, parameter in model.named_parameters()}
    add_lora(model, RANK, ALPHA, LORA_TARGETS)
    after = {name: parameter.shape for name, parameter in model.named_parameters() if not is_adapter(name)}
    assert after == before


@every_targets
def test_only_adapters_are_trained(make_pair: MakePair, targets: tuple[str, ...]) -> None:
    model, _ = make_pair()
    add_lora(model, RANK, ALPHA, targets)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == set(adapters(model))
    assert len(trained) == 2 * len(targets) * model.config.num_hidden_layers


def test_freezing_again_undoes_what_made_weights_trainable(make_pair: MakePair) -> None:
    model, _ = make_pair()
    add_lora(model, RANK, ALPHA, LORA_TARGETS)
    model.requires_grad_(True)
    freeze_all_but_lora(model)
    assert all(parameter.requires_grad == is_adapter(name) for name, parameter in model.named_parameters())


@every_targets
def test_logits_and_gradients_equal_those_of_peft_with_the_same_adapters(make_pair: MakePair, targets: tuple[str, ...]) -> None:
    ours, theirs = make_pair()
    add_lora_keeping_weights(ours, targets)
    values = {name: torch.randn(p.shape, generator=generator(name)) * 0.1 for name, p in adapters(ours).items()}
    fill(ours, values)
    wrapped = peft_model(theirs, targets)
    peft.set_peft_model_state_dict(wrapped, {PREFIX + name: value for name, value in values.items()})

    tokens, labels = tokens_1T(), tokens_1T(seed=1)
    found, expected = logits(ours), wrapped(tokens).logits
    assert_near(found, expected)

    F.cross_entropy(found[0], labels[0], reduction="sum").backward()
    F.cross_entropy(expected[0], labels[0], reduction="sum").backward()
    trainable = {name.replace(".default", ""): p.grad for name, p in wrapped.named_parameters() if p.requires_grad}
    assert_all_near({PREFIX + name: parameter.grad for name, parameter in adapters(ours).items()}, trainable)
    assert all(p.grad is None for name, p in ours.named_parameters() if not is_adapter(name))


def test_a_start_value_depends_on_seed_and_name_only() -> None:
    name, shape = "model.layers.7.mlp.up_proj.lora_A.weight", torch.Size((RANK, 32))
    first = initial_adapter(name, shape, SEED)
    torch.manual_seed(99)
    torch.rand(3)
    assert torch.equal(initial_adapter(name, shape, SEED), first)
    assert not torch.equal(initial_adapter(name, shape, SEED + 1), first)
    assert not torch.equal(initial_adapter(name.replace("7", "8"), shape, SEED), first)


def test_drawing_start_values_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    initial_adapter("model.layers.0.mlp.up_proj.lora_A.weight", torch.Size((RANK, 32)), SEED)
    assert torch.equal(torch.get_rng_state(), before)


def test_start_values_are_distributed_like_those_of_peft(make_pair: MakePair) -> None:
    _, theirs = make_pair(hidden_size=256)
    (expected,) = (
        p for name, p in peft_model(theirs, ("q_proj",)).named_parameters() if "layers.0" in name and "lora_A" in name
    )
    found = initial_adapter("model.layers.0.self_attn.q_proj.lora_A.weight", expected.shape, SEED)
    bound = 256**-0.5
    # 1024 uniform values: the largest is within 1 % of the bound, and the spread within 6 % (three standard errors).
    for values in (found, expected):
        assert 0.99 * bound < values.abs().max() <= bound
        assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.06)
    assert initial_adapter("x.lora_B.weight", torch.Size((256, RANK)), SEED).count_nonzero() == 0


def add_lora_keeping_weights(model: Llama, targets: tuple[str, ...]) -> None:
    """`add_lora` makes new linears without values; a run fills them from the base model's files afterwards."""
    base = model.state_dict()
    add_lora(model, RANK, ALPHA, targets)
    model.load_state_dict(base, strict=False)


def logits(model: Llama) -> Tensor:
    tokens = tokens_1T()
    length = tokens.shape[1]
    return model(tokens, torch.arange(length)[None], make_documents([length]))


def tokens_1T(seed: int = 0) -> Tensor:
    return torch.randint(0, 97, (1, 12), generator=torch.Generator().manual_seed(seed))


def adapters(model: Llama) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if is_adapter(name)}


def initial_values(model: Llama) -> dict[str, Tensor]:
    return {name: initial_adapter(name, parameter.shape, SEED) for name, parameter in adapters(model).items()}


@torch.no_grad()
def fill(model: Llama, values: dict[str, Tensor]) -> None:
    for name, parameter in adapters(model).items():
        parameter.copy_(values[name])


def generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(len(name) * 1000 + sum(name.encode()))


def peft_model(base: transformers.LlamaForCausalLM, targets: tuple[str, ...]) -> peft.PeftModel:
    settings = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(targets), task_type="CAUSAL_LM")
    return peft.get_peft_model(base, settings)
