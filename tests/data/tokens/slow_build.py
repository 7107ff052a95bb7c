"""What a process builds that is interrupted; in a module of its own, so that such a process need not import torch."""

import time
from pathlib import Path

from finetuning.data.tokens.configure import build_once


def slow_build(folder: Path, log: Path, hold_s: float) -> None:
    """Builds a folder of two files with a pause between them, and notes that it did."""

    def build(target: Path) -> None:
        target.mkdir()
        (target / "first").write_text("1", encoding="utf-8")
        with log.open("a", encoding="utf-8") as file:
            file.write("built\n")
        time.sleep(hold_s)
        (target / "second").write_text("2", encoding="utf-8")

    build_once(folder, build)
    assert (folder / "first").is_file() and (folder / "second").is_file()
