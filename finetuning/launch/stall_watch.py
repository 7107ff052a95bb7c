"""Does a run get on? Says so when it does not, and for how long a run may do nothing before it counts as hung.

Looks at what the workers of this machine show on their `ProgressBoard`, and at what they read and write. Knows nothing of how
they are started or ended.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from finetuning.i18n import t
from finetuning.runtime.progress import Phase, ProgressBoard, Slot, in_words

# Phases that show progress about as often as training does, once that has begun; the others may be silent for long.
STEADY = (Phase.TRAINING, Phase.VALIDATING, Phase.TESTING, Phase.ANSWERING)
SHORTEST_LIMIT_S = 300.0  # network file systems that fail over take minutes, and lose nothing
SILENT_LIMIT_S = 1800.0  # for imports, weights, compiled kernels, and disks that have to catch up
SILENT_FACTOR = 10  # of --stall_timeout_s
USUAL_FACTOR, LEAST_USUAL_FACTOR = 20, 4  # limits in steps: the default one; the least, whatever was asked for
SHORTEST_NOTICE_S, NOTICE_USUAL_FACTOR = 10.0, 5
LONGEST_LOOK_S = 1.0  # what counts of the time between two looks: this process may itself have been stopped
SIGN_OF_IO = 2**20  # so many bytes that are read or written are progress


@dataclass
class StallWatch:
    """Has to `look` about every second. `limit_s`: --stall_timeout_s; None: from the run's own steps; 0: never."""

    board: ProgressBoard
    limit_s: float | None
    first_rank: int = 0  # of this machine
    waited_s: float = 0.0  # since the last sign of progress
    announced_s: float = 0.0  # what it was when it was last told; 0: not since then
    _beats: int = -1  # when it last was a sign of progress
    _moved: int = 0

    def look(self, elapsed_s: float) -> str | None:
        """`elapsed_s` since the last look. Returns what is to be told now, if anything."""
        slots = self.board.read()
        beats, moved = sum(slot.beats for slot in slots), sum(_bytes_moved(slot.pid) for slot in slots if slot.pid)
        if beats != self._beats or moved - self._moved >= SIGN_OF_IO:
            self._beats, self._moved = beats, moved
            waited_s, self.waited_s = self.waited_s, 0.0
            if self.announced_s:
                self.announced_s = 0.0
                return t("it goes on, after {seconds:.0f} s", seconds=waited_s)
            return None
        self.waited_s += min(elapsed_s, LONGEST_LOOK_S)
        if self.waited_s < (2 * self.announced_s or self._notice_s(slots)):
            return None
        self.announced_s = self.waited_s
        limit_s = self._limit_s(slots)
        if limit_s <= self.waited_s:  # 0: no limit
            return self.sentence()
        end = t("; the run is ended after {limit:.0f} s of it (--stall_timeout_s)", limit=limit_s)
        return self.sentence() + end

    @property
    def has_hung(self) -> bool:
        limit_s = self._limit_s(self.board.read())
        return limit_s > 0 and self.waited_s >= limit_s

    def sentence(self) -> str:
        """What it has waited for."""
        slots = self.board.read()
        slot = max(slots, key=lambda each: each.step)
        if slot.phase == Phase.TRAINING and slot.usual_s:
            text = t("No step for {seconds:.0f} s (usually {usual})", seconds=self.waited_s, usual=_duration(slot.usual_s))
        else:
            doing = in_words(Phase(slot.phase), slot.step)
            text = t("No sign of progress for {seconds:.0f} s, {doing}", seconds=self.waited_s, doing=doing)
        stopped = [
            t("rank {rank}, process {pid}", rank=self.first_rank + index, pid=slot.pid)
            for index, slot in enumerate(slots)
            if slot.pid and process_state(slot.pid) == "T"
        ]
        return text + (t("; stopped by a signal (SIGSTOP): {ranks}", ranks=", ".join(stopped)) if stopped else "")

    def _notice_s(self, slots: list[Slot]) -> float:
        if not _is_steady(slots):
            return self._limit_s(slots) / 10 or SILENT_LIMIT_S / 10
        notice_s = max(SHORTEST_NOTICE_S, NOTICE_USUAL_FACTOR * _usual_s(slots))
        limit_s = self._limit_s(slots)
        return min(notice_s, limit_s / 2) if limit_s else notice_s

    def _limit_s(self, slots: list[Slot]) -> float:
        if self.limit_s == 0:
            return 0.0
        usual_s, steady = _usual_s(slots), _is_steady(slots)
        if self.limit_s is None:
            return max(SHORTEST_LIMIT_S if steady else SILENT_LIMIT_S, USUAL_FACTOR * usual_s)
        return max(self.limit_s * (1 if steady else SILENT_FACTOR), LEAST_USUAL_FACTOR * usual_s)


def _is_steady(slots: list[Slot]) -> bool:
    return all(slot.phase in STEADY and slot.usual_s > 0 for slot in slots)


def _usual_s(slots: list[Slot]) -> float:
    return max(slot.usual_s for slot in slots)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def _bytes_moved(pid: int) -> int:
    """What a process has read and written so far (Linux; 0 elsewhere, or where it is gone)."""
    with suppress(OSError):
        fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
        return sum(int(fields[name]) for name in ("rchar", "wchar", "read_bytes", "write_bytes"))
    return 0


def process_state(pid: int) -> str:
    """R running, S sleeping, T stopped … (Linux; empty elsewhere, or where it is gone)."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""
