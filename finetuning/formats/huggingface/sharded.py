"""Models in and out in Hugging Face format.

In: safetensors of a local folder, read by slices straight into the sharded model. Out: a folder that
`AutoModelForCausalLM.from_pretrained` loads, written shard by shard, with config, tokenizer, chat template and
generation config. A model on the hub is downloaded first (`finetuning.launch.hub`).
"""

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from finetuning.errors import RunError
from finetuning.files.atomic import begin_folder, finish_folder, require_room, tells_no_room
from finetuning.formats.huggingface.companions import copy_companions, copy_config
from finetuning.formats.huggingface.files import INDEX_FILE
from finetuning.formats.huggingface.safetensors_writer import FilePlan, SafetensorsFile, Stored, plan_files
from finetuning.formats.load_sharded import load_source
from finetuning.formats.weight_source import HuggingFaceSource
from finetuning.parallel.parallelize import ParallelLlama
from finetuning.runtime.agreement import on_first_rank


def load_base_weights(model_path: Path, model: ParallelLlama) -> None:
    """Fills all weights but the adapters from a local folder; every rank must call it and reads its own slices."""
    # Not by torch's HuggingFaceStorageReader (2.11-2.13): it takes every .safetensors in the folder, and the last one wins.
    load_source(HuggingFaceSource(model_path), model)


def export_model(
    model: ParallelLlama, target: Path, base: Path, chat_template: str | None, origin: dict[str, Any] | None = None
) -> None:
    """Writes the full model to `target`, in the base model's dtype and files; every rank must call it, rank 0 writes.

    One weight at a time is held in host memory. An earlier result in `target` is replaced when the new one is complete.
    """
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(model.config.dtype, torch.float32)
    shapes, held = model.all_shapes(), model.weights()
    tensors = {name: Stored(shape, dtype) for name, shape in shapes.items()}
    plan = plan_files(tensors, base)
    temporary = begin_shared_folder(target, sum(stored.size for stored in tensors.values()))
    for file, names in plan.files.items():
        writer = SafetensorsFile(temporary / file, {name: tensors[name] for name in names})
        with writer if dist.get_rank() == 0 else nullcontext():
            for name in names:
                tensor = model.whole(name, held[name].data if name in held else None, shapes[name], torch.float32)
                if tensor is not None:
                    writer.write(tensor.to(dtype))

    def finish() -> None:
        write_description(temporary, plan, base)
        copy_companions(base, temporary, chat_template, origin)

    finish_shared_folder(temporary, target, finish)


def begin_shared_folder(target: Path, size: int) -> Path:
    """An empty folder beside `target`, for rank 0 to write about `size` bytes into; every rank must call it.

    Raises:
        NoRoom: on all ranks, before a weight is gathered: the disk has less.
    """

    def begin() -> Path:
        temporary = begin_folder(target)
        require_room(temporary, size)
        return temporary

    return on_first_rank(begin)


def finish_shared_folder(temporary: Path, target: Path, last_files: Callable[[], None]) -> None:
    """Writes the last files and puts the folder in its place, on rank 0; every rank must call it.

    Raises:
        NoRoom: on all ranks; what was written is removed, and an earlier `target` untouched.
    """

    def finish() -> None:
        try:
            with tells_no_room(target.parent):
                last_files()
            finish_folder(temporary, target)
        except (OSError, RunError):
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    on_first_rank(finish)


def write_description(folder: Path, plan: FilePlan, base: Path, dtype: str | None = None) -> None:
    """The index of the weight files, and config.json as the base has it, but for another `dtype` where one is given."""
    if plan.index is not None:
        (folder / INDEX_FILE).write_text(plan.index, encoding="utf-8")
    copy_config(base, folder, dtype)
