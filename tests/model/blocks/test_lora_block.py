"""The fused block against the plain one: same output, same gradients, same parameters."""

from collections.abc import Callable

import pytest
import torch

from finetuning.model.attention import make_documents
from finetuning.model.blocks.lora_block import LoraBlock, can_fuse
from finetuning.model.llama import Block, Llama, rope_tables
from finetuning.model.lora import add_lora
from tests.closeness import assert_all_near
from tests.model.conftest import randomize

pytestmark = pytest.mark.unit

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize("keep_all", [True, False])
def test_output_and_every_gradient_equal_those_of_the_plain_block(make_pair: Callable, keep_all: bool) -> None:
    model = lora_model(make_pair)
    plain, fused = run(model, False), run(model, True, keep_all=keep_all)
    assert_all_near(fused, plain)


@pytest.mark.parametrize("keep_all", [True, False])
def test_positions_that_nothing_reads_are_left_out_after_the_attention(make_pair: Callable, keep_all: bool) -> None:
    model, at = lora_model(make_pair), torch.tensor([0, 3, 4, 10])
    plain, fused = run(model, False, at=at), run(model, True, keep_all=keep_all, at=at)
    assert_all_near(fused, plain)


def test_with_fp8_weights_the_gradients_of_adapters_keep_their_direction(make_pair: Callable) -> None:
    expected, found = run(lora_model(make_pair), True), run(lora_model(make_pair), True, fp8=("linear",))
    for name, value in expected.items():
        cosine = torch.nn.functional.cosine_similarity(found[name].flatten(), value.flatten(), 0)
        assert 0.99 < cosine < 0.999999, name


def test_the_weights_are_kept_in_fp8_alone_once_they_have_been_used(make_pair: Callable) -> None:
    model = lora_model(make_pair)
    run(model, True, fp8=("linear",))
    assert model.model.layers["1"].mlp.up_proj.weight.numel() == 0


def run(
    model: Llama, fused: bool, fp8: bool = False, keep_all: bool = True, at: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    block = model.model.layers["1"]
    assert isinstance(block, Block)
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(1, 12, 32, generator=generator).requires_grad_()
    cos, sin = rope_tables(model.config, torch.tensor([[*range(5), *range(7)]]))
    model.zero_grad()
    if fused:
        out = LoraBlock(block, fp8=fp8, keep_all=keep_all)(x, cos, sin, make_documents([5, 7]), at)
    else:
        out = block(x, cos, sin, make_documents([5, 7]))
        out = out if at is None else out[:, at]
    (out * torch.randn(out.shape, generator=generator)).sum().backward()
    grads = {name: p.grad.clone() for name, p in block.named_parameters() if p.grad is not None}
    assert len(grads) == 14
    return grads | {"out": out.detach(), "x": x.grad}


def lora_model(make_pair: Callable, targets: tuple[str, ...] = ALL) -> Llama:
    model, _ = make_pair()
    add_lora(model, 4, 8.0, targets)
    randomize(model)
    return model


def test_weights_loaded_into_the_block_reach_the_joint_matrices(make_pair: Callable) -> None:
    model = lora_model(make_pair)
    block = model.model.layers["0"]
    assert isinstance(block, Block)
    fused = LoraBlock(block, fp8=False)
    with torch.no_grad():
        block.self_attn.k_proj.weight.fill_(3.0)
        block.mlp.up_proj.weight.fill_(4.0)
    rows = block.self_attn.q_proj.out_features
    assert (fused.matrices[0].weight_OI[rows : rows + block.self_attn.k_proj.out_features] == 3.0).all()
    assert (fused.matrices[2].weight_OI[block.mlp.gate_proj.out_features :] == 4.0).all()


def test_a_block_whose_layers_are_not_all_adapted_cannot_be_fused(make_pair: Callable) -> None:
    assert can_fuse(lora_model(make_pair).model.layers["0"])
    assert not can_fuse(lora_model(make_pair, ("q_proj", "v_proj")).model.layers["0"])


def test_adapters_of_a_rank_that_no_gpu_has_room_for_are_not_fused(make_pair: Callable) -> None:
    for rank, fits in ((256, True), (257, False)):
        model, _ = make_pair()
        add_lora(model, rank, 8.0, ALL)
        assert can_fuse(model.model.layers["0"]) == fits
