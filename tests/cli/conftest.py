"""A model that knows some answers by heart, and an adapter on it: what served models are compared with."""

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "test.jsonl"
    lines = [
        {"input": "颱風 12345 km?", "output": "會。"},
        {"input": "2+2=?", "output": "4, I'd say"},
        {"input": "Hi", "output": "在！"},
    ]
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def learned(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from finetuning.inference.samples import read_samples  # with torch
    from tests.learned import write_learned_model

    return write_learned_model(tmp_path_factory.mktemp("learned") / "model", read_samples(data, None))


@pytest.fixture(scope="session")
def adapter(learned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.references import write_random_adapter

    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    write_random_adapter(learned, folder, 2, 60.0, ("q_proj", "v_proj", "down_proj"))
    return folder
