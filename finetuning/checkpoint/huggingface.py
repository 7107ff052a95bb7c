"""Models in and out in Hugging Face format.

In: safetensors of a local folder, read by slices straight into the sharded model. Out: a folder that
`AutoModelForCausalLM.from_pretrained` loads, written shard by shard, with config, tokenizer, chat template and
generation config. A model on the hub is downloaded first (`finetuning.launch.hub`).
"""

import json
import shutil
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

from finetuning.checkpoint.on_disk import INDEX_FILE, SINGLE_FILE
from finetuning.parallel.apply import ParallelLlama, base_parameters

SHARD_BYTES = 4 * 2**30
# Copied from the base model into every result.
COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "chat_template.jinja", "generation_config.json", "LICENSE", "LICENSE.txt", "USE_POLICY.md",
)  # fmt: skip


def load_base_weights(model_path: Path, model: ParallelLlama) -> None:
    """Fills all weights but the adapters from a local folder; every rank must call it and reads its own slices."""
    state = {name: model.view(name, parameter.data) for name, parameter in base_parameters(model).items()}
    dcp.load(state, storage_reader=HuggingFaceStorageReader(str(model_path)))
    model.refresh_copies()


def export_model(model: ParallelLlama, target: Path, base: Path, chat_template: str | None) -> None:
    """Writes the full model to `target`, in the base model's dtype; every rank must call it, rank 0 writes.

    At most one shard (SHARD_BYTES) is held in host memory. An earlier result in `target` is replaced when the new one
    is complete.
    """
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(model.config.dtype, torch.float32)
    shapes, held = model.all_shapes(), model.weights()
    shards = _assign_shards({name: shape.numel() * dtype.itemsize for name, shape in shapes.items()})
    temporary = begin_folder(target)
    for number, names in enumerate(shards, start=1):
        tensors = {}
        for name in names:
            tensor = model.whole(name, held[name].data if name in held else None, shapes[name], torch.float32)
            if tensor is not None:
                tensors[name] = tensor.to(device="cpu", dtype=dtype).contiguous()
        if dist.get_rank() == 0:
            save_file(tensors, str(temporary / _shard_name(number, len(shards))), metadata={"format": "pt"})
    if dist.get_rank() == 0:
        if len(shards) > 1:
            weight_map = {name: _shard_name(n, len(shards)) for n, names in enumerate(shards, 1) for name in names}
            total = sum(shape.numel() * dtype.itemsize for shape in shapes.values())
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (temporary / INDEX_FILE).write_text(json.dumps(index, indent=2), encoding="utf-8")
        shutil.copyfile(base / "config.json", temporary / "config.json")
        copy_companions(base, temporary, chat_template)
    finish_folder(temporary, target)


def begin_folder(target: Path) -> Path:
    """An empty folder beside `target` to write into; every rank must call it."""
    temporary = target.with_name(f".incomplete-{target.name}")
    if dist.get_rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier()
    return temporary


def finish_folder(temporary: Path, target: Path) -> None:
    """Puts the complete folder in its place; every rank must call it."""
    if dist.get_rank() == 0:
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    dist.barrier()


def copy_companions(base: Path, target: Path, chat_template: str | None) -> None:
    """Copies tokenizer, generation config and licence; `chat_template` replaces the tokenizer's own when given."""
    for name in COMPANIONS:
        if (base / name).is_file():
            shutil.copyfile(base / name, target / name)
    if chat_template is not None:
        (target / "chat_template.jinja").write_text(chat_template, encoding="utf-8")


def _shard_name(number: int, count: int) -> str:
    return SINGLE_FILE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _assign_shards(sizes: dict[str, int]) -> list[list[str]]:
    """Names in order, cut before a shard would grow over SHARD_BYTES."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if filled + size > SHARD_BYTES and shards[-1]:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards
