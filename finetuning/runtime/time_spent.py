"""Where the time of a run goes: of each start of it, from the command on.

Five parts that add up: `start` until the first step is done, `steps`, `saves` that the training waited for, `validation`,
`end`.
"""

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from finetuning.i18n import t
from finetuning.runtime.process_lifetime import LAUNCHER_PID

PARTS = START, STEPS, SAVES, VALIDATION, END = "start", "steps", "saves", "validation", "end"


class TimeSpent:
    """A clock that is always counting for one of the parts, at first for the start."""

    def __init__(self, already_s: float):
        """`already_s`: before this was made."""
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._part, self._since_s = START, time.monotonic() - already_s

    def goes_to(self, part: str) -> None:
        """From now on."""
        now_s = time.monotonic()
        self._seconds[self._part] += now_s - self._since_s
        self._part, self._since_s = part, now_s

    @property
    def total_s(self) -> float:
        return sum(self._seconds.values()) + time.monotonic() - self._since_s

    def so_far(self) -> dict[str, float]:
        """Seconds of each part, in tenths."""
        self.goes_to(self._part)
        return {part: round(seconds, 1) for part, seconds in self._seconds.items()}


def in_words(seconds: Mapping[str, float]) -> str:
    """Each part with its share; those that took no time are not named."""
    names = {
        START: t("start"),
        STEPS: t("steps"),
        SAVES: t("waiting for saves"),
        VALIDATION: t("validation"),
        END: t("end"),
    }
    total = sum(seconds.values())
    return " · ".join(
        t("{part} {seconds:,.0f} s ({share:.0%})", part=names[part], seconds=seconds[part], share=seconds[part] / total)
        for part in PARTS
        if seconds.get(part, 0) >= 0.5
    )


def command_age_s() -> float:
    """Since the start of the command that this process works for, or of this process, where there is no command (Linux)."""
    if sys.platform != "linux":
        return 0.0
    try:
        fields = Path(f"/proc/{os.environ.get(LAUNCHER_PID, 'self')}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended, and so will this process
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
