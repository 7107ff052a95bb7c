"""A tiny model folder with a real Llama 3.1 style tokenizer, and helpers that write data folders."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from finetuning.data.prompts.prompt_format import PromptFormat, load_prompt_format
from finetuning.i18n import set_language

# No deadline: a machine that runs several tests at once is slow now and then.
settings.register_profile("data", deadline=None, max_examples=40)
settings.load_profile("data")

WriteJsonl = Callable[..., Path]


@pytest.fixture(autouse=True)
def _english() -> Iterator[None]:
    set_language("en")
    yield
    set_language("en")


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from examples.make_tiny_model import make_tiny_model

    folder = tmp_path_factory.mktemp("model")
    make_tiny_model(
        folder,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        vocab_size=1024,
    )
    return folder


@pytest.fixture(scope="session")
def prompt_format(model_path: Path) -> PromptFormat:
    return load_prompt_format(model_path, None, None)


@pytest.fixture
def write_jsonl(tmp_path: Path) -> WriteJsonl:
    """A function that writes records (objects, or raw bytes of a line) to a file below the test's folder."""

    def write(name: str, *records: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [r if isinstance(r, bytes) else json.dumps(r, ensure_ascii=False).encode() for r in records]
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    return write
