"""LoRA adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`."""

import json
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from finetuning.checkpoint.huggingface import begin_folder, copy_companions, finish_folder
from finetuning.checkpoint.on_disk import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, PLAIN_SETTINGS
from finetuning.config import RunConfig
from finetuning.errors import InputError
from finetuning.i18n import t
from finetuning.model.lora import initial_adapter, is_adapter
from finetuning.parallel.apply import ParallelLlama, adapter_parameters
from finetuning.parallel.weights import fill

PREFIX = "base_model.model."  # PEFT's wrapper in front of our names


def initialise_adapters(model: ParallelLlama, seed: int) -> None:
    """Fills the adapters with their start values, the same in every layout; every rank must call it."""
    for name, parameter in adapter_parameters(model).items():
        view = model.view(name, parameter.data)
        fill(view, initial_adapter(name, view.shape, seed))


def export_adapters(model: ParallelLlama, target: Path, config: RunConfig, base: Path, chat_template: str | None) -> None:
    """Writes the adapters and the tokenizer to `target`; every rank must call it, rank 0 writes."""
    temporary = begin_folder(target)
    held = adapter_parameters(model)
    tensors = {}
    for name, shape in model.all_shapes().items():
        if is_adapter(name):
            whole = model.whole(name, held[name].data if name in held else None, shape, torch.float32)
            if whole is not None:
                tensors[PREFIX + name] = whole.cpu().contiguous()
    if dist.get_rank() == 0:
        save_file(tensors, str(temporary / ADAPTER_WEIGHTS_FILE), metadata={"format": "pt"})
        base_name = str(base.resolve()) if Path(config.hf_model_id).is_dir() else config.hf_model_id  # PEFT opens it anywhere
        settings = PLAIN_SETTINGS | {
            "task_type": "CAUSAL_LM", "inference_mode": True, "base_model_name_or_path": base_name,
            "r": config.lora_rank, "lora_alpha": config.lora_alpha, "lora_dropout": 0.0,
            "target_modules": list(config.lora_targets),
        }  # fmt: skip
        (temporary / ADAPTER_CONFIG_FILE).write_text(json.dumps(settings, indent=2), encoding="utf-8")
        copy_companions(base, temporary, chat_template)
    finish_folder(temporary, target)


def load_adapters(folder: Path, model: ParallelLlama) -> None:
    """Fills the adapters from a PEFT folder; every rank must call it.

    Raises:
        InputError: the file lacks an adapter of this model.
    """
    stored = load_file(str(folder / ADAPTER_WEIGHTS_FILE))
    for name, parameter in adapter_parameters(model).items():
        if PREFIX + name not in stored:
            raise InputError(t("{folder}: holds no adapter {name}", folder=folder, name=name))
        fill(model.view(name, parameter.data), stored[PREFIX + name])
