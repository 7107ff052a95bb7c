"""The console of every screen: texts of data, files and models cannot send escape codes through it."""

from collections.abc import Iterable
from typing import IO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from typing_extensions import override

from finetuning.i18n import printable


class SafeConsole(Console):
    """rich's console, whose own colors and cursor movements are the only control codes that reach the terminal."""

    @override
    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def open_console(file: IO[str] | None = None, *, stderr: bool = False) -> SafeConsole:
    """A console that prints texts as they are: long lines are not broken, brackets and colons mean nothing."""
    return SafeConsole(file=file, stderr=stderr, soft_wrap=True, highlight=False, markup=False, emoji=False)
