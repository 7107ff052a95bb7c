"""What a person sees while it trains: a live line on a terminal, plain lines everywhere else."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from finetuning.i18n import t

PLAIN_INTERVAL_S = 10.0


class TrainingDisplay:
    """Shows steps and messages on `console`, and writes them as plain lines to `log`."""

    def __init__(self, console: Console, log: Console, max_steps: int, world_size: int):
        self.console, self.log = console, log
        self.max_steps = max_steps
        self.world_size = world_size
        self.last_plain_line = 0.0
        self.progress: Progress | None = None
        self.started_at, self.first_step = time.monotonic(), 0

    def start(self, step: int) -> None:
        self.started_at, self.first_step = time.monotonic(), step
        if self.console.is_terminal:
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                _Numbers(),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.progress.add_task(t("training"), total=self.max_steps, completed=step, numbers="")
            self.progress.start()

    def step(self, step: int, row: dict[str, float]) -> None:
        """Shows one finished step; `row` has the columns of metrics.csv."""
        numbers = t(
            "step {step}/{max_steps}  loss {loss:.4f}  lr {lr:.2e}  grad {grad:.3f}  {rate:,.0f} tok/s "
            "({each:,.0f} per process)  {memory:.1f} GiB",
            step=step,
            max_steps=self.max_steps,
            loss=row["train_loss"],
            lr=row["learning_rate"],
            grad=row["grad_norm"],
            rate=row["tokens_per_second"],
            each=row["tokens_per_second"] / self.world_size,
            memory=row["memory_gib"],
        )
        if self.progress is not None:
            self.progress.update(self.progress.tasks[0].id, completed=step, numbers=numbers)
        now = time.monotonic()
        if now - self.last_plain_line >= PLAIN_INTERVAL_S or step in (1, self.max_steps):
            self.last_plain_line = now
            left = (now - self.started_at) / (step - self.first_step) * (self.max_steps - step)
            line = f"{numbers}  {t('{left} left', left=_duration(left))}"
            _print(self.log, line)
            if self.progress is None:
                _print(self.console, line)

    def message(self, text: str) -> None:
        for console in (self.console, self.log):
            _print(console, text)

    def stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


def _print(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


class _Numbers(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.fields["numbers"])


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
