"""What a run will write, against the room there is, before it starts. Quotas cannot be asked for; only free space is known.

Counted are checkpoints (the newest ones, the best, and the one being written), the result, and in a dry run the tokens, which
are written before a run starts. Logs and records are small.
"""

import dataclasses
import math
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from finetuning.config.llama import LlamaConfig
from finetuning.config.memory import trainable_parameters
from finetuning.config.run import Run
from finetuning.config.strategy import Strategy
from finetuning.i18n import t

# Bytes of a trainable parameter in a checkpoint: the weight, with all that makes it exact, and two moments.
STORED = {"fp32": 12.0, "bf16": 8.0, "8bit": 6.0 + 8 / 128}
GIB = 2**30
PROBE_BYTES = 64 * 2**20
WORTH_PROBING = 2**28  # bytes of a checkpoint; smaller ones are written in no time


@dataclass(frozen=True)
class DiskPlan:
    """Bytes that a run writes into its experiment's folder."""

    checkpoint: int  # of one
    kept: int  # checkpoints that stay
    written: int  # that the run still writes, in all
    export: int
    tokens: int  # that a dry run has written elsewhere
    there: int  # of checkpoints of before, which give way to new ones
    free: int

    @property
    def num_checkpoints(self) -> int:
        """New ones that are there at once, at the most: those that stay, and the one being written."""
        return min(self.kept + 1, self.written)

    @property
    def needed(self) -> int:
        """More than is there now, at the fullest moment."""
        saving = self._checkpoints(self.kept + 1)
        exporting = self._checkpoints(self.kept) + self.export
        return max(0, max(saving, exporting) - self.there) + self.tokens

    def _checkpoints(self, most: int) -> int:
        """Bytes of old and new ones, of which `most` stay."""
        return min(max(most * self.checkpoint, self.there), self.there + self.written * self.checkpoint)


def plan_disk(run: Run, model: LlamaConfig, step: int, tokens_bytes: int, *, keep_last: int | None = None) -> DiskPlan:
    """What the run writes, and the room for it.

    Args:
        step: where the run starts.
        tokens_bytes: of tokens that are still to be written.
        keep_last: instead of the run's own.
    """
    config = run.config
    folder = Path(run.experiment_dir)
    every, steps = run.save_every_n_steps, run.max_steps - step
    kept = (keep_last or config.keep_last) + ("validation" in run.sources)
    written = min(steps, kept + 1) if every is None else math.ceil(steps / every) if every else 0
    return DiskPlan(
        checkpoint=checkpoint_bytes(run.strategy, model),
        kept=kept,
        written=written,
        export=export_bytes(run.strategy, model),
        tokens=tokens_bytes,
        there=size_of(folder / "checkpoints"),
        free=shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free,
    )


def checkpoint_bytes(strategy: Strategy, model: LlamaConfig) -> int:
    """Of one checkpoint."""
    return int(trainable_parameters(strategy, model) * STORED[strategy.optimizer_states])


def export_bytes(strategy: Strategy, model: LlamaConfig) -> int:
    """Of the result: the adapter, or the whole model in the dtype that it came in."""
    weight = 4 if not strategy.trains_all or model.dtype not in ("bfloat16", "float16") else 2
    return weight * trainable_parameters(strategy, model)


def disk_problem(run: Run, model: LlamaConfig, step: int, tokens_bytes: int) -> str | None:
    """Why the run cannot fit, and what would; None: it fits."""
    plan = plan_disk(run, model, step, tokens_bytes)
    if plan.needed <= plan.free:
        return None
    ways: list[str] = []
    keeps = range(run.config.keep_last - 1, 0, -1)
    plans = {keep: plan_disk(run, model, step, tokens_bytes, keep_last=keep) for keep in keeps}
    if fitting := next((keep for keep, smaller in plans.items() if smaller.needed <= smaller.free), None):
        ways.append(f"--keep_last {fitting}")
    if plan.written > 1 and dataclasses.replace(plan, written=1).needed <= plan.free:
        ways.append(f"--save_every_n_steps {run.max_steps}")
    ways.append(t("an --experiments_dir with more room"))
    return t(
        "{folder}: the run needs {needed:.1f} GiB and {free:.1f} GiB are free ({what}); what would work: {ways}",
        folder=run.experiment_dir,
        needed=plan.needed / GIB,
        free=plan.free / GIB,
        what=_parts(plan),
        ways=", ".join(ways),
    )


def describe(plan: DiskPlan, bytes_per_s: float | None) -> str:
    """`bytes_per_s`: that the disk takes; None: not measured."""
    text = t(
        "up to {needed:.1f} GiB of {free:.1f} GiB free: {what}",
        needed=plan.needed / GIB,
        free=plan.free / GIB,
        what=_parts(plan),
    )
    if plan.written and bytes_per_s is not None:
        text += t(
            " · a checkpoint is written in about {seconds:.0f} s ({speed:.1f} GB/s)",
            seconds=plan.checkpoint / bytes_per_s,
            speed=bytes_per_s / 1e9,
        )
    return text


def bytes_written_per_s(folder: Path) -> float:
    """What the disk takes, measured with a file that goes again.

    Raises:
        OSError: nothing can be written there.
    """
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as file:
        started_s = time.monotonic()
        file.write(os.urandom(2**20) * (PROBE_BYTES // 2**20))
        file.flush()
        os.fsync(file.fileno())
        return PROBE_BYTES / (time.monotonic() - started_s)


def _parts(plan: DiskPlan) -> str:
    parts = [t("{count} checkpoint{count:s} of {size:.1f} GiB", count=plan.num_checkpoints, size=plan.checkpoint / GIB)]
    parts.append(t("the result {size:.1f} GiB", size=plan.export / GIB))
    if plan.tokens:
        parts.append(t("tokens {size:.1f} GiB", size=plan.tokens / GIB))
    if plan.there:
        parts.append(t("{size:.1f} GiB of checkpoints are there already", size=plan.there / GIB))
    return ", ".join(parts)


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
