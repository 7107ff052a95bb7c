"""Merged and exported models in llama.cpp itself, which `make llamacpp` fetches: converted, answered, and read back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from finetuning.config.llama import LlamaConfig
from finetuning.data.prompts.tokenizer import open_tokenizer
from finetuning.data.reading.records import Sample
from finetuning.formats.gguf.header import read_gguf_header
from finetuning.formats.gguf.split_rules import SPLIT_RULES
from finetuning.formats.gguf.tokenizer import write_tokenizer
from finetuning.formats.huggingface.write import export_hugging_face
from finetuning.formats.stored_model import StoredModel, open_model
from finetuning.inference.generate import generate_answers
from finetuning.inference.loading import load_model
from finetuning.model.sampling import Sampling
from tests.formats.gguf.vocabularies import (
    LLAMA_CPP,
    SPECIAL,
    WORDS,
    llama_cpp_tokens,
    nasty_texts,
    read_recorded,
    write_byte_level,
    write_small,
)
from tests.references import write_random_adapter

pytestmark = [pytest.mark.unit, pytest.mark.slow]

HERE = Path(__file__).parent
LENGTH = 24
REAL_VOCABULARIES = (
    "llama-bpe llama-spm phi-3 baichuan qwen2 gpt-2 mpt starcoder refact command-r deepseek-coder deepseek-llm"  # in its source
)
TEXTS = ["你好 3 33 333 3333  \n\n ok 'RE I'll Hello", "如何在資料中搜尋字串？", "\t\t x\n  \n   y  😶\u200d🌫️"]


@pytest.fixture(scope="module")
def llama_cpp() -> Path:
    if not (LLAMA_CPP / "source" / "convert_hf_to_gguf.py").is_file():
        pytest.skip("this test compares with llama.cpp; `make llamacpp` fetches it")
    return LLAMA_CPP


def converted(llama_cpp: Path, folder: Path, kind: str = "f32") -> Path:
    out = folder.with_suffix(f".{kind}.gguf")
    command = [sys.executable, HERE / "llama_cpp_convert.py", llama_cpp / "source", folder, out, kind]
    environment = os.environ | {"PYTHONPATH": str(llama_cpp / "python")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def write_model(model: StoredModel, target: Path) -> Path:
    export_hugging_face(model, target, None, lambda done, total: None)
    return target


@pytest.mark.parametrize("kind", ["merged", "tied"])
def test_llama_cpp_gives_our_greedy_tokens_and_its_file_our_weights(
    llama_cpp: Path, kind: str, tiny_model: Path, tiny_tied_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if kind == "merged":
        write_random_adapter(tiny_model, tmp_path / "adapter", 2, 6.0, ("q_proj", "v_proj", "up_proj"))
        stored = open_model(tmp_path / "adapter", tiny_model)
    else:
        stored = open_model(tiny_tied_model)
    folder = write_model(stored, tmp_path / kind)
    model = load_model(stored, torch.device("cpu"), torch.float32)
    prompts = [model.prompt_format.encode_prompt(Sample(1, text, "")) for text in TEXTS]
    ends = model.prompt_format.end_token_ids
    expected = generate_answers(model.net, prompts, Sampling(max_new_tokens=LENGTH), ends)

    file = converted(llama_cpp, folder)
    job = tmp_path / "job.json"
    job.write_text(json.dumps({"prompts": prompts, "texts": TEXTS, "length": LENGTH, "ends": list(ends)}), encoding="utf-8")
    command = ["node", HERE / "llama_cpp.mjs", llama_cpp / "node_modules", file, job]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["answers"] == expected and max(map(len, expected)) == LENGTH
    tokenizer = open_tokenizer(folder / "tokenizer.json")
    assert found["texts"] == [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]

    back, original = open_model(file).weights(), open_model(folder).weights()
    assert isinstance(back.config, LlamaConfig) and back.config == original.config
    assert all(torch.equal(back.read(name), original.read(name)) for name in original.shapes())
    assert open_model(file).prompt_format().fingerprint == open_model(folder).prompt_format().fingerprint


def test_quantized_files_of_llama_cpp_come_near_the_weights(llama_cpp: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder = write_model(open_model(tiny_model), tmp_path / "model")
    original = open_model(folder).weights()
    for kind, share in (("bf16", 2**-8), ("q8_0", 1 / 120)):
        back = open_model(converted(llama_cpp, folder, kind), folder).weights()
        for name in original.shapes():
            weight = original.read(name)
            assert (back.read(name).float() - weight).abs().max() <= share * weight.abs().max(), (kind, name)


def test_recorded_tokens_of_small_vocabularies_are_llama_cpp_s(llama_cpp: Path, tmp_path: Path) -> None:
    recorded = read_recorded()
    files = write_small(tmp_path, recorded)
    found = llama_cpp_tokens(files.values(), recorded["texts"])
    assert dict(zip(files, found, strict=True)) == {name: recorded[name] for name in files}


def test_every_name_of_a_rule_means_that_rule(llama_cpp: Path, tmp_path: Path) -> None:
    recorded, texts = read_recorded(), nasty_texts(200, seed=7)
    files = [write_byte_level(tmp_path / f"{name}.gguf", name, recorded["merges"]) for name in sorted(SPLIT_RULES)]
    for file, found in zip(files, llama_cpp_tokens(files, texts), strict=True):
        assert our_tokens(file, tmp_path / file.stem, texts) == found, file.stem


def test_real_vocabularies_give_llama_cpp_s_tokens_of_nasty_texts(llama_cpp: Path, tmp_path: Path) -> None:
    names = REAL_VOCABULARIES.split()
    files = [llama_cpp / "source" / "models" / f"ggml-vocab-{name}.gguf" for name in names]
    texts = [text for text in nasty_texts(500, seed=8) if not any(token in text for token in SPECIAL)]
    texts += ["<|eot_id|>a <|im_end|>\n<|endoftext|> <s>b <unk>", "", " ", WORDS]
    for file, found in zip(files, llama_cpp_tokens(files, texts), strict=True):
        assert our_tokens(file, tmp_path / file.stem, texts) == found, file.stem


def our_tokens(file: Path, target: Path, texts: list[str]) -> list[list[list[int]]]:
    settings = read_gguf_header(file).settings
    config = LlamaConfig(len(settings["tokenizer.ggml.tokens"]), 64, 96, 2, 4, 2, 16, 1e-5, 1e4, None, 2048, True, "float32")
    write_tokenizer(file, settings, config, target)
    tokenizer = open_tokenizer(target / "tokenizer.json")
    found = []
    for text in texts:
        tokenizer.encode_special_tokens = True
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        tokenizer.encode_special_tokens = False
        found.append([plain, tokenizer.encode(text, add_special_tokens=False).ids])
    return found
