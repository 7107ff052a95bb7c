"""Products of tokens that arrive, and of sums that leave, are those of collectives before and after."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from finetuning.parallel.collectives import gather, name_group, reduce_scatter
from finetuning.parallel.ring import gather_matmul, matmul_scatter
from tests.processes import run_processes

pytestmark = pytest.mark.dist

TOKENS, INPUTS, WIDTHS = 4, 5, (3, 1, 6)


def random(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * dist.get_rank() + seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def gathered_both_ways() -> list[tuple[Tensor, Tensor]]:
    group = name_group(dist.group.WORLD)
    part, matrices = random(TOKENS, INPUTS, seed=0), [random(INPUTS, width, seed=width) for width in WIDTHS]
    weights = [random(TOKENS * dist.get_world_size(), width, seed=50 + width).detach() for width in WIDTHS]
    found = gather_matmul(part, matrices, group)[1:]
    expected = [gather(part, group, 0) @ matrix for matrix in matrices]
    return [*zip(found, expected, strict=True), *gradients_of_both(found, expected, weights, [part, *matrices])]


def scattered_both_ways() -> list[tuple[Tensor, Tensor]]:
    group = name_group(dist.group.WORLD)
    inputs = [random(TOKENS * dist.get_world_size(), width, seed=width) for width in WIDTHS]
    matrices = [random(width, INPUTS, seed=50 + width) for width in WIDTHS]
    weight = random(TOKENS, INPUTS, seed=0).detach()
    found = matmul_scatter(inputs, matrices, group)
    whole = torch.stack([x @ matrix for x, matrix in zip(inputs, matrices, strict=True)]).sum(0)
    expected = reduce_scatter(whole, group, 0)
    return [(found, expected), *gradients_of_both([found], [expected], [weight], [*inputs, *matrices])]


def gradients_of_both(
    found: list[Tensor], expected: list[Tensor], weights: list[Tensor], leaves: list[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    sums = [torch.stack([(x * w).sum() for x, w in zip(outputs, weights, strict=True)]).sum() for outputs in (found, expected)]
    return list(zip(*(torch.autograd.grad(total, leaves) for total in sums), strict=True))


@pytest.mark.parametrize("both_ways", [gathered_both_ways, scattered_both_ways])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_outputs_and_gradients_are_those_of_a_product_and_a_collective(both_ways: object, processes: int) -> None:
    for pairs in run_processes(processes, both_ways):  # type: ignore[arg-type]
        assert len(pairs) >= 7
        for found, expected in pairs:
            torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)  # float64
