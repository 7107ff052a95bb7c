"""Which checkpoint a run goes on from: the newest whose every byte is as it was written. Nothing damaged is loaded.

All ranks read a share of it each and agree; what they have read the system still has in memory when it is loaded.
"""

from pathlib import Path

import torch.distributed as dist

from finetuning.checkpoint.files import Checkpoint, find_checkpoints
from finetuning.errors import InputError, RunError
from finetuning.files.atomic import point_to
from finetuning.i18n import t
from finetuning.runtime.agreement import first_of_all, on_first_rank
from finetuning.storage.dcp_reader import ShardedFiles, damaged_part

DAMAGED = "damaged-"  # how the name of a checkpoint that was passed over begins: it is not found any more, and kept


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest sound checkpoint of a run's folder, and a message for each that was passed over; every rank must call it.

    Raises:
        RunError: there are checkpoints, and all are damaged. To begin anew is for somebody to decide.
    """
    complete = on_first_rank(lambda: find_checkpoints(folder)[0])
    messages: list[str] = []
    for checkpoint in reversed(complete):
        damage = damage_of(checkpoint.path)
        if damage is None:
            on_first_rank(lambda: point_to(folder / "latest", checkpoint.path.name))  # noqa: B023 - called at once
            return checkpoint, messages
        aside = checkpoint.path.with_name(DAMAGED + checkpoint.path.name)
        if len(complete) == 1 or checkpoint == complete[0]:
            break
        on_first_rank(lambda: checkpoint.path.rename(aside))  # noqa: B023 - called at once
        messages.append(t("passed over: {damage}; it is kept as {name}", damage=damage, name=aside.name))
    if complete:
        raise RunError(
            t("{damage}; no sound checkpoint is before it. To begin anew, give another --experiment name", damage=damage)
        )
    return None, messages


def damage_of(path: Path) -> str | None:
    """What is damaged in a checkpoint, None where nothing is; every rank must call it and gets the same."""
    try:
        found = damaged_part(ShardedFiles(path), dist.get_rank(), dist.get_world_size())
    except InputError as error:
        return first_of_all(str(error))
    return first_of_all(None if found is None else t("{path}: {part}", path=path, part=found))
