"""The kernels of a step with one new token per sequence, against the formulas of `decode_ops` in float64 on the CPU."""

import pytest
import torch
from torch import Tensor

from finetuning.model.kernels import decode_ops
from finetuning.model.sampling import row_keys

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # two or three roundings
NUM_HEADS, KEY_VALUE_HEADS, PAGE, PAGES, SLOTS = 8, 2, 64, 6, 3


def matrix(*shape: int, dtype: torch.dtype, std: float = 1.0) -> Tensor:
    return (torch.randn(shape, device="cuda") * std).to(dtype)


def assert_close(found: Tensor, expected: Tensor) -> None:
    difference = torch.linalg.vector_norm(found.double().cpu() - expected.double().cpu())
    assert difference <= TOLERANCES[found.dtype] * torch.linalg.vector_norm(expected.double().cpu())


def exact(*tensors: Tensor) -> list[Tensor]:
    return [tensor.double().cpu() if tensor.is_floating_point() else tensor.cpu() for tensor in tensors]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("size", [96, 4096, 4128])
def test_products_are_right_with_what_stands_before_and_behind_them(size: int, rows: int, dtype: torch.dtype) -> None:
    x, weight = matrix(rows, size, dtype=dtype), matrix(338, size, dtype=dtype, std=size**-0.5)
    norm, residual = matrix(1, size, dtype=dtype)[0], matrix(rows, 338, dtype=dtype)
    x64, weight64, norm64, residual64 = exact(x, weight, norm, residual)
    normed64 = x64 * torch.rsqrt(x64.pow(2).mean(-1, keepdim=True) + 1e-5) * norm64
    gate64, up64 = (normed64 @ weight64.t()).chunk(2, -1)
    assert_close(decode_ops.product(x, weight), x64 @ weight64.t())
    assert_close(decode_ops.norm_product(x, (norm, 1e-5), weight), normed64 @ weight64.t())
    assert_close(decode_ops.norm_gate_product(x, (norm, 1e-5), weight), torch.nn.functional.silu(gate64) * up64)
    assert decode_ops.add_product(x, weight, residual) is residual
    assert_close(residual, x64 @ weight64.t() + residual64)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("splits", [1, 2, 8, None])
@pytest.mark.parametrize("head_dim", [40, 128])
def test_a_query_sees_the_positions_of_its_slot_up_to_its_own(head_dim: int, splits: int | None, dtype: torch.dtype) -> None:
    from finetuning.model.kernels import triton_decode

    keys, values = (matrix(SLOTS * PAGES + 1, KEY_VALUE_HEADS, PAGE, head_dim, dtype=dtype) for _ in range(2))
    pages = (torch.randperm(SLOTS * PAGES, device="cuda") + 1).view(SLOTS, PAGES).int()
    position = torch.tensor([0, PAGES * PAGE - 1, 100], device="cuda")
    qkv = matrix(SLOTS, (NUM_HEADS + 2 * KEY_VALUE_HEADS) * head_dim + 8, dtype=dtype)
    angles = torch.randn(PAGES * PAGE, head_dim // 2, device="cuda")
    tables = angles.cos(), angles.sin()
    qkv64, keys64, values64, pages64, position64 = exact(qkv, keys, values, pages, position)
    cos64, sin64 = exact(*tables)
    q64 = decode_ops.rotate_and_store(qkv64, (cos64, sin64), position64, pages64, (keys64, values64), NUM_HEADS)
    q = decode_ops.rotate_and_store(qkv, tables, position, pages, (keys, values), NUM_HEADS)
    for found, expected in ((q, q64), (keys, keys64), (values, values64)):
        assert_close(found, expected)
    found = triton_decode.paged_attention(q, (keys, values), pages, position, splits)
    assert_close(found, decode_ops.paged_attention(q64, (keys64, values64), pages64, position64))


def test_the_numbers_that_decide_a_draw_are_those_of_the_cpu() -> None:
    keys, logits = row_keys(2**62 + 3, torch.arange(3), torch.arange(3)), torch.randn(3, 9000)
    found = decode_ops.add_gumbel(logits.cuda(), keys.cuda()).cpu()
    assert (found - decode_ops.add_gumbel(logits, keys)).abs().max() < 1e-5
