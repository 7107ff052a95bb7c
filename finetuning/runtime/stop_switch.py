"""When a worker ends that was asked to stop: at once, or, while it trains, when all ranks have agreed on it and saved."""

import signal

from finetuning.errors import StopRequested
from finetuning.runtime.progress import Progress


class StopSwitch:
    """Remembers SIGTERM and SIGINT; where a stop has nothing to save, the first of them raises `StopRequested`."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.requested = False
        self.waits = False  # for messages of other workers, perhaps
        self.listen()

    def listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def training_ends(self) -> None:
        """
        Raises:
            StopRequested: it was asked for while there were steps to save.
        """
        self.progress.training_ends()
        if self.requested:
            raise StopRequested

    def _receive(self, number: int, frame: object) -> None:
        already, self.requested = self.requested, True
        if not self.progress.trains and not already:
            raise StopRequested
