"""A very small model that has learned some answers by heart, so that what it says is text and its choices are clear."""

from pathlib import Path

import torch
import transformers

from examples.make_tiny_model import make_tiny_model
from finetuning.data.prompts.prompt_format import load_prompt_format
from finetuning.data.reading.records import Sample
from tests.conftest import TINY_SHAPE

STEPS, LEARNING_RATE = 80, 5e-3


def write_learned_model(folder: Path, samples: list[Sample], seed: int = 1234) -> Path:
    """A folder in Hugging Face format."""
    make_tiny_model(folder, **TINY_SHAPE | {"initializer_range": 0.1}, seed=seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    encoded = load_prompt_format(folder, None, None).encode_all(samples)
    length = max(len(tokens) for tokens, _ in encoded)
    tokens, labels = torch.zeros(len(encoded), length, dtype=torch.long), torch.full((len(encoded), length), -100)
    for row, (found, is_target) in enumerate(encoded):
        tokens[row, : len(found)] = torch.from_numpy(found).long()
        labels[row, : len(found)] = torch.where(torch.from_numpy(is_target), tokens[row, : len(found)], -100)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    for _ in range(STEPS):
        model(input_ids=tokens, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder
