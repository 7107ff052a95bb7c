"""The tokenizer in a GGUF file as Hugging Face's files: Llama 3's byte-level BPE, token for token that of the model.

A GGUF file holds tokens, merges and the name of the rule by which text is split before. Only Llama 3's rule is known here.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from finetuning.config.llama import LlamaConfig
from finetuning.errors import InputError
from finetuning.i18n import t

LLAMA_3 = ("llama-bpe", "llama3", "llama-v3")
# Llama 3's words: contractions, a word with one leading mark, up to three digits, punctuation, line ends, white space.
LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END_TOKENS = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # kinds of tokens


def write_tokenizer(file: Path, settings: Mapping[str, Any], config: LlamaConfig, target: Path) -> None:
    """Writes tokenizer, its settings, chat template and end tokens of a GGUF file into a folder.

    Args:
        settings: of the file's header.

    Raises:
        InputError: the tokenizer is not Llama 3's; then there is no folder.
    """
    tokenizer = _tokenizer(file, settings, config)
    target.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(target / "tokenizer.json"))
    tokens = _strings(settings, "tokens")
    numbers = {name: number for name in ("bos", "eos", "eot", "eom") if (number := _token(settings, name)) is not None}
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name}_token": tokens[numbers[name]] for name in ("bos", "eos") if name in numbers},
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": config.max_position_embeddings,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    ends = {tokens.index(token) for token in END_TOKENS if token in tokens}
    ends |= {number for name, number in numbers.items() if name != "bos"}
    generation = {"bos_token_id": numbers.get("bos"), "eos_token_id": sorted(ends)}
    (target / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    template = settings.get("tokenizer.chat_template")
    if isinstance(template, str):
        (target / "chat_template.jinja").write_text(template, encoding="utf-8")


def _tokenizer(file: Path, settings: Mapping[str, Any], config: LlamaConfig) -> Tokenizer:
    kind, rule = settings.get("tokenizer.ggml.model"), settings.get("tokenizer.ggml.pre")
    tokens, merges = _strings(settings, "tokens"), _strings(settings, "merges")
    types = settings.get("tokenizer.ggml.token_type")
    types = types if isinstance(types, list) else []
    ordinary = _count_first(types, NORMAL)
    used = [number for number in types[ordinary:] if number != UNUSED]
    is_llama_3 = (
        kind == "gpt2"
        and rule in LLAMA_3
        and 0 < len(tokens) == len(set(tokens)) == len(types) <= config.vocab_size
        and set(used) <= {CONTROL, USER_DEFINED}
        and UNUSED not in types[ordinary : ordinary + len(used)]
        and all(pair.count(" ") == 1 for pair in merges)
    )
    if not is_llama_3:
        raise InputError(
            t(
                "{file}: its tokenizer ({kind}, {rule}) is not Llama 3's, which alone can be read from a GGUF file; give a "
                "folder or hub name with the model's config.json and tokenizer as --base",
                file=file,
                kind=kind,
                rule=rule,
            )
        )
    pairs = (pair.partition(" ") for pair in merges)
    vocabulary = {token: number for number, token in enumerate(tokens[:ordinary])}
    try:
        tokenizer = Tokenizer(models.BPE(vocabulary, [(left, right) for left, _, right in pairs], ignore_merges=True))
    except Exception as error:  # tokenizers raises bare Exception
        raise InputError(t("{file}: the tokenizer cannot be read: {error}", file=file, error=error)) from None
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = range(ordinary, ordinary + len(used))  # their order gives their numbers
    tokenizer.add_tokens([AddedToken(tokens[n], special=types[n] == CONTROL, normalized=False) for n in added])
    begin = _token(settings, "bos")
    if begin is not None and settings.get("tokenizer.ggml.add_bos_token", True):
        name = tokens[begin]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{name} $A", pair=f"{name} $A {name}:1 $B:1", special_tokens=[(name, begin)]
        )
    return tokenizer


def _token(settings: Mapping[str, Any], name: str) -> int | None:
    number = settings.get(f"tokenizer.ggml.{name}_token_id")
    return number if isinstance(number, int) and 0 <= number < len(_strings(settings, "tokens")) else None


def _strings(settings: Mapping[str, Any], name: str) -> list[str]:
    found = settings.get(f"tokenizer.ggml.{name}")
    return found if isinstance(found, list) and all(isinstance(text, str) for text in found) else []


def _count_first(values: list[int], value: int) -> int:
    """How many equal `value` before the first that does not."""
    return next((place for place, found in enumerate(values) if found != value), len(values))
