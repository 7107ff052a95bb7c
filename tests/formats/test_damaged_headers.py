"""Headers of weight files with flipped, cut and inserted bytes: read, or refused in a sentence, never with a traceback."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from finetuning.config.llama import read_llama_config
from finetuning.errors import InputError
from finetuning.formats.gguf.weights import open_gguf
from finetuning.formats.huggingface.files import SINGLE_FILE, check_weights
from tests.formats.gguf.test_gguf import write_gguf

pytestmark = pytest.mark.unit

ROUNDS = int(os.environ.get("FINETUNE_FUZZ", "150"))  # 100000 tries as many


def damaged(content: bytes, chance: random.Random, within: int) -> bytes:
    """The file with one to four changes in its first bytes."""
    found = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(within)
        change = chance.randrange(4)
        if change == 0:
            found[place] = chance.randrange(256)
        elif change == 1:
            found[place : place + 8] = chance.choice((b"\xff" * 8, b"\0" * 8, (2**31).to_bytes(8, "little")))
        elif change == 2:
            del found[place : place + chance.randint(1, 64)]
        else:
            found[place:place] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 16)))
    return bytes(found[: chance.randrange(len(found))] if chance.random() < 0.1 else found)


def try_all(file: Path, within: int, read: Callable[[], object]) -> int:
    """How many damaged versions of the file were refused."""
    content, chance, refused = file.read_bytes(), random.Random(5), 0
    for _ in range(ROUNDS):
        file.write_bytes(damaged(content, chance, within))
        try:
            read()
        except InputError:
            refused += 1
    return refused


def test_damaged_safetensors_headers_are_refused_or_read(tiny_model: Path, tmp_path: Path) -> None:
    config = read_llama_config(tiny_model)
    file = tmp_path / SINGLE_FILE
    file.write_bytes((tiny_model / SINGLE_FILE).read_bytes())
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert try_all(file, header, lambda: check_weights(tmp_path, config)) > ROUNDS / 2


def test_damaged_gguf_headers_are_refused_or_read(tiny_model: Path, tmp_path: Path) -> None:
    file = write_gguf(tiny_model, tmp_path / "model.gguf")
    assert try_all(file, min(4096, file.stat().st_size), lambda: open_gguf(file).source(None)) > ROUNDS / 4
