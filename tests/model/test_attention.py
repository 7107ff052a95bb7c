"""Attention inside documents against a masked softmax in float64."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from finetuning.model.attention import Documents, document_attention, look_for_flash_4, make_documents
from tests.closeness import ROUNDING, assert_near

pytestmark = pytest.mark.unit

# One row of 9 tokens, cut in several ways: alone, first and last of one token, all of one token.
LAYOUTS = [[9], [1, 8], [8, 1], [3, 1, 5], [1] * 9]


def test_boundaries_and_extent_are_those_of_the_example() -> None:
    documents = make_documents([3, 2])
    assert documents.boundaries[:3].tolist() == [0, 3, 5]
    assert documents.extent.tolist() == [2, 3]
    assert (documents.boundaries.dtype, documents.extent.dtype) == (torch.int32, torch.int64)


def test_the_longest_document_counts_wherever_it_stands() -> None:
    assert [make_documents(lengths).extent.tolist() for lengths in LAYOUTS] == [[1, 9], [2, 8], [2, 8], [3, 5], [9, 1]]


def test_the_shape_of_the_boundaries_depends_on_the_row_length_only() -> None:
    shapes = {make_documents(lengths).boundaries.shape for lengths in LAYOUTS}
    assert len(shapes) == 1


@pytest.mark.parametrize("lengths", LAYOUTS, ids=str)
@pytest.mark.parametrize("key_value_heads", [1, 2, 4])
def test_output_and_gradients_equal_a_masked_softmax(lengths: list[int], key_value_heads: int) -> None:
    inputs = random_inputs(sum(lengths), heads=4, key_value_heads=key_value_heads)
    copies = [x.detach().double().requires_grad_() for x in inputs]
    weights = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1))

    found = document_attention(*inputs, make_documents(lengths))
    (found * weights).sum().backward()
    expected = masked_softmax_attention(*copies, lengths)
    (expected * weights.double()).sum().backward()

    assert_near(found, expected)
    for mine, reference in zip(inputs, copies, strict=True):
        if reference.grad.count_nonzero():
            assert_near(mine.grad, reference.grad)
        else:  # documents of one token read their value, whatever query and key are
            assert mine.grad.norm() < ROUNDING


def test_a_document_does_not_see_the_others() -> None:
    q, k, v = random_inputs(9)
    before = document_attention(q, k, v, make_documents([4, 5]))
    with torch.no_grad():
        k[:4] += 1
        v[:4] -= 1
    after = document_attention(q, k, v, make_documents([4, 5]))
    assert torch.equal(before[4:], after[4:])
    assert not torch.equal(before[:4], after[:4])


def test_a_token_does_not_see_later_ones() -> None:
    q, k, v = random_inputs(9)
    before = document_attention(q, k, v, make_documents([9]))
    with torch.no_grad():
        k[6:] += 1
        v[6:] -= 1
    after = document_attention(q, k, v, make_documents([9]))
    assert_near(before[:6], after[:6])
    assert not torch.isclose(before[6:], after[6:]).all(-1).any()


def test_a_document_of_one_token_is_its_own_value() -> None:
    q, k, v = random_inputs(3, heads=4, key_value_heads=2)
    out = document_attention(q, k, v, make_documents([1, 1, 1]))
    assert_near(out, v.repeat_interleave(2, dim=1))


def test_moving_documents_keeps_the_extent_on_the_cpu() -> None:
    moved = make_documents([3, 2]).to(torch.device("meta"))
    assert moved.boundaries.is_meta
    assert moved.extent.tolist() == [2, 3]


def test_the_operator_keeps_the_compilers_rules() -> None:
    documents = make_documents([4, 5])
    inputs = random_inputs(9, heads=4, key_value_heads=2)
    torch.library.opcheck(torch.ops.finetuning.document_attention.default, (*inputs, documents.boundaries, documents.extent))


HOPPER, AMPERE = (9, 0), (8, 0)


def install(folder: Path, version: str, **modules: str) -> None:
    """A distribution of FlashAttention-4, as pip leaves it, with these files of `flash_attn.cute`."""
    info = folder / f"flash_attn_4-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: flash-attn-4\nVersion: {version}\n")
    for name, text in modules.items():
        (folder / "flash_attn" / "cute").mkdir(parents=True, exist_ok=True)
        (folder / "flash_attn" / "cute" / f"{name}.py").write_text(text)


@pytest.mark.parametrize(
    ("version", "capability", "modules", "said"),
    [
        (None, HOPPER, {}, None),
        ("4.0.0b99", HOPPER, {}, "4.0.0b99 is installed and not used: only 4.0.0b36 is; pip install flash-attn-4==4.0.0b36"),
        ("4.0.0b36", AMPERE, {}, "not used: it needs a Hopper GPU or a newer one"),
        ("4.0.0b36", HOPPER, {"interface": "import cutlass.cute"}, "is missing: No module named 'cutlass'"),
        ("4.0.0b36", HOPPER, {"interface": "_flash_attn_fwd = 1"}, "is missing: cannot import name '_flash_attn_bwd'"),
        ("4.0.0b36", HOPPER, {"interface": "_flash_attn_fwd = _flash_attn_bwd = print"}, None),
    ],
)
def test_a_faster_kernel_that_is_installed_is_used_or_it_is_said_why_not(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: str | None,
    capability: tuple[int, int],
    modules: dict[str, str],
    said: str | None,
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "flash_attn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    if version is not None:
        install(tmp_path, version, **modules)
    found = look_for_flash_4(capability)
    for name in [name for name in sys.modules if name.partition(".")[0] == "flash_attn"]:
        monkeypatch.delitem(sys.modules, name)
    assert (found.kernels is not None) == (said is None and version is not None)
    assert said in found.unused_because if said else found.unused_because is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(
    "lengths",
    [[300], [1, 299], [128, 1, 171], [1] * 300, [4100], [4096, 4]],
    ids=lambda lengths: f"{sum(lengths)} in {len(lengths)}",
)
def test_the_flash_operator_equals_a_masked_softmax(lengths: list[int]) -> None:
    inputs = [
        x.detach().to("cuda", torch.bfloat16).requires_grad_()
        for x in random_inputs(sum(lengths), heads=8, key_value_heads=2, size=64)
    ]
    copies = [x.detach().double().requires_grad_() for x in inputs]
    documents = make_documents(lengths).to(torch.device("cuda"))

    found = document_attention(*inputs, documents)
    found.float().square().sum().backward()
    expected = masked_softmax_attention(*copies, lengths)
    expected.square().sum().backward()

    # bfloat16 keeps 8 bits; the errors of single elements are independent, so 1 % of the norm is generous.
    pairs = [(found, expected), *((mine.grad, reference.grad) for mine, reference in zip(inputs, copies, strict=True))]
    for value, reference in pairs:
        assert (value.double() - reference).norm() < 0.01 * (reference.norm() + expected.detach().norm())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_flash_operator_keeps_the_compilers_rules() -> None:
    inputs = [
        x.detach().to("cuda", torch.bfloat16).requires_grad_() for x in random_inputs(64, heads=8, key_value_heads=2, size=64)
    ]
    documents: Documents = make_documents([40, 24]).to(torch.device("cuda"))
    torch.library.opcheck(torch.ops.finetuning.document_attention.default, (*inputs, documents.boundaries, documents.extent))


def random_inputs(length: int, heads: int = 2, key_value_heads: int = 2, size: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [T, N, H], keys and values [T, K, H]."""
    generator = torch.Generator().manual_seed(5)
    shapes = [(length, count, size) for count in (heads, key_value_heads, key_value_heads)]
    q, k, v = (torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)
    return q, k, v


def masked_softmax_attention(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, lengths: list[int]) -> Tensor:
    """The definition, with the whole T x T matrix; query head n reads key/value head n // (N / K)."""
    group = q_TNH.shape[1] // k_TKH.shape[1]
    heads = torch.arange(q_TNH.shape[1], device=q_TNH.device) // group
    scores = torch.einsum("tnh,snh->nts", q_TNH, k_TKH[:, heads]) * q_TNH.shape[2] ** -0.5
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(q_TNH.device)
    allowed = (document[:, None] == document[None]).tril()
    return torch.einsum("nts,snh->tnh", scores.masked_fill(~allowed, -torch.inf).softmax(-1), v_TKH[:, heads])
