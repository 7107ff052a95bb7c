"""Checkpoints of a run: sharded tensors through torch.distributed.checkpoint, complete or not there at all.

A checkpoint is a folder `checkpoints/step=000100` with the trained weights, the optimizer's state and each rank's
random state under global parameter names (so another layout can read it), and `checkpoint.json`, written last, with the
size of every file. It is written beside and renamed when complete; `latest` and `best` are links to complete ones.
"""

import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader

from finetuning.checkpoint.files import INFO_FILE, Checkpoint, find_checkpoints
from finetuning.parallel.parallelize import ParallelLlama


def checkpoint_name(step: int) -> str:
    return f"step={step:06d}"


def save_checkpoint(path: Path, model: ParallelLlama, states: dict[str, torch.Tensor], info: dict[str, Any]) -> None:
    """Writes a checkpoint to `path`; every rank must call it.

    `states` are the optimizer's (`training.optimizer.optimizer_state`); `info` (JSON, with "step") is written by rank 0.
    """
    temporary = path.with_name(f".incomplete-{path.name}")
    if dist.get_rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier()
    dcp.save(_training_state(model, states), checkpoint_id=temporary)
    if dist.get_rank() == 0:
        files = {file.name: file.stat().st_size for file in sorted(temporary.iterdir())}
        info = {**info, "saved_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "files": files}
        _write_synced(temporary / INFO_FILE, json.dumps(info, indent=1, ensure_ascii=False))
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
        point_to(path.parent / "latest", path.name)
    dist.barrier()


def load_checkpoint(path: Path, model: ParallelLlama, states: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Fills model, the optimizer's states and random state from a complete checkpoint of any layout; returns its info.

    Every rank must call it. A rank that did not exist when it was written keeps its own random state.
    """
    state = _training_state(model, states)
    known = FileSystemReader(path).read_metadata().state_dict_metadata
    if _random_key() not in known:
        del state[_random_key()]
    dcp.load(state, checkpoint_id=path)
    model.refresh_copies()
    if _random_key() in known:
        torch.set_rng_state(state[_random_key()])
    return json.loads((path / INFO_FILE).read_text(encoding="utf-8"))


def load_weights(path: Path, model: ParallelLlama) -> None:
    """Fills the trained weights from a checkpoint, without optimizer and position; every rank must call it."""
    dcp.load(_trained_weights(model), checkpoint_id=path)
    model.refresh_copies()


def prune(folder: Path, keep_last: int) -> None:
    """Deletes all but the newest `keep_last` checkpoints and the one with the lowest validation loss; rank 0 calls it."""
    complete, _ = find_checkpoints(folder)
    losses = {c.val_loss: c for c in reversed(complete) if c.val_loss is not None and math.isfinite(c.val_loss)}
    best = losses[min(losses)] if losses else None
    if best is not None:
        point_to(folder / "best", best.path.name)
    for checkpoint in complete[: max(0, len(complete) - keep_last)]:
        if checkpoint != best:
            shutil.rmtree(checkpoint.path.rename(folder / f".deleted-{checkpoint.path.name}"))  # never seen half deleted


def record_val_loss(checkpoint: Checkpoint, val_loss: float) -> None:
    """Adds the validation loss to a checkpoint that was saved without; rank 0 calls it."""
    temporary = checkpoint.path / f".{INFO_FILE}"
    _write_synced(temporary, json.dumps({**checkpoint.info, "val_loss": val_loss}, indent=1, ensure_ascii=False))
    temporary.replace(checkpoint.path / INFO_FILE)


def point_to(link: Path, name: str) -> None:
    """Makes `link` a symbolic link to `name`, replacing it in one step."""
    temporary = link.with_name(f".{link.name}-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name)
    temporary.replace(link)


def _training_state(model: ParallelLlama, states: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    moments = {f"optimizer.{name}": value if value.ndim == 0 else model.view(name, value) for name, value in states.items()}
    return _trained_weights(model) | moments | {_random_key(): torch.get_rng_state()}


def _trained_weights(model: ParallelLlama) -> dict[str, torch.Tensor]:
    return {f"model.{name}": model.view(name, parameter.data) for name, parameter in model.trained.items()}


def _random_key() -> str:
    return f"random.rank{dist.get_rank()}"


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
