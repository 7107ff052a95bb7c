"""Tokenizers out of GGUF files: the tokens that llama.cpp makes of nasty texts, and what cannot be rebuilt."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from finetuning.config.llama import LlamaConfig
from finetuning.errors import InputError
from finetuning.formats.gguf.header import read_gguf_header
from finetuning.formats.gguf.split_rules import SPLIT_RULES
from finetuning.formats.gguf.tokenizer import write_tokenizer
from finetuning.formats.gguf.vocabulary import read_vocabulary
from tests.formats.gguf.vocabularies import SPECIAL, read_recorded, write_small

pytestmark = pytest.mark.unit

RECORDED = read_recorded()
RECORDS = [name for name in RECORDED if name not in ("merges", "pieces", "texts")]
CONFIG = LlamaConfig(
    vocab_size=1000,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    rope_scaling=None,
    max_position_embeddings=2048,
    tie_word_embeddings=True,
    dtype="float32",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_small(tmp_path_factory.mktemp("vocabularies"), RECORDED)


def rebuilt(file: Path, target: Path, **settings: Any) -> Path:
    write_tokenizer(file, read_gguf_header(file).settings | {f"tokenizer.{k}": v for k, v in settings.items()}, CONFIG, target)
    return target


@pytest.mark.parametrize("name", RECORDS)
def test_tokens_are_those_of_llama_cpp(files: dict[str, Path], tmp_path: Path, name: str) -> None:
    tokenizer = Tokenizer.from_file(str(rebuilt(files[name], tmp_path / "out") / "tokenizer.json"))
    for text, (plain, special) in zip(RECORDED["texts"], RECORDED[name], strict=True):
        tokenizer.encode_special_tokens = True
        assert tokenizer.encode(text, add_special_tokens=False).ids == plain, text
        tokenizer.encode_special_tokens = False
        assert tokenizer.encode(text, add_special_tokens=False).ids == special, text
        if name in SPLIT_RULES:
            assert tokenizer.decode(special, skip_special_tokens=False) == text


def test_every_rule_has_its_record() -> None:
    recorded = {SPLIT_RULES[name] for name in RECORDS if name in SPLIT_RULES}
    assert recorded == set(SPLIT_RULES.values()) and {"llama", "llama without prefix"} <= set(RECORDS)
    assert len({json.dumps(RECORDED[name]) for name in RECORDS}) == len(RECORDS), "texts that tell the rules apart"


def test_a_tokenizer_gives_the_same_tokens_in_transformers_with_its_begin_and_template(
    files: dict[str, Path], tmp_path: Path
) -> None:
    template = "{% for m in messages %}<|begin|>{{ m.content }}<|end|>{% endfor %}"
    for name, adds in (("llama", True), ("tekken", True), ("smollm", False)):
        folder = rebuilt(files[name], tmp_path / name, chat_template=template, **{"ggml.unknown_token_id": 0})
        tokenizer = AutoTokenizer.from_pretrained(folder)
        begin, end = (tokenizer.convert_tokens_to_ids(token) for token in SPECIAL)
        plain = [ids for ids, special in RECORDED[name] if ids == special]
        texts = [text for text, (ids, special) in zip(RECORDED["texts"], RECORDED[name], strict=True) if ids == special]
        assert [tokenizer(text).input_ids for text in texts] == [[begin] * adds + ids for ids in plain]
        assert (tokenizer.bos_token, tokenizer.eos_token) == SPECIAL
        assert tokenizer.apply_chat_template([{"content": "a"}], tokenize=False) == "<|begin|>a<|end|>"
        assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [end]


def test_a_file_can_ask_for_an_end_and_for_no_begin(files: dict[str, Path], tmp_path: Path) -> None:
    wanted = {"ggml.add_bos_token": False, "ggml.add_eos_token": True}
    tokenizer = Tokenizer.from_file(str(rebuilt(files["llama3"], tmp_path / "out", **wanted) / "tokenizer.json"))
    assert tokenizer.encode("a").tokens == ["a", "<|end|>"]
    assert tokenizer.encode("a", "B").tokens == ["a", "<|end|>", "B", "<|end|>"]


def test_unused_tokens_at_the_end_only_fill_the_table(files: dict[str, Path], tmp_path: Path) -> None:
    settings = read_gguf_header(files["qwen2"]).settings
    tokens, kinds = settings["tokenizer.ggml.tokens"], settings["tokenizer.ggml.token_type"]
    more = {"ggml.tokens": [*tokens, "<|tool|>", "[PAD1]"], "ggml.token_type": [*kinds, 4, 5]}
    tokenizer = Tokenizer.from_file(str(rebuilt(files["qwen2"], tmp_path / "out", **more) / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == len(tokens) + 1
    assert tokenizer.encode("a<|tool|>", add_special_tokens=False).ids[-1] == len(tokens)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ggml.pre": "falcon"}, r"its tokenizer \(gpt2, falcon\) is none of those that can be rebuilt .*as --base"),
        ({"ggml.pre": None}, r"\(gpt2, None\)"),
        ({"ggml.pre": ["smollm"]}, r"\(gpt2, \['smollm'\]\)"),
        ({"ggml.model": "t5"}, r"\(t5, smollm\)"),
        ({"ggml.tokens": ["a", "a"], "ggml.token_type": [1, 1]}, "2 tokens, 1 of them different, 2 kinds and 1,000 rows"),
        ({"ggml.token_type": [1]}, "1 kind and"),
        ({"ggml.merges": ["a nowhere"]}, "the tokenizer cannot be read: .*nowhere"),
        ({"ggml.tokens": ["a", ""], "ggml.token_type": [1, 3]}, "'' would get another number"),
        ({"ggml.model": "llama", "ggml.scores": [0.0]}, r"the tokenizer cannot be read: 1 scores for"),
    ],
)
def test_what_cannot_be_rebuilt_is_refused_by_name(
    files: dict[str, Path], tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        rebuilt(files["smollm"], tmp_path / "out", **({"ggml.merges": []} if "ggml.tokens" in settings else {}) | settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [name for name in RECORDS if name in SPLIT_RULES])
def test_a_rebuilt_tokenizer_can_be_written_again(files: dict[str, Path], tmp_path: Path, name: str) -> None:
    settings = read_gguf_header(files[name]).settings
    tokens, kinds, merges = (settings[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type", "merges"))
    back = read_vocabulary(rebuilt(files[name], tmp_path / "out"), len(tokens), None)
    assert SPLIT_RULES[back.rule] == SPLIT_RULES[name]
    assert (back.tokens, back.kinds, back.merges) == (tokens, kinds, merges)


@pytest.mark.parametrize("page", ["formats.md", "formats.zh-TW.md"])
def test_the_documents_list_every_name(page: str) -> None:
    lines = (
        (Path(__file__).parents[3] / "docs" / page)
        .read_text(encoding="utf-8")
        .split("## GGUF")[1]
        .split("\n## ")[0]
        .splitlines()
    )
    listed = [name for line in lines if line.startswith("- ") for name in re.findall(r"`([^`]+)`", line)]
    assert sorted(listed) == sorted(SPLIT_RULES)
