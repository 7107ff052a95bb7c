"""Runs a function in several processes that are joined by gloo, and brings results or the child's traceback back.

The processes are forked from a server that has imported the heavy libraries once (Python's `forkserver`), so a group of
them starts in a fraction of a second.
"""

import io
import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT_S = 480.0  # on idle cores the longest group takes a twentieth; pytest gives up after 600
GRACE_AFTER_FAILURE_S = 2.0  # for the traceback of a rank whose partner has failed first
PRELOADED = ["tests.preloaded"]


def run_processes(num_processes: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Calls `function(*arguments)` on every rank of a gloo group and returns the results by rank.

    The function must be importable (module level); results travel by torch.save.

    Raises:
        AssertionError: a rank raised, died or did not end in time; with the tracebacks of the ranks that raised.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        processes, ends = [], []
        for rank in range(num_processes):
            end, child_end = context.Pipe(duplex=False)
            process = context.Process(
                target=_child, args=(rank, num_processes, Path(folder) / "store", child_end, function, arguments), daemon=True
            )
            process.start()
            child_end.close()
            processes.append(process)
            ends.append(end)
        try:
            results, failures = _collect(ends)
        finally:
            for process in processes:
                process.kill()
                process.join()
    assert not failures, "\n".join(f"rank {rank} of {num_processes}: {text}" for rank, text in sorted(failures.items()))
    return [results[rank] for rank in range(num_processes)]


@contextmanager
def alone() -> Iterator[None]:
    """This process as the only rank of a gloo group, for what needs a group and no process of its own."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _collect(ends: list[Connection]) -> tuple[dict[int, Any], dict[int, str]]:
    results: dict[int, Any] = {}
    failures: dict[int, str] = {}
    deadline = time.monotonic() + TIMEOUT_S
    waiting = dict(enumerate(ends))
    while waiting:
        ready = wait(list(waiting.values()), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            for rank in waiting:
                failures[rank] = "did not end" if not failures else "was still waiting when another had failed"
            break
        for rank in [rank for rank, end in waiting.items() if end in ready]:
            try:
                succeeded, value = torch.load(io.BytesIO(waiting.pop(rank).recv_bytes()), weights_only=False)
            except EOFError:
                succeeded, value = False, "died without a word"
            (results if succeeded else failures)[rank] = value
        if failures:
            deadline = min(deadline, time.monotonic() + GRACE_AFTER_FAILURE_S)
    return results, failures


def _child(
    rank: int, num_processes: int, store: Path, end: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    outcome: tuple[bool, Any]
    try:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=num_processes)
        outcome = True, function(*arguments)
    except BaseException:  # noqa: BLE001 - whatever it was, the test shows it
        outcome = False, traceback.format_exc()
    buffer = io.BytesIO()
    torch.save(outcome, buffer)
    end.send_bytes(buffer.getvalue())
    time.sleep(TIMEOUT_S)  # leaving would break a collective that others are still in; the parent ends this process
