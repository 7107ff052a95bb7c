"""Makes a Llama 3.1 of a few million random parameters, so that everything can be tried without a download or a GPU.

The folder has what Meta's has: a LlamaForCausalLM with grouped queries, llama3 RoPE scaling and an untied head; a
byte-level BPE tokenizer that splits text by Llama 3's rule and ends in its special tokens; a chat template of the same
layout; three end tokens. Only the numbers are small. The tokenizer learns its merges from `data/alpaca/training.jsonl`
alone: validation and test data stay unseen. The same arguments and versions give the same bytes.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

TRAINING_FILE = Path(__file__).parent / "data" / "alpaca" / "training.jsonl"
MAX_POSITIONS = 131072

# In Llama 3.1's order; there they are followed by some 240 more reserved ones.
SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)

# Llama 3: contractions, a word with one leading mark, up to three digits, punctuation, line ends, other white space.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

PREAMBLE = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"

CHAT_TEMPLATE = """\
{#- Llama 3.1's layout without its tools: one system turn with two dates, then every message as header, text, end. -#}
{%- macro turn(role, text) -%}
{{ '<|start_header_id|>' ~ role ~ '<|end_header_id|>\\n\\n' ~ text ~ '<|eot_id|>' }}
{%- endmacro -%}
{%- set today = date_string | default('26 Jul 2024', true) -%}
{%- set dates = 'Cutting Knowledge Date: December 2023\\nToday Date: ' ~ today ~ '\\n\\n' -%}
{%- set has_system = messages and messages[0].role == 'system' -%}
{{- bos_token -}}
{{- turn('system', dates ~ (messages[0].content | trim if has_system else '')) -}}
{%- for message in messages[1 if has_system else 0:] -%}
{{- turn(message.role, message.content | trim) -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""


def make_tiny_model(
    folder: Path,
    *,
    hidden_size: int = 256,
    num_hidden_layers: int = 2,
    num_attention_heads: int = 8,
    num_key_value_heads: int = 4,
    intermediate_size: int = 448,
    vocab_size: int = 3072,
    tie_word_embeddings: bool = False,
    initializer_range: float = 0.06,
    seed: int = 1234,
    training_file: Path = TRAINING_FILE,
) -> int:
    """Writes a model folder in Hugging Face format and returns its number of parameters.

    Args:
        folder: made if need be; files of the same names are overwritten.
        vocab_size: all tokens: 256 bytes, then merges, then the 11 special tokens.
        initializer_range: standard deviation of the random weights; about 1 / sqrt(hidden_size), so that a small model
            learns from the first steps on (Llama's 0.02 suits 4096).
        seed: of the random weights; the global generator of torch is left as it was.
        training_file: what the tokenizer learns from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(vocab_size, training_file)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": MAX_POSITIONS,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")

    begin = tokenizer.token_to_id("<|begin_of_text|>")
    ends = [
        found for text in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>") if (found := tokenizer.token_to_id(text)) is not None
    ]
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_key_value_heads,
        max_position_embeddings=MAX_POSITIONS,
        rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        tie_word_embeddings=tie_word_embeddings,
        initializer_range=initializer_range,
        bos_token_id=begin,
        eos_token_id=ends,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=begin, eos_token_id=ends, do_sample=True, temperature=0.6, top_p=0.9
    )
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def train_tokenizer(vocab_size: int, training_file: Path = TRAINING_FILE) -> Tokenizer:
    """Byte-level BPE of exactly `vocab_size` tokens, special tokens last.

    Raises:
        ValueError: `vocab_size` has no room for bytes and special tokens, or the text has too few pairs to merge.
    """
    num_ordinary = vocab_size - len(SPECIAL_TOKENS)
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_ordinary, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_training_texts(training_file), trainer)
    if tokenizer.get_vocab_size() != num_ordinary:
        raise ValueError(
            f"a vocabulary of {vocab_size} cannot be made: {tokenizer.get_vocab_size()} bytes and merges "
            f"and {len(SPECIAL_TOKENS)} special tokens"
        )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
        special_tokens=[("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))],
    )
    return tokenizer


def _training_texts(training_file: Path) -> Iterator[str]:
    """The training samples as the chat template writes them, so that its words become short as well."""
    for line in training_file.read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        yield from (PREAMBLE, "system", "user", sample["input"], "assistant", sample["output"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a tiny Llama 3.1 with random weights, in Hugging Face format.")
    parser.add_argument("folder", type=Path, help="where to write it, for example examples/models/tiny-llama-3.1")
    folder = parser.parse_args().folder
    logging.disable_progress_bar()  # one tiny file needs none
    print(f"{folder}: Llama 3.1 with {make_tiny_model(folder) / 1e6:.1f} million random parameters")


if __name__ == "__main__":
    main()
