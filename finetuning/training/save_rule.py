"""How often a checkpoint is saved where nobody has said: so that it costs little, and that little is lost when a run is killed.

Decided on rank 0, from the time that saves have cost the run so far; the others hear of it in the step's own message. Losses
do not depend on it.
"""

import time
from collections.abc import Callable

LARGEST_SHARE = 0.03  # of the time, for saves
LONGEST_S = 1800.0  # from one save to the next, whatever they cost
SHORTEST_S = 60.0  # also where they cost nothing: nobody misses a minute, and disks wear out
COPIED_PER_S = 2e9  # bytes, until the first save has shown it: less than any GPU and any memory copies


class SaveRule:
    """Is a checkpoint due?"""

    def __init__(self, now_s: Callable[[], float] = time.monotonic):
        self._now_s = now_s
        self._last_s, self._cost_s = now_s(), 0.0

    def expect(self, num_bytes: int) -> None:
        """What each process will copy in a save."""
        self._cost_s = num_bytes / COPIED_PER_S

    def begins(self) -> None:
        """A save."""
        self._last_s = self._now_s()

    def has_cost(self, seconds: float) -> None:
        """The newest save, in time that the training has waited, or was slower."""
        self._cost_s = seconds

    @property
    def interval_s(self) -> float:
        return min(LONGEST_S, max(SHORTEST_S, self._cost_s / LARGEST_SHARE))

    @property
    def is_due(self) -> bool:
        return self._now_s() - self._last_s >= self.interval_s
