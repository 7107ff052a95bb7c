"""In float32, what a layout differs by is rounding: it is no further from the float64 gradient than one process is."""

import pytest
import torch
import torch.distributed as dist

from finetuning.config.degrees import Degrees
from finetuning.config.strategy import Strategy
from finetuning.parallel.mesh import Layout
from finetuning.parallel.selftest import differences_between, in_layout, one_process, random_rows, tiny_config
from tests.parallel.layouts import CPU, FULL, LENGTH, LORA, NUM_ROWS
from tests.processes import run_processes

pytestmark = [pytest.mark.dist, pytest.mark.slow]  # evidence for docs/parallelism.md; the float64 cases guard the layouts

LAYOUTS = {2: [Degrees(tp=2), Degrees(cp=2), Degrees(dp_shard=2)], 4: [Degrees(tp=4), Degrees(cp=2, tp=2)]}


def distances(layouts: list[Degrees], strategy: Strategy) -> list[tuple[float, float]]:
    """For each layout, and for one process, the largest distance from float64 relative to the gradient's largest entry."""
    found = []
    for degrees in layouts:
        config, layout = tiny_config(degrees), Layout("cpu", degrees)
        rows = random_rows(config, NUM_ROWS, LENGTH)
        gradients = in_layout(config, strategy, layout, rows, CPU)[2]
        if dist.get_rank() == 0:
            alone, exact = (one_process(config, strategy, rows, CPU, dtype)[2] for dtype in (torch.float32, torch.float64))
            pair = (max(differences_between(some, exact)[1].values()) for some in (gradients, alone))
            found.append((next(pair), next(pair)))
    return found


@pytest.mark.parametrize("processes", LAYOUTS)
@pytest.mark.parametrize("strategy", [FULL, LORA], ids=["full", "lora"])
def test_no_layout_is_much_further_from_float64_than_one_process(processes: int, strategy: Strategy) -> None:
    for layout, (of_layout, of_one_process) in zip(
        LAYOUTS[processes], run_processes(processes, distances, LAYOUTS[processes], strategy)[0], strict=True
    ):
        print(f"{layout}: {of_layout:.1e}, one process {of_one_process:.1e}")
        # Another order of summation is another draw of the same rounding: up to half as much again has been seen.
        assert 0 < of_layout < 2 * of_one_process, layout
        assert of_one_process < 3e-6
