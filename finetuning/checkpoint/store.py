"""Checkpoints of a run: sharded tensors through torch.distributed.checkpoint, complete or not there at all.

A checkpoint is a folder `checkpoints/step=000100` with the trained weights, the optimizer's state and each rank's
random state under global parameter names (so another layout can read it), and `checkpoint.json`, written last, with the
size of every file. It is written beside and renamed when complete; `latest` and `best` are links to complete ones.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from finetuning.checkpoint.files import INFO_FILE, WEIGHTS, Checkpoint, find_checkpoints, find_weights
from finetuning.checkpoint.sound import damage_of
from finetuning.errors import RunError
from finetuning.files.atomic import begin_folder, delete, finish_folder, point_to, write_text
from finetuning.files.documents import read_json
from finetuning.parallel.parallelize import ParallelLlama
from finetuning.runtime.agreement import on_first_rank
from finetuning.storage.dcp_load import load_sharded_files
from finetuning.storage.dcp_reader import ShardedFiles
from finetuning.storage.dcp_save import write_sharded_files


def save_checkpoint(path: Path, model: ParallelLlama, states: dict[str, torch.Tensor], info: dict[str, Any]) -> None:
    """Writes a checkpoint to `path`; every rank must call it.

    `states` are the optimizer's (`training.optimizer.optimizer_state`); `info` (JSON, with "step") is written by rank 0.

    Raises:
        NoRoom: on all ranks, where one of them found the disk full; what was written so far is removed.
    """
    write_checkpoint(path, training_state(model, states), info)


def write_checkpoint(
    path: Path,
    state: dict[str, torch.Tensor],
    info: dict[str, Any],
    *,
    copies: Mapping[str, torch.Tensor] | None = None,
    group: dist.ProcessGroup | None = None,
    completed: Callable[[], None] = lambda: None,
) -> None:
    """`save_checkpoint` of a state that may have been copied, in a group of its own; `completed` is called by rank 0.

    `latest` then points to it, unless its name says that it holds weights only.

    Raises:
        NoRoom: as above, also where `completed` raised it.
    """
    temporary = on_first_rank(lambda: begin_folder(path), group)

    def complete() -> None:
        _complete(temporary, path, info)
        completed()

    try:
        write_sharded_files(temporary, state, copies, group)
        on_first_rank(complete, group)
    except (OSError, RunError):
        if dist.get_rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def _complete(temporary: Path, path: Path, info: dict[str, Any]) -> None:
    files = {file.name: file.stat().st_size for file in sorted(temporary.iterdir())}
    info = {**info, "saved_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "files": files}
    write_text(temporary / INFO_FILE, json.dumps(info, indent=1, ensure_ascii=False))
    finish_folder(temporary, path)
    if not path.name.startswith(WEIGHTS):
        point_to(path.parent / "latest", path.name)


def training_state(model: ParallelLlama, states: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All that a checkpoint holds, under global names: views of what a run works with, this process's part of each."""
    moments = {f"optimizer.{name}": value if value.ndim == 0 else model.view(name, value) for name, value in states.items()}
    return trainable_weights(model) | moments | {_random_key(): torch.get_rng_state()}


def load_checkpoint(path: Path, model: ParallelLlama, states: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Fills model, the optimizer's states and random state from a complete checkpoint of any layout; returns its info.

    Every rank must call it. A rank that did not exist when it was written keeps its own random state.
    """
    state = training_state(model, states)
    files = ShardedFiles(path)
    if _random_key() not in files.tensors:
        del state[_random_key()]
    load_sharded_files(files, state)
    model.refresh_copies()
    if _random_key() in state:
        torch.set_rng_state(state[_random_key()])
    return read_json(path / INFO_FILE, dict[str, Any])


def load_weights(path: Path, model: ParallelLlama) -> None:
    """Fills the trained weights from a checkpoint, without optimizer and position; every rank must call it.

    Raises:
        RunError: it is damaged.
    """
    damage = damage_of(path)
    if damage is not None:
        raise RunError(damage)
    load_sharded_files(ShardedFiles(path), trainable_weights(model))
    model.refresh_copies()


def prune(folder: Path, keep_last: int) -> None:
    """Deletes all but the newest `keep_last` checkpoints and the one with the lowest validation loss; rank 0 calls it.

    The best one may hold weights only; of those no other is kept.
    """
    complete, _ = find_checkpoints(folder)
    weights = find_weights(folder)
    best = best_of([*complete, *weights])
    if best is not None:
        point_to(folder / "best", best.path.name)
    for checkpoint in (*complete[: max(0, len(complete) - keep_last)], *weights):
        if checkpoint != best:
            delete(checkpoint.path)


def best_of(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    """The one with the lowest validation loss, of several the one of the earliest step."""
    validated = [(c.val_loss, c.step, c) for c in checkpoints if c.val_loss is not None and math.isfinite(c.val_loss)]
    return min(validated, key=lambda each: each[:2])[2] if validated else None


def record_val_loss(checkpoint: Checkpoint, val_loss: float) -> None:
    """Adds the validation loss to a checkpoint that was saved without; rank 0 calls it."""
    info = {**checkpoint.info, "val_loss": val_loss}
    write_text(checkpoint.path / INFO_FILE, json.dumps(info, indent=1, ensure_ascii=False))


def trainable_weights(model: ParallelLlama) -> dict[str, torch.Tensor]:
    """What a checkpoint of weights only holds."""
    return {f"model.{name}": model.view(name, parameter.data) for name, parameter in model.trained.items()}


def _random_key() -> str:
    return f"random.rank{dist.get_rank()}"
