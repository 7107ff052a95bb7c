"""A stop in a validation: saved at once, and made up for. (Whole runs: tests/launch/test_ends.py.)"""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from rich.console import Console

from finetuning.checkpoint.background import BackgroundSaves
from finetuning.checkpoint.files import find_checkpoints
from finetuning.checkpoint.sound import newest_checkpoint
from finetuning.config.degrees import Degrees
from finetuning.config.run import Run
from finetuning.config.settings import RunConfig
from finetuning.config.strategy import PackPlan, Strategy
from finetuning.data.batches.global_batch import GlobalBatches
from finetuning.data.tokens.tokenized import open_split
from finetuning.parallel.mesh import Layout
from finetuning.runtime.progress import Progress
from finetuning.runtime.stop_switch import StopSwitch
from finetuning.training.display import TrainingDisplay
from finetuning.training.evaluate import Evaluation, evaluate
from finetuning.training.lightning_shell import FineTuning, MeshStrategy, OwnCheckpoints
from finetuning.training.metrics import read_metrics
from finetuning.training.step_record import StepRecord
from tests.models import build
from tests.processes import run_processes
from tests.references import random_split

pytestmark = pytest.mark.dist

MAX_STEPS = 6
PLAN = PackPlan(64, 8, 0.01)


def six_steps(model_folder: Path, folder: Path) -> Run:
    """Each of them is validated, none but the last is saved."""
    config = RunConfig(hf_model_id=str(model_folder), dataset_path="data", global_batch_size=2, keep_last=9)
    return Run(
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
        save_every_n_steps=100,
        end_token_ids=(),
        initial_weights=None,
        identity={},
    )


def train_until(
    model_folder: Path, folder: Path, name: str, asked: tuple[int, int] | None
) -> tuple[list[dict[str, str]], list[tuple[int, float | None]], bool]:
    """Goes on with the run `name`, each step of which is validated; on the last rank somebody asks to stop.

    Args:
        asked: in the validation after this step, after this many of its rows.

    Returns:
        What metrics.csv says of the losses, the checkpoints (step, validation loss), and whether it was stopped.
    """
    os.environ["LOCAL_RANK"] = str(dist.get_rank())
    os.environ["LOCAL_WORLD_SIZE"] = str(dist.get_world_size())
    experiment = folder / name
    (experiment / "checkpoints").mkdir(parents=True, exist_ok=True)
    run = six_steps(model_folder, experiment)
    training, validation = open_split(folder / "split"), open_split(folder / "validation")
    stop = StopSwitch(Progress())
    resumed, _ = newest_checkpoint(experiment / "checkpoints")
    rows_done = 0

    def beat() -> None:
        nonlocal rows_done
        rows_done += 1
        if asked == (stop.progress.step, rows_done) and dist.get_rank() == dist.get_world_size() - 1:
            stop.requested = True

    def validate(leaves: Callable[[], bool]) -> Evaluation | None:
        nonlocal rows_done
        rows_done = 0
        assert module.net is not None
        found = evaluate(module.net, validation, PLAN, beat, leaves)
        assert found is not None or rows_done == (asked or (0, 0))[1], "left after the row in which it was asked to"
        return found

    silent = Console(file=io.StringIO())
    saves = BackgroundSaves(torch.device("cpu"), stop.progress, lambda text: None)
    record = StepRecord(
        run,
        TrainingDisplay(silent, silent, MAX_STEPS, 2) if dist.get_rank() == 0 else None,
        resumed,
        validate=validate,
        before_first_step=lambda: None,
        training_split=training,
        trackers=None,
        stop=stop,
        saves=saves,
        rule=None,
    )
    layout = Layout("cpu", Degrees(dp_shard=dist.get_world_size()))
    batches = GlobalBatches(
        training,
        start_step=resumed.step if resumed else 0,
        max_steps=MAX_STEPS,
        global_batch_size=2,
        seed=1,
        data_rank=layout.data_rank,
        data_parallel_size=dist.get_world_size(),
        plan=PLAN,
    )
    module = FineTuning(run, lambda: build(model_folder), lambda: stop.requested)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=dist.get_world_size(),
        strategy=MeshStrategy(layout, saves, max_steps=MAX_STEPS, keep_last=9, identity={}, origin={}),
        max_steps=MAX_STEPS,
        max_epochs=-1,
        callbacks=[record, OwnCheckpoints()],
        logger=False,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    with saves:
        trainer.fit(module, batches, ckpt_path=resumed.path if resumed else None)
    dist.barrier()
    rows = [{key: row[key] for key in ("step", "train_loss", "val_loss")} for row in read_metrics(experiment / "metrics.csv")]
    return rows, [(found.step, found.val_loss) for found in find_checkpoints(experiment / "checkpoints")[0]], record.stopped


def test_a_stop_in_a_validation_saves_the_step_at_once_and_the_validation_is_made_up_for(
    tiny_model: Path, tmp_path: Path
) -> None:
    """One rank is asked, in the validation of the third step and in that of the last."""
    random_split(tmp_path / "split", [40, 30, 20, 12], [10, 9, 8, 7])
    random_split(tmp_path / "validation", [40, 33, 30, 21, 18, 14, 9], [2, 30, 1, 12, 17, 3, 8])

    def run(name: str, asked: tuple[int, int] | None = None) -> Any:
        first, second = run_processes(2, train_until, tiny_model, tmp_path, name, asked)
        assert first == second
        return first

    losses, saved, stopped = run("whole")
    assert len(losses) == MAX_STEPS and all(row["val_loss"] for row in losses)
    assert (saved, stopped) == ([(MAX_STEPS, float(losses[-1]["val_loss"]))], False)
    for step in (3, MAX_STEPS):
        found, saved, stopped = run("stopped", (step, 1))
        assert found == [*losses[: step - 1], losses[step - 1] | {"val_loss": ""}]
        assert (saved[-1], stopped) == ((step, None), True)
    found, saved, stopped = run("stopped")
    assert found == losses
    assert (saved[-1][0], stopped) == (MAX_STEPS, False)
    assert [loss for _, loss in saved] == [float(losses[step - 1]["val_loss"]) for step in (3, MAX_STEPS)]
