"""Models out in Hugging Face format: a folder that `AutoModelForCausalLM.from_pretrained` loads.

Weights, config, tokenizer, chat template and generation config; of a model in training, which every rank calls and rank 0
writes (`export_model`), or of a stored one in one process (`export_hugging_face`). Memory does not grow with the model: one
weight, or PIECE_BYTES of it, is held at a time. A folder appears when it is complete.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from finetuning.errors import InputError, RunError
from finetuning.files import atomic
from finetuning.files.atomic import begin_folder, finish_folder, require_room, tells_no_room
from finetuning.formats.huggingface.companions import check_companions, copy_companions, copy_config
from finetuning.formats.huggingface.files import INDEX_FILE, weight_files
from finetuning.formats.huggingface.fp8 import QUANTIZATION_CONFIG, SCALE, codes, fp8_layout, row_scales
from finetuning.formats.huggingface.safetensors_writer import FilePlan, SafetensorsFile, Stored, converted, plan_files
from finetuning.formats.stored_model import StoredModel
from finetuning.formats.weight_source import HuggingFaceSource, WeightSource
from finetuning.i18n import t
from finetuning.runtime.agreement import on_first_rank

if TYPE_CHECKING:
    from finetuning.parallel.parallelize import ParallelLlama  # takes seconds to import, and one process needs none of it

PIECE_BYTES = 64 * 2**20
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
Progress = Callable[[int, int], None]  # bytes written, bytes in all


def export_model(
    model: "ParallelLlama", target: Path, base: Path, chat_template: str | None, origin: dict[str, Any] | None = None
) -> None:
    """Writes the full model to `target`, in the base model's dtype and files; every rank must call it, rank 0 writes.

    One weight at a time is held in host memory. An earlier result in `target` is replaced when the new one is complete.

    Raises:
        NoRoom: on all ranks, at the weight for which the disk had no room; what was written is removed.
    """
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(model.config.dtype, torch.float32)
    shapes, held = model.all_shapes(), model.weights()
    tensors = {name: Stored(shape, dtype) for name, shape in shapes.items()}
    plan = plan_files(tensors, base)
    temporary = begin_shared_folder(target, sum(stored.size for stored in tensors.values()))

    def rows_of(name: str) -> Iterator[torch.Tensor]:
        tensor = model.whole(name, held[name].data if name in held else None, shapes[name], torch.float32)
        yield torch.empty(0) if tensor is None else tensor.to(dtype)  # where nothing is written, there is none

    try:
        with tells_no_room(target.parent):
            write_weights(temporary, plan, tensors, rows_of, on_writer=on_first_rank)
    except (OSError, RunError):
        if dist.get_rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise

    def finish() -> None:
        write_description(temporary, plan, base)
        copy_companions(base, temporary, chat_template, origin)

    finish_shared_folder(temporary, target, finish)


def export_hugging_face(model: StoredModel, target: Path, dtype: str | None, progress: Progress, *, fp8: bool = False) -> None:
    """Writes all weights, an adapter merged into them, with config, tokenizer and templates.

    Args:
        dtype: of the weights, a key of DTYPES; None: that of the base model's files.
        progress: is told how far it is.
        fp8: linear layers of blocks in float8 with scales (finetuning.formats.huggingface.fp8), rounded once.

    Raises:
        InputError: a file is damaged, `target` is in the way, the disk is too full, or a number does not fit the dtype.
    """
    source = model.weights(rounds=not fp8)
    dtype_of = stored_dtypes(model)
    tensors = {
        name: Stored(shape, DTYPES[dtype] if dtype is not None else dtype_of(name)) for name, shape in source.shapes().items()
    }
    if fp8:
        tensors = fp8_layout(tensors)
    plan = plan_files(tensors, model.base_folder)
    total, done = sum(stored.size for stored in tensors.values()), 0

    def rows_of(name: str) -> Iterator[torch.Tensor]:
        nonlocal done
        for rows in _fp8_pieces(source, name, tensors) if fp8 else pieces(source, name):
            yield (rows := converted(name, rows, tensors[name].dtype))
            done += rows.numel() * rows.itemsize
            progress(done, total)

    check_companions(model.base_folder)
    check_companions(model.tokenizer_folder)
    with whole_folder(target) as folder:
        free = shutil.disk_usage(folder).free
        if free < total:
            raise InputError(
                t(
                    "{path}: needs {needed:.1f} GiB, and the disk has {free:.1f}",
                    path=target,
                    needed=total / 2**30,
                    free=free / 2**30,
                )
            )
        write_weights(folder, plan, tensors, rows_of)
        changed = dtype if dtype is not None and dtype != source.config.dtype else None
        write_description(folder, plan, model.base_folder, changed, QUANTIZATION_CONFIG if fp8 else None)
        copy_companions(model.tokenizer_folder, folder, model.chat_template(), model.origin)


def write_weights(
    folder: Path,
    plan: FilePlan,
    tensors: dict[str, Stored],
    rows_of: Callable[[str], Iterator[torch.Tensor]],
    *,
    on_writer: Callable[[Callable[[], None]], None] = lambda write: write(),
) -> None:
    """The weight files of a plan.

    Args:
        rows_of: the rows of a weight in order; every rank asks for them.
        on_writer: calls what writes, on the rank that does; an error of it is one of all ranks, so that none waits for another.
    """
    for file, names in plan.files.items():
        writer = SafetensorsFile(folder / file, {name: tensors[name] for name in names})
        with ExitStack() as opened:
            on_writer(partial(_open, writer, opened))
            for name in names:
                for rows in rows_of(name):
                    on_writer(partial(writer.write, rows))
            on_writer(opened.close)


def _open(writer: SafetensorsFile, opened: ExitStack) -> None:
    opened.enter_context(writer)


def write_description(
    folder: Path, plan: FilePlan, base: Path, dtype: str | None = None, quantization: dict[str, Any] | None = None
) -> None:
    """The index of the weight files, and config.json as the base has it, but for a `dtype` or quantization that is given."""
    if plan.index is not None:
        (folder / INDEX_FILE).write_text(plan.index, encoding="utf-8")
    copy_config(base, folder, dtype, quantization)


def pieces(source: WeightSource, name: str, multiple: int = 1) -> Iterator[torch.Tensor]:
    """A weight as rows in order, PIECE_BYTES of float32 at a time, and each a `multiple` of rows."""
    shape = source.shapes()[name]
    step = multiple * max(1, PIECE_BYTES // (4 * multiple * (shape.numel() // shape[0])))
    for start in range(0, shape[0], step):
        yield source.read(name, start, min(start + step, shape[0]))


def _fp8_pieces(source: WeightSource, name: str, tensors: dict[str, Stored]) -> Iterator[torch.Tensor]:
    """The same of what `fp8_layout` says. Scales are computed again for the codes: in a file they stand far before these."""
    weight = name.removesuffix(SCALE)
    for rows in pieces(source, weight):
        if weight + SCALE not in tensors:
            yield rows
            continue
        scales = row_scales(rows, tensors[weight + SCALE].dtype)
        yield scales if name.endswith(SCALE) else codes(rows, scales)


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
