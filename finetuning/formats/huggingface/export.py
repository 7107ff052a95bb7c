"""Writes any stored model as a folder in Hugging Face format, or its adapter in PEFT's: one process, a piece at a time.

Memory does not grow with the model: PIECE_BYTES of one weight are read, converted and written before the next. A folder
appears when it is complete; what an interrupted or failed export leaves is removed.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from finetuning.errors import InputError
from finetuning.files import atomic
from finetuning.formats.huggingface.companions import check_companions, copy_companions
from finetuning.formats.huggingface.files import weight_files
from finetuning.formats.huggingface.safetensors_writer import SafetensorsFile, Stored, converted, plan_files
from finetuning.formats.huggingface.sharded import write_description
from finetuning.formats.peft.sharded import write_adapter
from finetuning.formats.stored_model import StoredModel
from finetuning.formats.weight_source import HuggingFaceSource, WeightSource
from finetuning.i18n import t

PIECE_BYTES = 64 * 2**20
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
Progress = Callable[[int, int], None]  # bytes written, bytes in all


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `target` at the end, and is removed if anything fails.

    Raises:
        InputError: `target` is there already and not empty, or cannot be made.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(t("{path}: is there already; give another folder, or remove it first", path=target))
    with atomic.whole_folder(target) as folder:
        yield folder


def export_hugging_face(model: StoredModel, target: Path, dtype: str | None, progress: Progress) -> None:
    """Writes all weights, an adapter merged into them, with config, tokenizer and templates.

    Args:
        dtype: of the weights, a key of DTYPES; None: that of the base model's files.
        progress: is told how far it is.

    Raises:
        InputError: a file is damaged, `target` is in the way, the disk is too full, or a number does not fit the dtype.
    """
    source = model.weights()
    dtype_of = stored_dtypes(model)
    tensors = {
        name: Stored(shape, DTYPES[dtype] if dtype is not None else dtype_of(name)) for name, shape in source.shapes().items()
    }
    plan = plan_files(tensors, model.base_folder)
    total, done = sum(stored.size for stored in tensors.values()), 0
    check_companions(model.base_folder)
    check_companions(model.tokenizer_folder)
    with whole_folder(target) as folder:
        free = shutil.disk_usage(folder).free
        if free < total:
            raise InputError(
                t("{path}: needs {needed:.1f} GiB, and the disk has {free:.1f}", path=target, needed=total / 2**30,
                  free=free / 2**30)
            )  # fmt: skip
        for file, names in plan.files.items():
            with SafetensorsFile(folder / file, {name: tensors[name] for name in names}) as writer:
                for name in names:
                    for rows in pieces(source, name):
                        rows = converted(name, rows, tensors[name].dtype)
                        writer.write(rows)
                        done += rows.numel() * rows.itemsize
                        progress(done, total)
        changed = dtype if dtype is not None and dtype != source.config.dtype else None
        write_description(folder, plan, model.base_folder, changed)
        copy_companions(model.tokenizer_folder, folder, model.chat_template(), model.origin)


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


def pieces(source: WeightSource, name: str) -> Iterator[torch.Tensor]:
    """A weight as rows in order, PIECE_BYTES of float32 at a time."""
    shape = source.shapes()[name]
    step = max(1, PIECE_BYTES // (4 * (shape.numel() // shape[0])))
    for start in range(0, shape[0], step):
        yield source.read(name, start, min(start + step, shape[0]))


def stored_dtypes(model: StoredModel) -> Callable[[str], torch.dtype]:
    """What the base's files hold, where they are there; a checkpoint's own weights are float32, whatever they came from."""
    base = HuggingFaceSource(model.base_folder)
    try:
        has_weights = bool(weight_files(model.base_folder))
    except InputError:
        has_weights = False
    if has_weights:
        return base.dtype
    declared = DTYPES.get(base.config.dtype, torch.float32)
    return lambda name: declared
