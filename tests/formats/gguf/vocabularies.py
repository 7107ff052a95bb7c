"""Small GGUF files that hold a vocabulary and nothing else, nasty texts, and llama.cpp's tokens of them.

`python -m tests.formats.gguf.vocabularies` asks llama.cpp (`make llamacpp`) and writes RECORDED, which the fast tests compare
with; `test_llama_cpp.py` asks it again, and also about the real vocabularies that lie in its source.
"""

import json
import os
import random
import re
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from finetuning.formats.gguf.split_rules import SPLIT_RULES

HERE = Path(__file__).parent
RECORDED = HERE / "llama_cpp_tokens.json"
LLAMA_CPP = Path(os.environ.get("LLAMA_CPP", HERE.parent.parent.parent / ".venv" / "llama.cpp"))
SPECIAL = ("<|begin|>", "<|end|>")
WHOLE = "camelCase"  # a token that no merge makes: only rules that take whole words find it
KIND = gguf.TokenType
WORDS = (
    "a B é É ß ſ K ǅ ʰ ª 中 文 ㄅ 가 ไ ก็ ा 1 12 3333 ２ １２３ ½ Ⅷ ² ' ’ 's 'LL 'Re 'ſ ! 。 ， 「 $ € + ^ ` - ( ) / // "
    "\\ _ ▁ ▁▁ Ġ ﬁ 😶\u200d🌫️ 👩\u200d👩\u200d👧 \u0301 e\u0301 \u200b \ufeff \U000e0001 hello world camelCase ÀB cÉd "
    "HTTPServer 颱風 如何在資料中搜尋字串？ <0x0A> <|begin|> <|end|>"
)
PARTS = [
    *WORDS.split(),
    " ",
    "  ",
    "\t",
    "\n",
    "\n\n",
    "\r\n",
    "\u3000",
    "\u00a0",
    "\u2003",
    "\u0085",
    "\x1c",
    " hello",
    " 7",
    " 世界",
]


def nasty_texts(count: int, seed: int = 5) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(PARTS, k=draw.randint(1, 14))) for _ in range(count)]


def write_byte_level(file: Path, rule: str, merges: list[str]) -> Path:
    """256 bytes, two special tokens between them and the merges, as files of some models have them."""
    merged = dict.fromkeys(pair.replace(" ", "") for pair in merges)
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *SPECIAL, *merged, WHOLE]
    kinds = [KIND.CONTROL if token in SPECIAL else KIND.NORMAL for token in tokens]
    return _write(file, "gpt2", rule, tokens, kinds, {"merges": merges})


def write_sentence_piece(file: Path, pieces: list[str], **settings: bool) -> Path:
    """Unknown, begin and end, 256 bytes, then pieces: the earlier, the higher their score."""
    tokens = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    kinds = [KIND.UNKNOWN, KIND.CONTROL, KIND.CONTROL, *[KIND.BYTE] * 256, *[KIND.NORMAL] * len(pieces)]
    scores = [0.0] * 259 + [-float(place) for place in range(len(pieces))]
    return _write(file, "llama", "default", tokens, kinds, {"scores": scores}, **settings)


def _write(
    file: Path, model: str, rule: str, tokens: list[str], kinds: list[Any], more: dict[str, list[Any]], **settings: bool
) -> Path:
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    for name, values in more.items():
        writer.add_array(f"tokenizer.ggml.{name}", values)
    for name, value in settings.items():
        writer.add_bool(f"tokenizer.ggml.{name}", value)
    writer.add_bos_token_id(tokens.index(SPECIAL[0]))
    writer.add_eos_token_id(tokens.index(SPECIAL[1]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return file


def write_small(folder: Path, recorded: dict[str, Any]) -> dict[str, Path]:
    """A file for the first name of each rule and two of SentencePiece, by the names under which their tokens are recorded."""
    firsts = {rule: name for name, rule in reversed(SPLIT_RULES.items())}.values()
    files = {name: write_byte_level(folder / f"{name}.gguf", name, recorded["merges"]) for name in firsts}
    files["llama"] = write_sentence_piece(folder / "llama.gguf", recorded["pieces"])
    files["llama without prefix"] = write_sentence_piece(folder / "bare.gguf", recorded["pieces"], add_space_prefix=False)
    return files


def llama_cpp_tokens(files: Iterable[Path], texts: list[str]) -> list[list[list[list[int]]]]:
    """For each file and text: its tokens where special ones are read as text, and where they are what they are."""
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "texts.json", Path(folder) / "tokens.json"
        given.write_text(json.dumps(texts), encoding="utf-8")
        command = ["node", HERE / "llama_cpp_tokens.mjs", LLAMA_CPP.resolve() / "node_modules", given, out, *files]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        found = json.loads(out.read_text(encoding="utf-8"))
    return [found[str(file)] for file in files]


def learned_from() -> list[str]:
    return [re.sub(rf"<[^>]*>|{WHOLE}", "", text) for text in nasty_texts(1000, seed=6)]


def learned_merges() -> list[str]:
    """Across all that some rule splits, so that each rule gives other tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False, max_token_length=16)
    tokenizer.train_from_iterator(learned_from(), trainer)
    return [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def learned_pieces() -> list[str]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=500, limit_alphabet=60, show_progress=False)
    tokenizer.train_from_iterator(learned_from(), trainer)
    raw = json.loads(tokenizer.to_str())["model"]
    merged = list(dict.fromkeys("".join(pair) for pair in raw["merges"]))
    return [*merged, *(token for token in raw["vocab"] if token not in set(merged))]


def read_recorded() -> dict[str, Any]:
    return json.loads(RECORDED.read_text(encoding="utf-8"))


def main() -> None:
    recorded: dict[str, Any] = {"merges": learned_merges(), "pieces": learned_pieces(), "texts": nasty_texts(40)}
    with tempfile.TemporaryDirectory() as folder:
        files = write_small(Path(folder), recorded)
        tokens = llama_cpp_tokens(files.values(), recorded["texts"])
    recorded |= dict(zip(files, tokens, strict=True))
    lines = [f" {json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in recorded.items()]
    RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
