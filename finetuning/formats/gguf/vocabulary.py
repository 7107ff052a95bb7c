"""A model folder's tokenizer as llama.cpp keeps it: tokens with their kinds, merges, special tokens, and the rule of splitting.

Read from the folder's files alone; nothing of them is run. llama.cpp knows a rule by name (llama-vocab.cpp) and computes it by
code of its own, so a tokenizer whose rule has no name there cannot be written: it would give other tokens without any error.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from finetuning.data.prompts.tokenizer import MAX_TOKENIZER_BYTES, TOKENIZER_FILE, read_end_token_ids, read_tokenizer_settings
from finetuning.errors import InputError
from finetuning.files.documents import read_json
from finetuning.formats.gguf.split_rules import GPT_2, SPLIT_RULES
from finetuning.i18n import t

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # kinds of tokens
# Of several names of a rule, the one that llama.cpp's converter gives Llamas.
USUAL = ("llama-bpe", "smollm", "gpt-2", "qwen2")
NAMES = {rule_name: (rule.expressions, rule.whole_words) for rule_name, rule in SPLIT_RULES.items()}
RULES = {name: NAMES[name] for name in USUAL} | NAMES
# At which llama.cpp ends an answer whatever a file says (llama-vocab.cpp, of those that Llamas have).
KNOWN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "</s>")


class _Model(msgspec.Struct):
    type: str | None = None
    vocab: dict[str, int] = {}
    merges: list[str | list[str]] = []
    ignore_merges: bool = False
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    byte_fallback: bool = False


class _AddedToken(msgspec.Struct):
    id: int
    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


class _Tokenizer(msgspec.Struct):
    model: _Model
    added_tokens: list[_AddedToken] = []
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer."""

    rule: str  # by which text is split: tokenizer.ggml.pre
    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    begin: int | None
    ends: dict[str, int]  # eos, eot, eom -> token
    other_ends: list[str]  # at which an answer ends too, and which a GGUF file has no place for
    adds_begin: bool  # before a text that is tokenized


def read_vocabulary(folder: Path, table_size: int, end_of_answer: str | None) -> Vocabulary:
    """
    Args:
        table_size: rows of the embedding table; what has no token there becomes an unused one.
        end_of_answer: the token that ends the trained answers; None: the tokenizer's own.

    Raises:
        InputError: llama.cpp has no name for how this tokenizer splits text, or it does more than llama.cpp can.
    """
    file = folder / TOKENIZER_FILE
    try:
        found = read_json(file, _Tokenizer, max_bytes=MAX_TOKENIZER_BYTES)
    except FileNotFoundError as error:
        raise InputError(t("{file}: cannot read the tokenizer: {error}", file=file, error=error.strerror)) from None
    rule = _rule(found)
    problems = _problems(found, table_size, file)
    if rule is None:
        problems.insert(
            0,
            t(
                "{file}: splits text in a way that has no name in llama.cpp ({names} …), where it would give other "
                "tokens; serve the model with vLLM or SGLang, by finetune export --to hf",
                file=file,
                names=", ".join(USUAL),
            ),
        )
    if rule is None or problems:
        raise InputError(problems)
    ids = found.model.vocab | {token.content: token.id for token in found.added_tokens}
    names = {number: token for token, number in ids.items()}
    kinds = {token.id: CONTROL if token.special else USER_DEFINED for token in found.added_tokens}
    settings = read_tokenizer_settings(folder).special_tokens()
    begin, own_end = (ids.get(settings.get(name, "")) for name in ("bos_token", "eos_token"))
    stops = read_end_token_ids(folder) | ({own_end} if own_end is not None else set())
    ends = _ends(ids, own_end, end_of_answer, stops)
    placed = set(ends.values())
    return Vocabulary(
        rule,
        [names.get(number, f"[PAD{number}]") for number in range(table_size)],
        [kinds.get(number, NORMAL if number in names else UNUSED) for number in range(table_size)],
        [pair if isinstance(pair, str) else " ".join(pair) for pair in found.model.merges],
        begin,
        ends,
        sorted(names[stop] for stop in stops - placed if stop in names and names[stop] not in KNOWN_ENDS),
        begin is not None and _first_special(found.post_processor) == names[begin],
    )


def add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    """Writes it into a `gguf.GGUFWriter`."""
    writer.add_tokenizer_model("gpt2")  # llama.cpp's name of every byte-level BPE
    writer.add_tokenizer_pre(vocabulary.rule)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges)
    if vocabulary.begin is not None:
        writer.add_bos_token_id(vocabulary.begin)
    for name, token in vocabulary.ends.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token)
    writer.add_add_bos_token(vocabulary.adds_begin)


def _rule(found: _Tokenizer) -> str | None:
    """The name of the rule by which a tokenizer splits text; None: llama.cpp has none."""
    if found.normalizer is not None or found.pre_tokenizer is None:
        return None
    *splits, last = expressions if (expressions := _expressions(found.pre_tokenizer)) else [None]
    if last != "":  # what makes letters of bytes comes last
        return None
    return next((name for name, rule in RULES.items() if rule == (tuple(splits), found.model.ignore_merges)), None)


def _expressions(pre_tokenizer: dict[str, Any]) -> list[str | None]:
    """What each pre-tokenizer splits by, "" where it only makes letters of bytes; None: nothing that is known here."""
    parts = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    found: list[str | None] = []
    for part in parts if isinstance(parts, list) else []:
        match part:
            case {"type": "Split", "pattern": {"Regex": str(expression)}, "behavior": "Isolated", "invert": False}:
                found.append(expression)
            case {"type": "Digits", "individual_digits": True}:
                found.append(r"\p{N}")
            case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": bool(splits)}:
                found += [GPT_2, ""] if splits else [""]
            case _:
                found.append(None)
    return found


def _problems(found: _Tokenizer, table_size: int, file: Path) -> list[str]:
    model = found.model
    problems = []
    if model.type != "BPE" or model.continuing_subword_prefix or model.end_of_word_suffix or model.byte_fallback:
        problems.append(t("{file}: is no byte-level BPE, which alone can be written into a GGUF file", file=file))
    if any(len(pair) != 2 for pair in model.merges if isinstance(pair, list)) or any(
        " " in part for pair in model.merges if isinstance(pair, list) for part in pair
    ):
        problems.append(t("{file}: is no byte-level BPE, which alone can be written into a GGUF file", file=file))
    greedy = [token.content for token in found.added_tokens if token.lstrip or token.rstrip or token.single_word]
    if greedy:
        problems.append(
            t(
                "{file}: {token!r} takes white space beside it, or stands alone only, which llama.cpp does not know",
                file=file,
                token=greedy[0],
            )
        )
    largest = max([*model.vocab.values(), *(token.id for token in found.added_tokens)], default=-1)
    if largest >= table_size:
        problems.append(
            t(
                "{file}: has a token of number {largest}, and the embedding table has {rows} row{rows:s}",
                file=file,
                largest=largest,
                rows=table_size,
            )
        )
    return list(dict.fromkeys(problems))


def _ends(ids: dict[str, int], own: int | None, end_of_answer: str | None, stops: set[int]) -> dict[str, int]:
    """Where an answer ends, in the three places that a GGUF file has."""
    trained = ids.get(end_of_answer) if end_of_answer is not None else None
    eot = ids.get("<|eot_id|>")
    turn = trained if trained is not None else eot if eot in stops else None
    message = ids.get("<|eom_id|>")
    found = {"eos": own if own is not None else turn, "eot": turn, "eom": message if message in stops else None}
    return {name: token for name, token in found.items() if token is not None}


def _first_special(post_processor: dict[str, Any] | None) -> str | None:
    """The token that a post-processor puts before every text."""
    for part in (post_processor or {}).get("processors", [post_processor]):
        if isinstance(part, dict) and part.get("type") == "TemplateProcessing":
            first = next(iter(part.get("single") or []), None)
            special = first.get("SpecialToken") if isinstance(first, dict) else None
            return special.get("id") if isinstance(special, dict) else None
    return None
