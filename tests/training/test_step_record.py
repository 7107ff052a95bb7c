"""When the records of a step are on disk. (Whole runs: tests/test_finetune_end_to_end.py.)"""

import io
import itertools
import os
import re
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from rich.console import Console

from finetuning.checkpoint.background import BackgroundSaves
from finetuning.config.degrees import Degrees
from finetuning.config.llama import read_llama_config
from finetuning.config.run import Run
from finetuning.config.settings import RunConfig
from finetuning.config.strategy import PackPlan, Strategy
from finetuning.data.batches.global_batch import GlobalBatches
from finetuning.data.batches.ledger import LEDGER_FILE, read_ledger
from finetuning.data.tokens.tokenized import open_split
from finetuning.formats.own.weights import CheckpointSource
from finetuning.formats.weight_source import llama_shapes
from finetuning.parallel.mesh import Layout
from finetuning.runtime.progress import Progress
from finetuning.runtime.stop_switch import StopSwitch
from finetuning.storage.dcp_reader import ShardedFiles
from finetuning.training import display as shown
from finetuning.training.display import TrainingDisplay
from finetuning.training.evaluate import Evaluation
from finetuning.training.lightning_shell import FineTuning, MeshStrategy
from finetuning.training.metrics import read_metrics
from finetuning.training.step_record import StepRecord
from tests.models import build
from tests.processes import run_processes
from tests.references import random_split

pytestmark = pytest.mark.dist

MAX_STEPS = 6
VAL_LOSSES = (3.0, 2.0, 2.5, 1.0, 4.0, 1.0)


def train(model_folder: Path, folder: Path, fails_in_step: int | None, due: tuple[int, ...] | None = None) -> dict[str, Any]:
    """Six steps, of which the second and the fourth are saved; what is on disk then, while steps run, and at the end.

    With `due`, nobody has said how often; these steps are due, and they are saved indeed.
    """
    os.environ["LOCAL_RANK"] = "0"
    config = RunConfig(hf_model_id=str(model_folder), dataset_path="data", global_batch_size=2, save_every_n_steps=2)
    run = Run(
        config,
        str(folder),
        device="cpu",
        model_path=str(model_folder),
        tokens_dir=str(folder),
        sources={},
        strategy=Strategy(sharding="full", optimizer_states="fp32"),
        max_steps=MAX_STEPS,
        warmup_steps=0,
        val_check_interval=1,
        save_every_n_steps=2 if due is None else None,
        end_token_ids=(),
        initial_weights=None,
        identity={},
    )
    split = open_split(folder / "split")
    at_saves, while_steps_run = [], []

    def on_disk() -> tuple[list[int], list[int]]:
        entries = list(read_ledger(folder / LEDGER_FILE))
        return [int(row["step"]) for row in read_metrics(folder / "metrics.csv")], [entry.step for entry in entries]

    def stop_requested() -> bool:
        while_steps_run.append(on_disk())
        if len(while_steps_run) == fails_in_step:
            raise ValueError("not my day")
        return False

    class Record(StepRecord):
        def _save(self, trainer: pl.Trainer, step: int, val_loss: float | None) -> bool:
            at_saves.append((step, on_disk()))
            return False if due is None else super()._save(trainer, step, val_loss)

    batches = GlobalBatches(
        split,
        start_step=0,
        max_steps=MAX_STEPS,
        global_batch_size=2,
        seed=1,
        data_rank=0,
        data_parallel_size=1,
        plan=PackPlan(64, 8, 0.01),
    )
    val_losses, steps_begun = iter(VAL_LOSSES), itertools.count(1)
    log = io.StringIO()
    shown.PLAIN_INTERVAL_S = 0.0
    display = TrainingDisplay(Console(file=io.StringIO()), Console(file=log, width=200), MAX_STEPS, 1)
    progress = Progress()
    saves = BackgroundSaves(torch.device("cpu"), progress, display.message)
    record = Record(
        run,
        display,
        None,
        validate=lambda leaves: Evaluation(next(val_losses), 1, 1),
        before_first_step=lambda: None,
        training_split=split,
        trackers=None,
        stop=StopSwitch(progress),
        saves=saves,
        rule=None,
    )
    strategy = MeshStrategy(Layout("cpu", Degrees()), saves, max_steps=MAX_STEPS, keep_last=2, identity={}, origin={})
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        strategy=strategy,
        max_steps=MAX_STEPS,
        max_epochs=-1,
        callbacks=[record],
        logger=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    with pytest.raises(ValueError, match="not my day") if fails_in_step else nullcontext():
        module = FineTuning(
            run, lambda: build(model_folder), stop_requested, save_is_due=lambda: next(steps_begun) in (due or ())
        )
        with saves:
            trainer.fit(module, batches)
    return {"at saves": at_saves, "while steps run": while_steps_run, "at the end": on_disk(), "log": log.getvalue()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random_split(tmp_path / "split", [40, 30, 20, 12], [10, 9, 8, 7])
    return tmp_path


def until(step: int) -> tuple[list[int], list[int]]:
    return list(range(1, step + 1)), list(range(1, step + 1))


def test_a_step_is_on_disk_before_the_checkpoint_that_claims_it_and_otherwise_written_in_the_next(
    tiny_model: Path, folder: Path
) -> None:
    (found,) = run_processes(1, train, tiny_model, folder, None)
    assert found["at saves"] == [(step, until(step)) for step in (2, 4, 6)]
    assert found["while steps run"] == [until(step) for step in (0, 0, 2, 2, 4, 4)]
    assert found["at the end"] == until(MAX_STEPS)


def test_the_validation_of_a_step_is_shown_after_the_step(tiny_model: Path, folder: Path) -> None:
    (found,) = run_processes(1, train, tiny_model, folder, None)
    words = [re.match(r"step (\d)(/6  loss|: validation loss)", line).groups() for line in found["log"].splitlines()]
    assert words == [(str(step), kind) for step in range(1, 7) for kind in ("/6  loss", ": validation loss")]


def test_a_step_is_on_disk_when_the_next_one_fails(tiny_model: Path, folder: Path) -> None:
    (found,) = run_processes(1, train, tiny_model, folder, 4)
    assert found["at the end"] == until(3)


def test_where_nobody_said_how_often_it_saves_when_due_and_at_the_end_and_keeps_the_best_weights(
    tiny_model: Path, folder: Path
) -> None:
    (found,) = run_processes(1, train, tiny_model, folder, None, (3,))
    assert found["at saves"] == [(3, until(3)), (6, until(6))]
    saved = re.findall(r"step (\d): (checkpoint|best weights so far) saved", found["log"])
    assert saved == [(step, "best weights so far" if step in "124" else "checkpoint") for step in "12346"]
    checkpoints = folder / "checkpoints"
    assert {path.name for path in checkpoints.iterdir()} == {"step=000003", "step=000006", "best-step=000004", "latest", "best"}
    assert (checkpoints / "latest").readlink() == Path("step=000006")
    assert (checkpoints / "best").readlink() == Path("best-step=000004")
    best, newest = ShardedFiles(checkpoints / "best"), ShardedFiles(checkpoints / "latest")
    assert set(best.tensors) == {name for name in newest.tensors if name.startswith("model.")}
    config = read_llama_config(tiny_model)
    assert CheckpointSource(checkpoints / "best", config).shapes() == llama_shapes(config)  # what an export reads


def test_the_time_between_steps_is_recorded_and_adds_up_with_theirs(tiny_model: Path, folder: Path) -> None:
    run_processes(1, train, tiny_model, folder, None)
    rows = read_metrics(folder / "metrics.csv")
    for before, row in pairwise(rows):
        passed_s = float(row["time"]) - float(before["time"])
        assert float(row["other_seconds"]) + float(row["seconds"]) == pytest.approx(passed_s, abs=0.05)
