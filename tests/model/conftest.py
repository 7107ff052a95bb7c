"""Tiny Llamas in two implementations with the same weights: ours and transformers'."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from finetuning.config.llama import read_llama_config
from finetuning.model.llama import Llama

Pair = tuple[Llama, transformers.LlamaForCausalLM]

# The original length is so short that a row of 24 tokens meets all three bands of the scaling.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


@pytest.fixture
def make_pair(tmp_path: Path) -> Callable[..., Pair]:
    """A function from `config.json` settings to our model in float32 and transformers' in float64, of equal random weights.

    "sdpa" because transformers' "eager" attention rounds the softmax to float32.
    """

    def make(**settings: Any) -> Pair:
        shape = {
            "vocab_size": 97,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": LLAMA3_ROPE,
            "tie_word_embeddings": False,
            "rms_norm_eps": 1e-5,
        }
        config = transformers.LlamaConfig(**{**shape, **settings}, attn_implementation="sdpa")
        config.save_pretrained(tmp_path)
        theirs = transformers.LlamaForCausalLM(config).float()
        randomize(theirs)
        ours = Llama(read_llama_config(tmp_path))
        names = dict(ours.named_parameters())
        ours.load_state_dict({name: value for name, value in theirs.state_dict().items() if name in names})
        return ours, theirs.double()

    return make


@torch.no_grad()
def randomize(model: torch.nn.Module) -> None:
    """Weights that keep every layer's output near 1, and norms that differ from 1, so that no term hides in the rounding.

    Adapters add a fraction of that: where they outweigh their base, attention chooses between single tokens and rounding
    grows tenfold.
    """
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.uniform_(0.5, 1.5, generator=generator)
        else:
            parameter.normal_(0, parameter.shape[1] ** -0.5, generator=generator)
        if ".lora_B." in name:
            parameter.mul_(0.2)
