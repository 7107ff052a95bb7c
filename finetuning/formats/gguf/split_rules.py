"""By which rule a byte-level BPE splits text into words before it merges: llama.cpp's names for them, and what they mean.

A GGUF file holds only the name (`tokenizer.ggml.pre`). The expressions are those of llama.cpp's llama-vocab.cpp of September
2026, written as `tokenizers` reads them; `tests/formats/gguf/test_llama_cpp.py` compares the tokens.
"""

from dataclasses import dataclass

GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Contractions, a word with one leading mark, digits, punctuation, line ends, white space.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
# As llama.cpp has it: of capitals, only those from A to Z begin a word inside another.
_UPPER, _LOWER = r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])"
_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?"
_CASED = r"[^\r\n\p{L}\p{N}]?{u}*{l}+{c}|[^\r\n\p{L}\p{N}]?{u}+{l}*{c}|{n}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _cased(contraction: str, digits: str) -> str:
    text = _CASED.replace("{u}", _UPPER).replace("{l}", _LOWER)
    return text.replace("{c}", contraction).replace("{n}", digits)


@dataclass(frozen=True)
class SplitRule:
    expressions: tuple[str, ...]  # each splits what the one before has left
    whole_words: bool = False  # a word that is a token is taken whole, whatever the merges would make of it
    begins: bool = False  # a text gets the begin token, where the file does not say


_DEEPSEEK_LATIN = (
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\x{1F7D}ᾀ-ᾴᾶ-ᾼ\x{1FBE}ῂ-ῄῆ-ῌῐ-\x{1FD3}ῖ-\x{1FDB}"
    r"ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ\x{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)

_RULES: dict[SplitRule, str] = {
    SplitRule((LLAMA_3,), whole_words=True, begins=True): "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2",
    SplitRule((LLAMA_3,)): "dbrx smaug-bpe glm4 chatglm-bpe",
    SplitRule((QWEN_2,)): "qwen2 stablelm2 deepseek-r1-qwen kormo hunyuan megrez solar-open grok-2",
    SplitRule((GPT_2,)): "gpt-2 phi-2 mpt olmo jais exaone4 trillion granite-docling gigachat a.x-4.0 mellum modern-bert",
    SplitRule((r"\p{N}", GPT_2)): "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
    SplitRule((_cased("", r"\p{N}"),), whole_words=True, begins=True): "tekken",
    SplitRule((_cased(_CONTRACTION, r"\p{N}{1,3}"),)): "gpt-4o llama4 kanana2",
    SplitRule(
        (r"[\r\n]", _DEEPSEEK_LATIN, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}+")
    ): "deepseek-llm",
    SplitRule((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")): "deepseek-coder",
}
SPLIT_RULES = {name: rule for rule, names in _RULES.items() for name in names.split()}
