"""What many tests share: a very small Llama 3.1 folder and a very small data set, both real, and settings of a run on them.

make_tiny_model is imported where a model is made: it takes six seconds of CPU, which pytest's own process need not spend.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetuning.config.settings import RunConfig
from finetuning.i18n import set_language
from finetuning.runtime.garbage import begin_imports, end_imports
from tests.disks import mount, unmount

TINY_SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 512,
    "initializer_range": 0.02,
}
TINY_SPLITS = {"training": 40, "validation": 6, "test": 4}
EXAMPLE = Path(__file__).parent.parent / "examples" / "data" / "alpaca"


def pytest_configure() -> None:
    begin_imports()


def pytest_collection_finish() -> None:
    end_imports()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Llama 3.1 with 127 000 random parameters and an untied head; read only."""
    from examples.make_tiny_model import make_tiny_model

    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny_model(folder, **TINY_SHAPE)
    return folder


@pytest.fixture(scope="session")
def tiny_tied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the embedding as its head, as in Llama 3.2; read only."""
    from examples.make_tiny_model import make_tiny_model

    folder = tmp_path_factory.mktemp("models") / "tiny-tied"
    make_tiny_model(folder, **TINY_SHAPE, tie_word_embeddings=True)
    return folder


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the shortest pairs of the example: 40 to train on, 6 to validate, 4 to test; read only."""
    folder = tmp_path_factory.mktemp("data")
    for name, count in TINY_SPLITS.items():
        lines = (EXAMPLE / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        shortest = sorted(lines, key=lambda line: len("".join(json.loads(line).values())))[:count]
        (folder / f"{name}.jsonl").write_text("\n".join(shortest) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 700 KiB: one checkpoint of the tiny model fits, or the room that a run keeps aside."""
    folder = tmp_path / "disk"
    mount(folder, "700k")
    yield folder
    unmount(folder)


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
            "hf_model_id": str(tiny_model),
            "dataset_path": str(tiny_dataset),
            "num_gpus": 2,
            "global_batch_size": 8,
            "seq_length": 512,
            "experiments_dir": str(tmp_path / "experiments"),
            "experiment": "tiny",
        }
        return RunConfig(**{**given, **changed})

    return make


@pytest.fixture
def arguments(tiny_model: Path, tiny_dataset: Path, tmp_path: Path) -> list[str]:
    """The same settings as arguments of the command."""
    return [
        "--hf_model_id",
        str(tiny_model),
        "--dataset_path",
        str(tiny_dataset),
        "--num_gpus",
        "2",
        "--global_batch_size",
        "8",
        "--seq_length",
        "512",
        "--experiments_dir",
        str(tmp_path / "experiments"),
        "--experiment",
        "tiny",
    ]
