"""The block that needs the least memory against the plain one, and what waits on the host."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from finetuning.model.attention import make_documents
from finetuning.model.blocks.activation_offload import OffloadedEmbedding, OffloadStore
from finetuning.model.blocks.lora_block import LoraBlock
from finetuning.model.blocks.low_memory_block import LowMemoryBlock
from finetuning.model.llama import Block, Llama, rope_tables
from finetuning.model.lora import add_lora
from tests.closeness import assert_all_near
from tests.model.conftest import randomize

pytestmark = pytest.mark.unit

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LENGTHS = [5, 7, 1]
Forward = Callable[..., torch.Tensor]


def lora_model(make_pair: Callable) -> Llama:
    model, _ = make_pair()
    add_lora(model, 4, 8.0, ALL)
    randomize(model)
    return model


def blocks_of(model: Llama) -> list[Block]:
    return [block for block in model.model.layers.values() if isinstance(block, Block)]


def least_blocks(model: Llama, tokens_at_once: int = 5, fp8: bool = False) -> list[Forward]:
    blocks = blocks_of(model)
    store = OffloadStore(len(blocks))
    return [LowMemoryBlock(block, store, i, fp8=fp8, tokens_at_once=tokens_at_once) for i, block in enumerate(blocks)]


def gradients(model: Llama, forwards: list[Forward], seed: int = 11) -> dict[str, torch.Tensor]:
    """Output of all blocks, gradient of their input and those that adapters have afterwards."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(LENGTHS)
    x = torch.randn(1, tokens, 32, generator=generator).requires_grad_()
    cos, sin = rope_tables(model.config, torch.cat([torch.arange(length) for length in LENGTHS])[None])
    out = x
    for forward in forwards:
        out = forward(out, cos, sin, make_documents(LENGTHS))
    (out * torch.randn(out.shape, generator=generator)).sum().backward()
    assert x.grad is not None
    found = {name: p.grad.clone() for name, p in model.model.layers.named_parameters() if p.grad is not None}
    assert len(found) == 28
    return found | {"out": out.detach(), "x": x.grad}


@pytest.mark.parametrize("tokens_at_once", [5, 13, 64], ids=["pieces of 5, 5 and 3 tokens", "one piece", "one shorter piece"])
def test_output_and_every_gradient_equal_those_of_plain_blocks(make_pair: Callable, tokens_at_once: int) -> None:
    model = lora_model(make_pair)
    expected = gradients(model, list(blocks_of(model)))
    model.zero_grad()
    found = gradients(model, least_blocks(model, tokens_at_once))
    assert_all_near(found, expected)


def test_gradients_of_several_rows_add_up(make_pair: Callable) -> None:
    model = lora_model(make_pair)
    rows = []
    for seed in (11, 12):
        rows.append(gradients(model, least_blocks(model), seed))
        model.zero_grad()
    forwards = least_blocks(model)  # host memory of the first row is used for the second
    gradients(model, forwards, 11)
    found = gradients(model, forwards, 12)
    for name in found.keys() - {"out", "x"}:
        expected = rows[0][name] + rows[1][name]
        assert (found[name] - expected).abs().max() <= 1e-6 * expected.abs().max(), name


def test_without_gradients_nothing_is_kept(make_pair: Callable) -> None:
    model = lora_model(make_pair)
    forwards = least_blocks(model)
    expected = gradients(model, forwards)
    cos, sin = rope_tables(model.config, torch.arange(40)[None])
    with torch.no_grad():  # between forward and backward pass of a row, to show that it does not disturb them
        x = torch.randn(1, 40, 32)
        for forward in forwards:
            x = forward(x, cos, sin, make_documents([40]))
    store = forwards[0].store  # type: ignore[attr-defined]
    assert not store.arrived
    assert store.on_host[0][0].numel() == 512  # 13 tokens of 32, in powers of two
    assert expected["out"].isfinite().all()


def test_fp8_weights_held_once_are_as_exact_as_those_held_in_two_layouts(make_pair: Callable) -> None:
    model = lora_model(make_pair)
    expected = gradients(model, list(blocks_of(model)))
    errors = []
    for once in (False, True):
        model = lora_model(make_pair)
        twice: list[Forward] = [LoraBlock(block, fp8=True) for block in blocks_of(model)]
        found = gradients(model, least_blocks(model, fp8=True) if once else twice)
        errors.append(torch.stack([(found[name] - value).norm() / value.norm() for name, value in expected.items()]))
        assert blocks_of(model)[1].mlp.up_proj.weight.numel() == 0
    assert errors[0].mean() > 0.01
    assert errors[1].mean() < 1.2 * errors[0].mean()  # mean of 30 relative errors, each off by a few tenths by chance


def test_what_a_block_keeps_comes_back_in_any_shape() -> None:
    store = OffloadStore(3)
    for tokens in (4, 6, 3):  # larger than before: new memory; smaller: a part of it
        rows = [(torch.randn(tokens, 2), torch.randn(tokens)) for _ in range(3)]
        for index, row in enumerate(rows):
            store.keep(index, row)
        for index in (2, 1, 0):
            store.fetch(index - 1)
            for found, expected in zip(store.take(index), rows[index], strict=True):
                assert torch.equal(found, expected)
        assert not store.arrived


def test_a_table_on_the_host_gives_the_same_rows_and_stays_when_the_model_is_moved() -> None:
    table = OffloadedEmbedding(torch.Size([7, 3]), torch.float32, pinned=False)
    with torch.no_grad():
        table.weight.copy_(torch.randn(7, 3))
    tokens = torch.tensor([[4, 0, 6]])
    assert torch.equal(table(tokens), F.embedding(tokens, table.weight))
    model = torch.nn.Sequential(table, torch.nn.Linear(3, 3)).to("meta")
    assert table.weight.device.type == "cpu"
    assert model[1].weight.device.type == "meta"


needs_cuda = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]


@pytest.mark.parametrize("tokens", [pytest.param(3000, marks=needs_cuda)])
def test_on_a_gpu_what_went_to_the_host_comes_back_unchanged(make_pair: Callable, tokens: int) -> None:
    """With rows of several thousand tokens copies take as long as products: one that is used too early would show."""
    model, _ = make_pair(num_hidden_layers=6, hidden_size=256, intermediate_size=512)
    add_lora(model, 16, 32.0, ALL)
    randomize(model)
    for parameter in model.cuda().parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    store = OffloadStore(6)
    blocks = blocks_of(model)
    least: list[Forward] = [LowMemoryBlock(block, store, i, fp8=False, tokens_at_once=1024) for i, block in enumerate(blocks)]
    fused: list[Forward] = [LoraBlock(block, fp8=False, keep_all=False) for block in blocks]
    for length in (tokens, tokens // 2, tokens):  # host memory is used again
        x = torch.randn(1, length, 256, device="cuda", dtype=torch.bfloat16).requires_grad_()
        grad = torch.randn_like(x)
        results = []
        for forwards in (fused, least):
            model.zero_grad()
            x.grad = None
            cos, sin = rope_tables(model.config, torch.arange(length, device="cuda")[None])
            out = x
            for forward in forwards:
                out = forward(out, cos, sin, make_documents([length]).to(x.device))
            out.backward(grad)
            named = model.model.layers.named_parameters()
            results.append(
                {name: p.grad.float() for name, p in named if p.grad is not None} | {"x": x.grad, "out": out.detach()}
            )
        for name, expected in results[0].items():
            # bfloat16; sums over pieces are rounded once more often
            cosine = F.cosine_similarity(results[1][name].float().flatten(), expected.float().flatten(), 0)
            assert cosine > 0.999, name
        assert not store.arrived


@pytest.mark.parametrize("num_tokens", [pytest.param(1000, marks=needs_cuda)])
def test_a_gpu_reads_the_rows_of_a_table_on_the_host(num_tokens: int) -> None:
    table = OffloadedEmbedding(torch.Size([500, 96]), torch.bfloat16, pinned=True)
    with torch.no_grad():
        table.weight.copy_(torch.randn(500, 96))
    tokens = torch.randint(0, 500, (1, num_tokens))
    assert torch.equal(table(tokens.cuda()).cpu(), table(tokens))
