"""Turns an exception of a worker into the paragraph a user reads, and keeps it where the launcher finds it."""

import json
import re
import time
import traceback
from pathlib import Path
from typing import Any, Literal

import msgspec

from finetuning.config.settings import RunConfig
from finetuning.errors import InputError, RunError
from finetuning.files.atomic import NO_ROOM, no_room, write_text
from finetuning.files.documents import read_json
from finetuning.files.reserve import write_anyhow
from finetuning.i18n import t

# What gloo, NCCL and the store say on ranks that wait for one that is gone.
LOST_PARTNER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "failed to recv",
    "NCCL communicator was aborted",
    "remote process exited",
    "Connection was likely closed",
    "Socket Timeout",
    "Timed out waiting",
)


def explain(error: BaseException, config: RunConfig | None) -> str:
    """What happened and what to change."""
    if isinstance(error, RunError | InputError):
        return str(error)
    folder = Path(config.experiments_dir) / config.experiment if config is not None else Path.cwd()
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return str(no_room(folder, error))
    if isinstance(error, FileNotFoundError) and not folder.is_dir():
        return removed(folder)
    if is_out_of_memory(error):
        return _out_of_memory(config)
    return f"{type(error).__name__}: {error}"


def removed(folder: Path) -> str:
    return t("{folder}: the experiment's folder was removed, or cannot be reached any more, while it ran", folder=folder)


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA has an exception of its own; the CPU allocator raises a RuntimeError that names it."""
    import torch  # here, so that a launcher can read failures without it

    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _out_of_memory(config: RunConfig | None) -> str:
    advice = [t("lower --row_length or --seq_length (tokens of a packed row, and of the longest sample)")]
    if config is None or config.activation_checkpointing in ("auto", "none"):
        advice.append("--activation_checkpointing full")
    if config is None or config.peft == "none":
        advice.append("--peft lora")
    advice.append(t("more GPUs (weights and optimizer are spread over them)"))
    return t("Out of memory. What helps, in this order: {advice}", advice="; ".join(advice))


def write_failure(logs: Path, rank: int, error: BaseException, config: RunConfig | None) -> None:
    """Writes `rank_N.error.json`; the launcher shows the earliest one.

    Where the experiment's folder is gone, nothing is: a folder that somebody has removed does not come back.
    """
    record = {
        "rank": rank,
        "time": time.time(),
        "message": explain(error, config),
        "kind": "echo" if is_echo(error) else "own",
        "traceback": "".join(traceback.format_exception(error)),
    }
    _write_record(logs, rank, record)


def write_killed(logs: Path, rank: int, signal_name: str) -> None:
    """Writes `rank_N.error.json` for a rank that a signal ended before it could do so itself; what one has said stands."""
    if (logs / f"rank_{rank}.error.json").is_file():
        return
    message = t("its process was ended by {signal} from outside", signal=signal_name)
    if signal_name == "SIGBUS":
        message = t(
            "a file that it had mapped into memory became shorter while it was read (tokens, Megatron data or weights), or its "
            "disk failed (SIGBUS). Run the same command again: the tokens are checked, and built anew"
        )
    if signal_name == "SIGKILL":
        message = t(
            "its process was killed (SIGKILL) by somebody, or by the system because memory ran out; see `dmesg` on its machine"
        )
    _write_record(logs, rank, {"rank": rank, "time": time.time(), "message": message, "kind": "killed"})


def write_hung(logs: Path, first_rank: int, message: str) -> None:
    """Writes down that no rank got on, for none of those from `first_rank` on in particular."""
    _write_record(logs, f"{first_rank}-hung", {"rank": first_rank, "time": time.time(), "message": message, "kind": "hung"})


def is_echo(error: BaseException) -> bool:
    """It says only that another rank is gone."""
    return isinstance(error, RuntimeError) and any(text in str(error) for text in LOST_PARTNER)


def _write_record(logs: Path, rank: int | str, record: dict[str, Any]) -> None:
    if not logs.parent.is_dir():
        return
    logs.mkdir(exist_ok=True)
    text = json.dumps(record, indent=1, ensure_ascii=False)
    write_anyhow(logs.parent, lambda: write_text(logs / f"rank_{rank}.error.json", text))  # looked for all the time


def first_failure(logs: Path) -> dict[str, Any] | None:
    """The failure that caused the others: the earliest, after those of ranks that only lost a partner.

    Where a rank was killed it comes first, because it could not report at once; before it, that the run was ended as hung.
    """
    records = [_read_record(file) for file in logs.glob("rank_*.error.json")]
    order = ("hung", "killed", "own", "echo")
    return min(records, key=lambda record: (order.index(record["kind"]), record["time"]), default=None)


class _Record(msgspec.Struct):
    rank: int
    time: float
    message: str
    kind: Literal["hung", "killed", "own", "echo"] = "own"
    traceback: str = ""


def _read_record(file: Path) -> dict[str, Any]:
    try:
        return msgspec.structs.asdict(read_json(file, _Record))
    except (InputError, FileNotFoundError) as error:  # that it is there says that a rank has failed
        rank = re.search(r"\d+", file.name)
        message = t("it has left no readable error ({reason})", reason=error)
        return {"rank": int(rank[0]) if rank else 0, "time": 0.0, "message": message, "kind": "echo"}


def clear_failures(logs: Path) -> None:
    for file in logs.glob("rank_*.error.json"):
        file.unlink()
