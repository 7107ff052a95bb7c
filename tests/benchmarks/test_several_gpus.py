"""benchmarks/several_gpus.py: every case of its tables is one that the commands accept, and one of them runs here."""

import dataclasses
from pathlib import Path

import pytest

from benchmarks.several_gpus import CASES, MOVES, PARITY, SHAPE_8B, SHAPE_SMALL, Bench, Case, train
from finetuning.cli.main import build_parser, resolve_config
from finetuning.cli.selftest import _parse
from finetuning.config.rules import check_layout, check_settings
from tests.config.test_memory import LLAMA31_8B


def problems(flags: tuple[str, ...], gpus: int, batch: int) -> list[str]:
    arguments = [
        "--hf_model_id",
        "m",
        "--dataset_path",
        "d",
        "--num_gpus",
        str(gpus),
        "--global_batch_size",
        str(batch),
        *flags,
    ]
    given = vars(build_parser("finetune train").parse_args(arguments))
    config = resolve_config(
        {name: value for name, value in given.items() if name not in ("hf_token", "config", "dryrun")}, None
    )
    return check_settings(config) + check_layout(config, LLAMA31_8B)


@pytest.mark.unit
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_speed_case_is_accepted_for_the_8b(case: Case) -> None:
    for gpus in MOVES:
        if gpus >= case.degree:
            assert problems(case.flags, gpus, case.batch_per_gpu * gpus) == []


@pytest.mark.unit
@pytest.mark.parametrize("gpus", MOVES)
def test_both_layouts_of_a_resume_are_accepted(gpus: int) -> None:
    assert [problems(flags, gpus, 32 * gpus) for flags in MOVES[gpus]] == [[], []]


@pytest.mark.unit
@pytest.mark.parametrize(("gpus", "flags"), PARITY.values(), ids=PARITY)
def test_every_layout_is_one_that_the_selftest_accepts(gpus: int, flags: tuple[str, ...]) -> None:
    config, _ = _parse(["--num_gpus", str(gpus), *flags])
    assert check_settings(config) + check_layout(config, None) == []
    assert config.world_size == gpus


@pytest.mark.unit
def test_the_small_model_differs_in_its_numbers_only() -> None:
    assert SHAPE_SMALL.keys() == SHAPE_8B.keys()
    assert {name: dataclasses.asdict(LLAMA31_8B)[name] for name in SHAPE_8B} == SHAPE_8B


@pytest.mark.dist
def test_a_case_runs_on_cpu_processes_and_tells_speed_memory_and_messages(tmp_path: Path) -> None:
    row = train(Bench(tmp_path, "cpu", small=True, layers=1), "full-tp2", 2)
    assert row["exit_code"] == 0
    assert row["tokens_per_second_of_each"] == pytest.approx(row["tokens_per_second"] / 2, abs=0.5)
    assert 0 < row["waits"]["only_messages"] <= row["waits"]["messages"] < 1
    assert row["planned_gib"] > 2  # the allowance alone
    assert not list((tmp_path / "experiments").glob("full-*"))  # an export of the 8B takes 16 GB
