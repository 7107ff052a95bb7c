"""Runs many layouts in one group of processes: starting processes costs more than a tiny training step."""

import traceback
from dataclasses import dataclass

import torch
import torch.distributed as dist

from finetuning.parallel.apply import Technique
from finetuning.parallel.mesh import Degrees, Layout
from finetuning.parallel.stages import stage_indices
from finetuning.selftest import Comparison, compare, random_rows, tiny_config

CPU = torch.device("cpu")
NUM_ROWS, LENGTH = 8, 64


@dataclass(frozen=True)
class Case:
    degrees: Degrees
    technique: Technique
    tied: bool = False


def compare_all(cases: list[Case]) -> list[Comparison | str | None]:
    """Each case against one process: the comparison on rank 0, None on other ranks, or the traceback where it failed."""
    results: list[Comparison | str | None] = []
    for case in cases:
        try:
            assert case.degrees.world_size == dist.get_world_size()
            layout = Layout("cpu", case.degrees)
            stages_per_rank = len(stage_indices(case.technique.pipeline_schedule, case.degrees.pp, 0))
            config = tiny_config(case.degrees, stages_per_rank=stages_per_rank, tied=case.tied)
            results.append(compare(config, case.technique, layout, random_rows(config, NUM_ROWS, LENGTH), CPU))
        except Exception:  # noqa: BLE001 - the test of this case shows it
            results.append(traceback.format_exc())
    return results
