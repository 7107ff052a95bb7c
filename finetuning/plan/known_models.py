"""Shapes of well-known models by their name on the hub, so that a plan needs neither network nor token. Imports no torch."""

from pathlib import Path
from typing import Any

from finetuning.config.llama import LlamaConfig
from finetuning.files.documents import read_yaml

MODELS_FILE = Path(__file__).with_name("models.yaml")


def known_model(name: str) -> LlamaConfig | None:
    """None: not in the table. What a plan does not go by, such as RoPE, is that of Llama 3."""
    sizes = read_yaml(MODELS_FILE, dict[str, dict[str, Any]]).get(name.removesuffix("-Instruct"))
    if sizes is None:
        return None
    head_dim = sizes.get("head_dim", sizes["hidden_size"] // sizes["num_attention_heads"])
    others: dict[str, Any] = {"rms_norm_eps": 1e-5, "rope_theta": 500000.0, "rope_scaling": None}
    others |= {"max_position_embeddings": 131072, "tie_word_embeddings": False, "dtype": "bfloat16", "head_dim": head_dim}
    return LlamaConfig(**(others | sizes))
