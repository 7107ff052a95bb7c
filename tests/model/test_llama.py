"""The decoder against transformers' LlamaForCausalLM, and packed rows against separate documents."""

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from finetuning.model.attention import make_documents
from finetuning.model.cross_entropy import IGNORED_LABEL
from finetuning.model.llama import Llama
from tests.closeness import assert_all_near, assert_near

pytestmark = pytest.mark.unit

DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
VARIANTS = {
    "untied head, llama3 RoPE, grouped queries": {},
    "tied head": {"tie_word_embeddings": True},
    "default RoPE": {"rope_parameters": DEFAULT_ROPE},
    "one key/value head for each query head": {"num_key_value_heads": 4},
    "one key/value head for all": {"num_key_value_heads": 1},
    "tied head, default RoPE, no groups": {
        "tie_word_embeddings": True,
        "rope_parameters": DEFAULT_ROPE,
        "num_key_value_heads": 4,
    },
    "heads wider than hidden_size / num_attention_heads": {"head_dim": 16},
}
every_variant = pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())

MakePair = Callable[..., tuple[Llama, transformers.LlamaForCausalLM]]


@every_variant
def test_logits_equal_those_of_transformers(make_pair: MakePair, settings: dict) -> None:
    ours, theirs = make_pair(**settings)
    tokens = random_tokens(24)
    with torch.no_grad():
        assert_near(run_packed(ours, tokens, [24]), theirs(tokens).logits)


@every_variant
def test_every_gradient_equals_that_of_transformers(make_pair: MakePair, settings: dict) -> None:
    ours, theirs = make_pair(**settings)
    tokens, labels = random_tokens(24), random_tokens(24, seed=1)
    labels[:, :10] = IGNORED_LABEL

    run_packed(ours, tokens, [24], labels).backward()
    logits = theirs(tokens).logits
    F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").backward()

    assert_all_near(gradients(ours), gradients(theirs))


@every_variant
def test_parameters_have_the_names_shapes_and_order_of_transformers(make_pair: MakePair, settings: dict) -> None:
    ours, theirs = make_pair(**settings)
    assert shapes(ours) == shapes(theirs)
    assert sum(parameter.numel() for parameter in ours.parameters()) == ours.config.num_parameters


def test_a_row_longer_than_the_original_context_equals_transformers(make_pair: MakePair) -> None:
    ours, theirs = make_pair()
    tokens = random_tokens(200)
    with torch.no_grad():
        assert_near(run_packed(ours, tokens, [200]), theirs(tokens).logits)


def test_packed_documents_give_the_logits_of_separate_ones_wherever_the_boundaries_are(make_pair: MakePair) -> None:
    ours, _ = make_pair()
    tokens = random_tokens(6)
    with torch.no_grad():
        for lengths in all_splits(6):
            parts = [run_packed(ours, part, [part.shape[1]]) for part in tokens.split(lengths, dim=1)]
            packed = run_packed(ours, tokens, lengths)
            assert_near(packed, torch.cat(parts, 1), str(lengths))


def test_packed_documents_give_the_gradients_of_separate_ones(make_pair: MakePair) -> None:
    ours, _ = make_pair(tie_word_embeddings=True)
    lengths = [5, 1, 11, 7]
    tokens, labels = random_tokens(24), random_tokens(24, seed=1)
    labels[:, ::3] = IGNORED_LABEL

    run_packed(ours, tokens, lengths, labels).backward()
    packed = gradients(ours)
    ours.zero_grad(set_to_none=True)
    for part, part_labels in zip(tokens.split(lengths, 1), labels.split(lengths, 1), strict=True):
        run_packed(ours, part, [part.shape[1]], part_labels).backward()  # gradients add up

    assert_all_near(packed, gradients(ours))


def test_with_labels_the_sum_of_the_cross_entropies_of_the_trained_positions_comes_back(make_pair: MakePair) -> None:
    ours, _ = make_pair()
    tokens, labels = random_tokens(24), random_tokens(24, seed=1)
    labels[:, 5:9] = IGNORED_LABEL
    with torch.no_grad():
        logits = run_packed(ours, tokens, [24])
        expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        found = run_packed(ours, tokens, [24], labels)
    assert found.shape == ()
    assert found.dtype == torch.float32
    assert_near(found, expected)


def test_at_positions_the_logits_of_these_positions_come_back_in_the_order_asked_for(make_pair: MakePair) -> None:
    ours, _ = make_pair()
    tokens, at = random_tokens(12), torch.tensor([11, 0, 4])
    with torch.no_grad():
        assert_near(run_packed(ours, tokens, [5, 7], at=at), run_packed(ours, tokens, [5, 7])[:, at])


def test_a_tied_head_has_no_weight_of_its_own_and_trains_the_embedding_from_both_ends(make_pair: MakePair) -> None:
    ours, _ = make_pair(tie_word_embeddings=True)
    assert not list(ours.lm_head.parameters())
    tokens = torch.zeros(1, 3, dtype=torch.long)
    run_packed(ours, tokens, [3], torch.ones(1, 3, dtype=torch.long)).backward()
    touched = ours.model.embed_tokens.weight.grad.abs().sum(1) > 0
    assert touched.all()  # only token 0 went in; all 97 rows took part in the output


def test_in_bfloat16_logits_stay_in_bfloat16_and_the_loss_is_float32(make_pair: MakePair) -> None:
    ours, _ = make_pair()
    ours.bfloat16()
    tokens = random_tokens(8)
    assert run_packed(ours, tokens, [8]).dtype == torch.bfloat16
    assert run_packed(ours, tokens, [8], tokens).dtype == torch.float32


def random_tokens(length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 97, (1, length), generator=torch.Generator().manual_seed(seed))


def run_packed(
    model: Llama, tokens: Tensor, lengths: list[int], labels: Tensor | None = None, at: Tensor | None = None
) -> Tensor:
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return model(tokens, positions, make_documents(lengths), labels_BT=labels, at_S=at)


def all_splits(total: int) -> list[list[int]]:
    """Every way to cut `total` tokens into documents: 3 -> [3], [2, 1], [1, 2], [1, 1, 1]."""
    splits = []
    for cuts in itertools.product((False, True), repeat=total - 1):
        ends = [position for position, cut in enumerate(cuts, start=1) if cut] + [total]
        splits.append([end - start for start, end in zip([0, *ends], ends, strict=False)])
    return splits


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in found.values())
    return found


def shapes(model: torch.nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]
