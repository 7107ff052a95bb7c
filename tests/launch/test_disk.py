"""Room on the disk is compared with what a run will write, before it starts."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from finetuning.cli.main import main
from finetuning.config.llama import read_llama_config
from finetuning.config.settings import RunConfig
from finetuning.errors import EXIT_BAD_INPUT
from finetuning.launch import disk
from finetuning.launch.disk import STORED, DiskPlan, plan_disk
from finetuning.launch.prepare import prepare
from finetuning.training.split_adamw import SplitAdamW

pytestmark = pytest.mark.unit

PLAN = DiskPlan(checkpoint=10, kept=3, written=20, export=16, tokens=0, there=0, free=100)


@pytest.mark.parametrize(
    ("changed", "needed"),
    [
        ({}, 46),  # three that stay, and the result
        ({"export": 4}, 40),  # three that stay, and a fourth that is written
        ({"written": 1}, 26),
        ({"written": 0}, 16),
        ({"there": 30}, 16),  # the old ones give way
        ({"there": 10, "written": 1}, 26),  # or stay, where there are few
        ({"there": 90}, 16),
        ({"tokens": 5}, 51),
    ],
)
def test_the_fullest_moment_counts(changed: dict[str, int], needed: int) -> None:
    assert dataclasses.replace(PLAN, **changed).needed == needed


@pytest.mark.parametrize("states", ["bf16", "8bit"])
def test_what_is_stored_of_a_parameter_is_what_the_optimizer_keeps(states: str) -> None:
    weight = nn.Parameter(torch.zeros(256, 512, dtype=torch.bfloat16))
    optimizer = SplitAdamW([weight], lr=1.0, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.0, eight_bit=states == "8bit")
    kept = [weight.data, *optimizer.new_state(weight).values()]
    assert sum(value.nbytes for value in kept) == pytest.approx(STORED[states] * weight.numel(), rel=1e-3)


def test_a_run_counts_its_checkpoints_and_its_result(
    settings: Callable[..., RunConfig], tiny_model: Path, tmp_path: Path
) -> None:
    config = settings(max_steps=10, save_every_n_steps=4, keep_last=1)
    run = prepare(config, None, tmp_path / "a" / "b", tmp_path / "tokens", with_weights=False).run
    model = read_llama_config(tiny_model)
    plan = plan_disk(run, model, 0, 0)
    assert (plan.kept, plan.written, plan.num_checkpoints) == (2, 3, 3)  # the newest and the best; at steps 4, 8 and 10
    assert plan.checkpoint == 12 * model.num_parameters
    assert plan.export in (2 * model.num_parameters, 4 * model.num_parameters)
    assert plan_disk(run, model, 8, 0).written == 1
    assert plan_disk(dataclasses.replace(run, save_every_n_steps=None), model, 0, 0).written == 3  # nobody knows how many
    assert plan_disk(dataclasses.replace(run, save_every_n_steps=None), model, 9, 0).written == 1
    (tmp_path / "a" / "b" / "checkpoints" / "step=000004").mkdir(parents=True)
    (tmp_path / "a" / "b" / "checkpoints" / "step=000004" / "x").write_bytes(bytes(1000))
    assert plan_disk(run, model, 4, 0).there == 1000
    lora = prepare(settings(peft="lora"), None, tmp_path / "c", tmp_path / "tokens", with_weights=False)
    assert lora.disk.checkpoint < plan.checkpoint
    assert lora.disk.export == lora.disk.checkpoint // 3


def test_a_run_that_cannot_fit_is_refused_with_what_would_work_and_nothing_is_left(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    free = int(3.5 * 12 * 127_296)  # for three checkpoints, not for four
    monkeypatch.setattr(disk, "GIB", 1.0)  # so that the sizes can be read
    usage = disk.shutil.disk_usage(tmp_path)
    monkeypatch.setattr("finetuning.launch.disk.shutil.disk_usage", lambda path: usage._replace(free=free))
    given = ["--save_every_n_steps", "1", "--keep_last", "3"]
    for dry in ([], ["--dryrun"]):
        assert main([*arguments, *given, *dry]) == EXIT_BAD_INPUT
        said = capsys.readouterr().err
        assert f"{tmp_path}/experiments/tiny: the run needs " in said
        assert f" and {free:.1f} GiB are free (5 checkpoints of {12 * 127_296:.1f} GiB, the result " in said
        assert "; what would work: --keep_last 1, --save_every_n_steps 5, an --experiments_dir with more room" in said
    assert not (tmp_path / "experiments" / "tiny").exists()


def test_the_speed_of_a_disk_is_measured_and_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "PROBE_BYTES", 2**20)
    speed = disk.bytes_written_per_s(tmp_path)
    assert speed > 0 and not list(tmp_path.iterdir())
    assert f"a checkpoint is written in about 10 s ({1e9 / 1e9:.1f} GB/s)" in disk.describe(
        dataclasses.replace(PLAN, checkpoint=10**10), 1e9
    )
    assert "is written in" not in disk.describe(PLAN, None) + disk.describe(dataclasses.replace(PLAN, written=0), 1e9)
