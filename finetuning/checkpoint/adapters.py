"""LoRA adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor, distribute_tensor

from finetuning.checkpoint.huggingface import begin_folder, copy_companions, finish_folder, gather
from finetuning.config import RunConfig
from finetuning.errors import InputError
from finetuning.i18n import t
from finetuning.model.llama import Llama
from finetuning.model.lora import initial_adapter
from finetuning.parallel.apply import adapter_parameters

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # PEFT's wrapper in front of our names
# PEFT settings that change what an adapter computes; any other value is refused.
PLAIN_SETTINGS: dict[str, Any] = {
    "peft_type": "LORA", "bias": "none", "use_dora": False, "use_rslora": False, "fan_in_fan_out": False,
    "modules_to_save": None, "layers_to_transform": None, "rank_pattern": {}, "alpha_pattern": {},
}  # fmt: skip


def initialise_adapters(model: Llama, seed: int) -> None:
    """Fills the adapters with their start values, the same in every layout; every rank must call it."""
    for name, parameter in adapter_parameters(model).items():
        _fill(parameter, initial_adapter(name, parameter.shape, seed))


def export_adapters(model: Llama, target: Path, config: RunConfig, base: Path, chat_template: str | None) -> None:
    """Writes the adapters and the tokenizer to `target`; every rank must call it, rank 0 writes."""
    temporary = begin_folder(target)
    tensors = {PREFIX + name: gather(p).cpu().contiguous() for name, p in adapter_parameters(model).items()}
    if dist.get_rank() == 0:
        save_file(tensors, str(temporary / WEIGHTS_FILE), metadata={"format": "pt"})
        base_name = str(base.resolve()) if Path(config.hf_model_id).is_dir() else config.hf_model_id  # PEFT opens it anywhere
        settings = PLAIN_SETTINGS | {
            "task_type": "CAUSAL_LM", "inference_mode": True, "base_model_name_or_path": base_name,
            "r": config.lora_rank, "lora_alpha": config.lora_alpha, "lora_dropout": 0.0,
            "target_modules": list(config.lora_targets),
        }  # fmt: skip
        (temporary / CONFIG_FILE).write_text(json.dumps(settings, indent=2), encoding="utf-8")
        copy_companions(base, temporary, chat_template)
    finish_folder(temporary, target)


def check_adapter(folder: Path, config: RunConfig) -> list[str]:
    """What keeps this PEFT adapter from being the start of the run; empty when it fits."""
    settings = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    problems = [
        t("{folder}: {name} is {value!r}; only {supported!r} is supported", folder=folder, name=name,
          value=settings[name], supported=plain)
        for name, plain in PLAIN_SETTINGS.items()
        if settings.get(name) and settings[name] != plain
    ]  # fmt: skip
    wanted = {"r": config.lora_rank, "lora_alpha": config.lora_alpha, "target_modules": sorted(config.lora_targets)}
    found = {**settings, "target_modules": sorted(settings.get("target_modules") or [])}
    problems += [
        t("{folder}: {name} is {found!r}, but the run asks for {wanted!r}; give the same value", folder=folder, name=name,
          found=found.get(name), wanted=value)
        for name, value in wanted.items()
        if found.get(name) != value
    ]  # fmt: skip
    return problems


def load_adapters(folder: Path, model: Llama) -> None:
    """Fills the adapters from a PEFT folder; every rank must call it.

    Raises:
        InputError: the file lacks an adapter of this model.
    """
    stored = load_file(str(folder / WEIGHTS_FILE))
    for name, parameter in adapter_parameters(model).items():
        if PREFIX + name not in stored:
            raise InputError(t("{folder}: holds no adapter {name}", folder=folder, name=name))
        _fill(parameter, stored[PREFIX + name])


@torch.no_grad()
def _fill(parameter: torch.nn.Parameter, value: torch.Tensor) -> None:
    data = parameter.data
    if isinstance(data, DTensor):
        whole = value.to(device=data.device, dtype=data.dtype)
        # Every rank holds the whole value already: no broadcast.
        data.copy_(distribute_tensor(whole, data.device_mesh, data.placements, src_data_rank=None))
    else:
        data.copy_(value)
