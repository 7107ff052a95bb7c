"""The fused block whose weights are all trained against the plain one: same output, same gradients, same parameters."""

from collections.abc import Callable

import pytest
import torch

from finetuning.model.attention import make_documents
from finetuning.model.blocks.full_block import Accumulation, FullBlock
from finetuning.model.llama import Block
from tests.closeness import assert_all_near

pytestmark = pytest.mark.unit

LENGTHS = [5, 11]


@pytest.mark.parametrize("gathered", [False, True], ids=["joint weights", "weights as they are"])
@pytest.mark.parametrize("keep_all", [True, False])
def test_output_and_every_gradient_equal_those_of_the_plain_block(make_pair: Callable, keep_all: bool, gathered: bool) -> None:
    block = make_block(make_pair)
    plain = run(block, block, rows=2)
    fused = run(block, FullBlock(block, fp8=False, keep_all=keep_all, gathered=gathered), rows=2)
    assert len(plain) == 2 + 7 + 2  # output and input, linear layers, norms
    assert_all_near(fused, plain)


@pytest.mark.parametrize("keep_all", [True, False])
def test_positions_that_nothing_reads_are_left_out_after_the_attention(make_pair: Callable, keep_all: bool) -> None:
    block, at = make_block(make_pair), torch.tensor([0, 3, 4, 10, 15])
    plain = run(block, lambda *inputs: block(*inputs)[:, at], rows=2)
    fused = FullBlock(block, fp8=False, keep_all=keep_all)
    found = run(block, lambda *inputs: fused(*inputs, at), rows=2)
    assert_all_near(found, plain)


def test_gradients_of_the_next_step_start_from_zero(make_pair: Callable) -> None:
    block = make_block(make_pair)
    fused = FullBlock(block, fp8=False, keep_all=True)
    first = run(block, fused, rows=1)
    again = run(block, fused, rows=1)
    for name, expected in first.items():
        assert torch.equal(again[name], expected), name


def test_gradients_stay_with_the_block_until_the_last_row_of_a_step(make_pair: Callable) -> None:
    block, accumulation = make_block(make_pair), Accumulation()
    expected = run(block, block, rows=3)
    fused = FullBlock(block, fp8=False, keep_all=True, gathered=True, accumulation=accumulation)
    seen = []

    def forward(*inputs: object) -> torch.Tensor:
        seen.append(all(parameter.grad is None for parameter in block.parameters()))
        accumulation.more_rows = len(seen) < 3
        return fused(*inputs)  # type: ignore[arg-type]

    found = run(block, forward, rows=3)
    assert seen == [True, True, True]
    assert_all_near(found, expected)


def test_with_fp8_products_gradients_keep_their_direction(make_pair: Callable) -> None:
    block = make_block(make_pair)
    expected, found = run(block, block, rows=2), run(block, FullBlock(block, fp8=True, keep_all=True), rows=2)
    for name, value in expected.items():
        cosine = torch.nn.functional.cosine_similarity(found[name].flatten(), value.flatten(), 0)
        # Rounding to 3 bits of the fraction: 1/40 on average, through up to eight products in a row; norms are vectors of
        # 32 numbers with little to average over.
        assert 0.98 < cosine < 0.999999, name


def test_fp8_products_see_a_weight_that_was_changed_between_two_steps(make_pair: Callable) -> None:
    block = make_block(make_pair)
    fused = FullBlock(block, fp8=True, keep_all=True)
    before = run(block, fused, rows=2)["out"]
    with torch.no_grad():
        block.mlp.down_proj.weight.mul_(2.0)
    changed, expected = run(block, fused, rows=2)["out"], run(block, block, rows=2)["out"]
    assert (changed - expected).norm() < 0.2 * (expected - before).norm()  # far nearer to what it should be than to what it was


def make_block(make_pair: Callable) -> Block:
    block = make_pair()[0].model.layers["1"]
    assert isinstance(block, Block)
    return block


def run(block: Block, forward: Callable, rows: int) -> dict[str, torch.Tensor]:
    """Output of the last of `rows` rows, and gradients summed over all of them."""
    generator = torch.Generator().manual_seed(11)
    block.zero_grad()
    for _ in range(rows):
        x = torch.randn(1, sum(LENGTHS), 32, generator=generator).requires_grad_()
        cos, sin = rope_tables_of(block, LENGTHS)
        out = forward(x, cos, sin, make_documents(LENGTHS))
        (out * torch.randn(out.shape, generator=generator)).sum().backward()
    grads = {name: p.grad.clone() for name, p in block.named_parameters() if p.grad is not None}
    return grads | {"out": out.detach(), "x": x.grad}


def rope_tables_of(block: Block, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    positions = torch.tensor([[place for length in lengths for place in range(length)]])
    frequencies = 100.0 ** -torch.arange(0, 1, 2 / block.self_attn.head_dim)
    angles = (positions[..., None] * frequencies).repeat(1, 1, 2)
    return angles.cos(), angles.sin()
