"""Settings of a run that can be started here: the tiny model, the tiny data set, two CPU processes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetuning.config import RunConfig
from finetuning.i18n import set_language


@pytest.fixture(autouse=True)
def _english(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    set_language("en")
    yield
    set_language("en")


@pytest.fixture
def settings(tiny_model: Path, tiny_dataset: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """A function from changed settings to a `RunConfig`: 40 samples in batches of 8 are five steps an epoch."""

    def make(**changed: Any) -> RunConfig:
        given = {
            "hf_model_id": str(tiny_model), "dataset_path": str(tiny_dataset), "num_gpus": 2, "global_batch_size": 8,
            "seq_length": 512, "experiments_dir": str(tmp_path / "experiments"), "experiment": "tiny",
        }  # fmt: skip
        return RunConfig(**{**given, **changed})

    return make


@pytest.fixture
def arguments(tiny_model: Path, tiny_dataset: Path, tmp_path: Path) -> list[str]:
    """The same settings as arguments of the command."""
    return [
        "--hf_model_id", str(tiny_model), "--dataset_path", str(tiny_dataset), "--num_gpus", "2", "--global_batch_size", "8",
        "--seq_length", "512", "--experiments_dir", str(tmp_path / "experiments"), "--experiment", "tiny",
    ]  # fmt: skip
