"""What was found in the data, on a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from finetuning.data.check import Progress as ProgressFunction
from finetuning.i18n import t


@contextmanager
def reading_progress(paths: list[Path]) -> Iterator[ProgressFunction]:
    """A progress bar over the bytes of these files, on the terminal's error stream; nothing elsewhere."""
    console = Console(stderr=True)
    total = sum(path.stat().st_size for path in set(paths))
    if not console.is_terminal:
        yield lambda count: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(t("reading the data"), total=total)
        yield lambda count: progress.update(task, advance=count)
