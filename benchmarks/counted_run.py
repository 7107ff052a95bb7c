"""A worker that also counts compilations: `torchrun --nproc_per_node 1 benchmarks/counted_run.py run.yaml COUNTS`.

COUNTS becomes a JSON list, after each step the compilations so far. Trains what run.yaml says, without test and export.
"""

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks.compilations import CompilationCounter  # noqa: E402
from finetuning import train  # noqa: E402
from finetuning.training import lightning_shell  # noqa: E402
from finetuning.training.step import StepResult  # noqa: E402


def main(run_file: Path, counts_file: Path) -> int:
    counts: list[int] = []
    train_step = lightning_shell.train_step

    def counted_step(*arguments: Any, **options: Any) -> StepResult:
        result = train_step(*arguments, **options)
        counts.append(counter.total())
        counts_file.write_text(json.dumps(counts), encoding="utf-8")
        return result

    with (
        CompilationCounter() as counter,
        mock.patch.object(lightning_shell, "train_step", counted_step),
        mock.patch.object(train.Worker, "_evaluate_and_export"),
    ):
        return train.main(run_file)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
