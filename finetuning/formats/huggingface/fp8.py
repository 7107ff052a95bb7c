"""Weights in fp8 as the package compressed-tensors keeps them ("float-quantized"); vLLM, SGLang and transformers load them.

Each linear layer of a block is in float8_e4m3fn, with the scale of each of its outputs in `NAME_scale` [O, 1]: weight = codes *
scale. Embeddings, head and norms stay as they are. Activations are quantized by whoever serves, token by token. Checked against
compressed-tensors 0.20.1. Our own readers refuse such folders, as all whose weights are no plain numbers.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetuning.files.documents import read_json
from finetuning.formats.huggingface.companions import CONFIG_FILE
from finetuning.formats.huggingface.safetensors_writer import Stored
from finetuning.model.kernels.ops import FP8_MAX, MIN_SCALE

KIND = "fp8"
LAYERS, SCALE = "_proj.weight", "_scale"  # how names of linear layers of blocks end, and those of their scales
_FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True}
QUANTIZATION_CONFIG: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": _FLOAT8 | {"strategy": "channel", "dynamic": False},
            "input_activations": _FLOAT8 | {"strategy": "token", "dynamic": True},
            "output_activations": None,
        }
    },
    "ignore": ["lm_head"],
    "kv_cache_scheme": None,
}


def is_fp8(folder: Path) -> bool:
    """Whether its weights are kept so."""
    return read_json(folder / CONFIG_FILE, dict[str, Any]).get("quantization_config") == QUANTIZATION_CONFIG


def fp8_layout(plain: dict[str, Stored]) -> dict[str, Stored]:
    """What is written of these weights, scales with them: in bfloat16 where the weight was, else in float32."""
    found = {}
    for name, stored in plain.items():
        if not name.endswith(LAYERS):
            found[name] = stored
            continue
        scale = torch.bfloat16 if stored.dtype == torch.bfloat16 else torch.float32
        found[name] = Stored(stored.shape, torch.float8_e4m3fn)
        found[name + SCALE] = Stored(torch.Size([stored.shape[0], 1]), scale)
    return found


def row_scales(rows_OI: Tensor, dtype: torch.dtype) -> Tensor:
    """[O, 1], so that the largest number of each row comes to 448."""
    return (rows_OI.float().abs().amax(1, keepdim=True) / FP8_MAX).clamp_min(MIN_SCALE).to(dtype)


def codes(rows_OI: Tensor, scales_O1: Tensor) -> Tensor:
    """The rows in float8; of scales as they are kept, so that their own rounding costs nothing."""
    return (rows_OI.float() / scales_O1.float()).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
