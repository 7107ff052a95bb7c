"""--profile_steps: where the time of a step goes, by PyTorch's profiler, on every rank.

Leaves in `profile/` of the experiment rank_N.json with a row for each profiled step, and a trace of rank 0's last one
for chrome://tracing or Perfetto. On a GPU its kernels are counted; on the CPU, operators and gloo's messages.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from finetuning.config.settings import PROFILE_AFTER_STEPS

Interval = tuple[float, float]  # begin and end, microseconds


class StepProfiler:
    """Profiles some steps after those in which kernels are compiled and memory is laid out."""

    def __init__(self, folder: Path, rank: int, count: int):
        self.folder, self.rank, self.count = folder, rank, count
        self.steps_seen = 0
        self.rows: list[dict[str, float]] = []

    @contextmanager
    def around(self, step: int) -> Iterator[None]:
        """To be put around each step of the run; `step` is the number it gets in the records, from 1."""
        self.steps_seen += 1
        if not PROFILE_AFTER_STEPS < self.steps_seen <= PROFILE_AFTER_STEPS + self.count:
            yield
            return
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.synchronize()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with profile(activities=activities, record_shapes=True) as found:
            if on_gpu:
                # Ranks begin together: one whose profiler was ready later would look like slow messages on the others.
                dist.all_reduce(torch.zeros(()))
            yield
            if on_gpu:
                torch.cuda.synchronize()
        self._record(step, found)

    def _record(self, step: int, found: profile) -> None:
        events = [e for e in found.events() or [] if e.device_type in (DeviceType.CUDA, DeviceType.CPU)]
        # Ranges that FSDP and the optimizer name are shown on the GPU as well, from their first kernel to their last.
        of_gpu = [event for event in events if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
        times = [(event.name, (event.time_range.start, event.time_range.end)) for event in of_gpu or events]
        messages = [interval for name, interval in times if name.startswith(("nccl", "gloo:"))]
        work = [interval for name, interval in times if name.startswith("aten::")]
        if of_gpu:
            work = [interval for name, interval in times if not name.startswith("nccl")]
        whole = [(event.time_range.start, event.time_range.end) for event in of_gpu or events]
        seconds = (max(end for _, end in whole) - min(begin for begin, _ in whole)) / 1e6
        self.rows.append({"step": step, "seconds": seconds, **account(work, messages)})
        self.folder.mkdir(exist_ok=True)
        (self.folder / f"rank_{self.rank}.json").write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")
        if self.rank == 0 and self.steps_seen == PROFILE_AFTER_STEPS + self.count:
            found.export_chrome_trace(str(self.folder / "trace_rank_0.json.gz"))


def account(work: list[Interval], messages: list[Interval]) -> dict[str, float]:
    """Seconds with work, with messages under way, and with messages while no work is done.

    Example: work 0-4 and 6-8, a message 3-7 -> work 6, messages 4, of them 4-6 alone: 2 (microseconds there, seconds here).
    """
    worked = covered(work)
    return {
        "work_s": worked / 1e6,
        "messages_s": covered(messages) / 1e6,
        "only_messages_s": (covered([*work, *messages]) - worked) / 1e6,
    }


def covered(intervals: Iterable[Interval]) -> float:
    """Length of the union."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total
