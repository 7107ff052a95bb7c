"""The tokenizer in a GGUF file as Hugging Face's files, token for token that of the model.

A GGUF file holds tokens with their kinds; of a byte-level BPE the merges and the name of the rule by which text is split before
(`finetuning.formats.gguf.split_rules`); of a SentencePiece model (`llama`) a score of each token, the highest merged first.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from finetuning.config.llama import LlamaConfig
from finetuning.errors import InputError
from finetuning.formats.gguf.split_rules import SPLIT_RULES, SplitRule
from finetuning.i18n import t

BYTE_LEVEL, SENTENCE_PIECE = "gpt2", "llama"  # llama.cpp's names of the two
END_TOKENS = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<|im_end|>", "<|endoftext|>", "<|end|>")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # kinds of tokens
MATCHED = (UNKNOWN, CONTROL, USER_DEFINED)  # in a text as a whole, before anything is split
BLANK = "▁"  # stands for a blank in tokens of SentencePiece


def write_tokenizer(file: Path, settings: Mapping[str, Any], config: LlamaConfig, target: Path) -> None:
    """Writes tokenizer, its settings, chat template and end tokens of a GGUF file into a folder.

    Args:
        settings: of the file's header.

    Raises:
        InputError: it is damaged, or of a kind that is not known; then there is no folder.
    """
    tokenizer = _tokenizer(file, settings, config)
    target.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(target / "tokenizer.json"))
    tokens = _strings(settings, "tokens")
    kinds = _numbers(settings, "token_type")
    numbers = {name: number for name in ("bos", "eos", "eot", "eom") if (number := _token(settings, name)) is not None}
    named: dict[str, int] = {name: numbers[name] for name in ("bos", "eos") if name in numbers}
    for name, theirs in (("unk", "unknown"), ("pad", "padding")):
        number = _token(settings, theirs)
        if number is not None and kinds[number] in MATCHED:  # converters name ordinary ones for want of another
            named[name] = number
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name}_token": tokens[number] for name, number in named.items()},
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
    kind, name = settings.get("tokenizer.ggml.model"), settings.get("tokenizer.ggml.pre")
    rule = SPLIT_RULES.get(name) if kind == BYTE_LEVEL and isinstance(name, str) else None
    if rule is None and kind != SENTENCE_PIECE:
        raise InputError(
            t(
                "{file}: its tokenizer ({kind}, {rule}) is none of those that can be rebuilt from a GGUF file (listed in "
                "docs/formats.md); give a folder or hub name with the model's config.json and tokenizer as --base",
                file=file,
                kind=kind,
                rule=name,
            )
        )
    tokens, kinds = _strings(settings, "tokens"), _numbers(settings, "token_type")
    if not 0 < len(tokens) == len(set(tokens)) == len(kinds) <= config.vocab_size:
        raise InputError(
            t(
                "{file}: the tokenizer cannot be read: {error}",
                file=file,
                error=t(
                    "{tokens:,} token{tokens:s}, {different:,} of them different, {kinds:,} kind{kinds:s} and {rows:,} "
                    "row{rows:s} of the embedding table",
                    tokens=len(tokens),
                    different=len(set(tokens)),
                    kinds=len(kinds),
                    rows=config.vocab_size,
                ),
            )
        )
    end = _last(kinds, lambda kind: kind != UNUSED)  # what is not used at the end fills the table only
    ordinary = _last(kinds[:end], lambda kind: kind not in MATCHED)
    vocabulary = {token: number for number, token in enumerate(tokens[:ordinary])}
    try:
        tokenizer = _byte_level(vocabulary, settings, rule) if rule else _sentence_piece(vocabulary, settings)
    except Exception as error:  # tokenizers raises bare Exception
        raise InputError(t("{file}: the tokenizer cannot be read: {error}", file=file, error=error)) from None
    matched = [number for number in range(end) if kinds[number] in MATCHED]  # new ones get their numbers by their order
    tokenizer.add_tokens([AddedToken(tokens[n], special=kinds[n] != USER_DEFINED, normalized=False) for n in matched])
    misplaced = [token for number, token in enumerate(tokens[:end]) if tokenizer.token_to_id(token) != number]
    if misplaced:
        problem = t("{token!r} would get another number", token=misplaced[0])
        raise InputError(t("{file}: the tokenizer cannot be read: {error}", file=file, error=problem))
    begins = bool(settings.get("tokenizer.ggml.add_bos_token", rule is None or rule.begins))
    _add_begin_and_end(tokenizer, settings, begins=begins, ends=bool(settings.get("tokenizer.ggml.add_eos_token", False)))
    return tokenizer


def _byte_level(vocabulary: dict[str, int], settings: Mapping[str, Any], rule: SplitRule) -> Tokenizer:
    pairs = (pair.partition(" ") for pair in _strings(settings, "merges"))
    merges = [(left, right) for left, _, right in pairs]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=rule.whole_words))
    splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in rule.expressions]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(vocabulary: dict[str, int], settings: Mapping[str, Any]) -> Tokenizer:
    """Of two neighbors that together are a token, those with the highest score are merged first."""
    scores, kinds = _numbers(settings, "scores"), _numbers(settings, "token_type")
    if len(scores) < len(vocabulary):
        raise ValueError(f"{len(scores)} scores for {len(vocabulary)} tokens")
    pairs = [
        (scores[number], token[:place], token[place:])
        for token, number in vocabulary.items()
        if kinds[number] == NORMAL
        for place in range(1, len(token))
        if token[:place] in vocabulary and token[place:] in vocabulary
    ]
    pairs.sort(key=lambda pair: (pair[0], len(pair[1])), reverse=True)
    unknown = _token(settings, "unknown")
    name = None if unknown is None else _strings(settings, "tokens")[unknown]
    merges = [(left, right) for _, left, right in pairs]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=name, fuse_unk=True, byte_fallback=True))
    prefix = bool(settings.get("tokenizer.ggml.add_space_prefix", True))
    begin = [normalizers.Prepend(BLANK)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*begin, normalizers.Replace(" ", BLANK)])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return tokenizer


def _add_begin_and_end(tokenizer: Tokenizer, settings: Mapping[str, Any], *, begins: bool, ends: bool) -> None:
    """What encoding with special tokens puts around a text."""
    tokens = _strings(settings, "tokens")
    begin, end = (_token(settings, "bos") if begins else None), (_token(settings, "eos") if ends else None)
    used = [(tokens[number], number) for number in (begin, end) if number is not None]
    if not used:
        return
    before, after = ("" if number is None else tokens[number] for number in (begin, end))
    first = f"{before} $A {after}".split()
    second = [f"{part}:1" for part in f"{before} $B {after}".split()]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=first, pair=[*first, *second], special_tokens=list(dict.fromkeys(used))
    )


def _token(settings: Mapping[str, Any], name: str) -> int | None:
    number = settings.get(f"tokenizer.ggml.{name}_token_id")
    return number if isinstance(number, int) and 0 <= number < len(_strings(settings, "tokens")) else None


def _strings(settings: Mapping[str, Any], name: str) -> list[str]:
    found = settings.get(f"tokenizer.ggml.{name}")
    return found if isinstance(found, list) and all(isinstance(text, str) for text in found) else []


def _numbers(settings: Mapping[str, Any], name: str) -> list[Any]:
    found = settings.get(f"tokenizer.ggml.{name}")
    return found if isinstance(found, list) and not any(isinstance(value, str | list) for value in found) else []


def _last(kinds: list[int], belongs: Callable[[int], bool]) -> int:
    """How many there are up to the last that belongs."""
    return next((len(kinds) - place for place, kind in enumerate(reversed(kinds)) if belongs(kind)), 0)
