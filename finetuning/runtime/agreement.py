"""Ranks agree first, then raise together: an error of one is an error of all, and nobody waits for who has left."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from finetuning.errors import InputError, RunError

T = TypeVar("T")


def on_first_rank(action: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """What rank 0 finds or does; every rank must call it, and gets the result, or the error that rank 0 met.

    `group`: of all ranks, for threads that must not use the one of the main thread.
    """
    met: list[Any] = [None, None]  # what it found, its error
    if dist.get_rank() == 0:
        try:
            met[0] = action()
        except (OSError, InputError, RunError) as error:
            met[1] = error
    dist.broadcast_object_list(met, group=group, device=torch.device("cpu"))
    if met[1] is not None:
        raise met[1]
    found: T = met[0]
    return found


def first_of_all(problem: str | None) -> str | None:
    """The problem of the first rank that has one; every rank must call it and gets the same."""
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    return next((each for each in problems if each is not None), None)


def all_agree(holds: bool) -> bool:
    """Whether it holds on all ranks; every rank must call it and gets the same."""
    missing = torch.full((), float(not holds))
    dist.all_reduce(missing)
    return missing.item() == 0
