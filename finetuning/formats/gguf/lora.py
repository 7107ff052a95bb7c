"""LoRA out as a GGUF adapter, which llama.cpp adds to a file of its base: `llama-server --model BASE --lora ADAPTER`.

As llama.cpp's own converter writes it (convert_lora_to_gguf.py): of each weight A [rank, in] and B [out, rank], rows of B of
query and key in llama.cpp's order, and one alpha for all. llama.cpp scales by alpha / rank; where that is another scale than
in training (patterns, rank-stabilized), B takes up the difference.
"""

import json
from pathlib import Path

import torch

from finetuning.errors import InputError
from finetuning.formats.gguf.weights import gguf_name
from finetuning.formats.gguf.write import permuted
from finetuning.formats.huggingface.companions import ORIGIN_FILE
from finetuning.formats.huggingface.safetensors_writer import converted
from finetuning.formats.huggingface.write import whole_folder
from finetuning.formats.stored_model import StoredModel
from finetuning.i18n import t
from finetuning.on_demand import needed_for

DTYPES = {"f32": torch.float32, "f16": torch.float16}


def export_gguf_adapter(model: StoredModel, target: Path, kind: str) -> Path:
    """Writes a folder with `adapter-TYPE.gguf` and where it comes from; the file.

    Args:
        model: with an adapter.
        kind: of A and B, a key of DTYPES.

    Raises:
        InputError: `gguf` is not there, it is DoRA, `target` is in the way, or a number does not fit the type.
    """
    assert model.adapter is not None
    updates = model.adapter.updates
    if any(update.magnitude is not None for update in updates.values()):
        raise InputError(
            t("{path}: DoRA gives rows another length, which llama.cpp's adapters cannot; leave --adapter out", path=model.path)
        )
    with needed_for(t("export to GGUF")):
        import gguf
    head_dim = model.base.config.head_dim
    alpha = max((update.scale * len(update.a) for update in updates.values()), key=abs) or 1.0
    with whole_folder(target) as folder:
        name = f"adapter-{kind}.gguf"
        writer = gguf.GGUFWriter(folder / name, "llama")
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_name(target.name)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        for weight, update in updates.items():
            b = update.b * (update.scale * len(update.a) / alpha)
            if weight.endswith(("q_proj.weight", "k_proj.weight")):
                b = permuted(b, head_dim)
            for suffix, tensor in (("lora_a", update.a), ("lora_b", b)):
                writer.add_tensor(f"{gguf_name(weight)}.{suffix}", converted(weight, tensor, DTYPES[kind]).contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        if model.origin is not None:
            text = json.dumps(model.origin, indent=1, ensure_ascii=False) + "\n"
            (folder / ORIGIN_FILE).write_text(text, encoding="utf-8")
    return target / name
