"""LoRA adapters out in PEFT's format, with the tokenizer: of a model in training, or of a checkpoint."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import Tensor

from finetuning.config.settings import RunConfig
from finetuning.formats.huggingface.companions import check_companions, copy_companions
from finetuning.formats.huggingface.write import begin_shared_folder, finish_shared_folder, whole_folder
from finetuning.formats.peft.files import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, PLAIN_SETTINGS, PREFIX
from finetuning.formats.stored_model import StoredModel
from finetuning.model.lora import is_adapter

if TYPE_CHECKING:
    from finetuning.parallel.parallelize import ParallelLlama


def export_adapters(
    model: "ParallelLlama",
    target: Path,
    config: RunConfig,
    base: Path,
    chat_template: str | None,
    origin: dict[str, Any] | None = None,
) -> None:
    """Writes the adapters and the tokenizer to `target`; every rank must call it, rank 0 writes."""
    from finetuning.parallel.parallelize import adapter_parameters  # takes seconds, and one process needs none of it

    shapes = {name: shape for name, shape in model.all_shapes().items() if is_adapter(name)}
    temporary = begin_shared_folder(target, sum(4 * shape.numel() for shape in shapes.values()))
    held = adapter_parameters(model)
    tensors = {}
    for name, shape in shapes.items():
        whole = model.whole(name, held[name].data if name in held else None, shape, torch.float32)
        if whole is not None:
            tensors[name] = whole.cpu().contiguous()

    def write() -> None:
        base_name = str(base.resolve()) if Path(config.hf_model_id).is_dir() else config.hf_model_id  # PEFT opens it anywhere
        rank_stabilized = config.lora_scaling == "rslora"
        settings = (config.lora_rank, config.alpha, config.lora_targets)
        write_adapter(temporary, tensors, base_name, *settings, rank_stabilized=rank_stabilized)
        copy_companions(base, temporary, chat_template, origin)

    finish_shared_folder(temporary, target, write)


def export_peft(model: StoredModel, target: Path, base_name: str) -> None:
    """Writes the adapters of a checkpoint in PEFT format, with the tokenizer.

    Args:
        base_name: the base model as the adapter is to name it, a folder or a hub name.
    """
    assert model.is_checkpoint and model.adapter is not None
    first = next(iter(model.adapter.updates.values()))
    rank = len(first.a)
    tensors: dict[str, torch.Tensor] = {}
    for name, update in model.adapter.updates.items():
        module = name.removesuffix(".weight")
        tensors |= {f"{module}.lora_A.weight": update.a, f"{module}.lora_B.weight": update.b}
    check_companions(model.base_folder)
    check_companions(model.tokenizer_folder)
    with whole_folder(target) as folder:
        write_adapter(folder, tensors, base_name, rank, first.scale * rank, tuple(model.adapter.targets))
        copy_companions(model.tokenizer_folder, folder, model.chat_template(), model.origin)


def write_adapter(
    folder: Path,
    tensors: dict[str, Tensor],
    base_name: str,
    rank: int,
    alpha: float,
    targets: tuple[str, ...],
    *,
    rank_stabilized: bool = False,
) -> None:
    """The two files of an adapter in PEFT format; tensors by our names."""
    stored = {PREFIX + name: tensor for name, tensor in tensors.items()}
    # Not by save_file, which hides what the system said in an error of its own.
    (folder / ADAPTER_WEIGHTS_FILE).write_bytes(save(stored, metadata={"format": "pt"}))
    settings = PLAIN_SETTINGS | {
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "use_rslora": rank_stabilized,
        "target_modules": list(targets),
    }
    (folder / ADAPTER_CONFIG_FILE).write_text(json.dumps(settings, indent=2), encoding="utf-8")
