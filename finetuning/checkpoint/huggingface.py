"""Models in and out in Hugging Face format.

In: safetensors of a local folder, read by slices straight into the sharded model. Out: a folder that
`AutoModelForCausalLM.from_pretrained` loads, written shard by shard, with config, tokenizer, chat template and
generation config. A model on the hub is downloaded first (`finetuning.launch.hub`).
"""

import hashlib
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

from finetuning.checkpoint.safetensors_files import INDEX_FILE, SINGLE_FILE, FilePlan, SafetensorsFile, Stored, plan_files
from finetuning.errors import InputError
from finetuning.i18n import t
from finetuning.model.config import LlamaConfig
from finetuning.model.llama import Llama
from finetuning.parallel.apply import ParallelLlama, base_parameters

ORIGIN_FILE = "finetuning.json"
# Copied from the base model into every result.
COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "chat_template.jinja", "generation_config.json", "LICENSE", "LICENSE.txt", "USE_POLICY.md",
)  # fmt: skip


def weight_files(model_path: Path) -> list[Path]:
    """The safetensors files that hold the weights.

    Raises:
        InputError: there are none, the index is broken, or it names a missing one.
    """
    index = model_path / INDEX_FILE
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(t("{file}: not an index of weight files; download it again", file=index)) from None
    else:
        names = [SINGLE_FILE]
    missing = [name for name in names if not (model_path / name).is_file()]
    if missing:
        other = ", ".join(sorted(p.name for p in model_path.glob("*.bin"))) or t("nothing")
        raise InputError(
            t("{path}: weight file {missing} is missing (other weight files: {other}); weights must be in safetensors format",
              path=model_path, missing=", ".join(missing), other=other)
        )  # fmt: skip
    return [model_path / name for name in names]


def check_weights(model_path: Path, config: LlamaConfig) -> None:
    """Reads the headers of the weight files and compares names and shapes with `config.json`; no tensor is read.

    Raises:
        InputError: a file is unreadable, or a tensor is missing or has another shape.
    """
    stored: dict[str, list[int]] = {}
    for file in weight_files(model_path):
        try:
            with safe_open(str(file), framework="pt") as tensors:
                stored |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
        except Exception as error:  # safetensors raises its own SafetensorError or OSError depending on the damage
            raise InputError(t("{file}: cannot read the weights: {error}", file=file, error=error)) from None
    with torch.device("meta"):
        wanted = {name: list(parameter.shape) for name, parameter in Llama(config).named_parameters()}
    wrong = [
        t("{name} should be {wanted}, found {found}", name=name, wanted=shape, found=stored.get(name, t("nothing")))
        for name, shape in wanted.items()
        if stored.get(name) != shape
    ]
    if wrong:
        shown = "; ".join(wrong[:3]) + (f"; … ({len(wrong)})" if len(wrong) > 3 else "")
        raise InputError(t("{path}: the weights do not fit config.json: {shown}", path=model_path, shown=shown))


def fingerprint(model_path: Path) -> str:
    """Identifies the weights without reading them all: config, names and sizes, and 64 KiB at three places of each file."""
    digest = hashlib.sha256((model_path / "config.json").read_bytes())
    for file in weight_files(model_path):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            for position in (0, size // 2, max(0, size - 65536)):
                stream.seek(position)
                digest.update(stream.read(65536))
    return digest.hexdigest()[:16]


def load_base_weights(model_path: Path, model: ParallelLlama) -> None:
    """Fills all weights but the adapters from a local folder; every rank must call it and reads its own slices."""
    state = {name: model.view(name, parameter.data) for name, parameter in base_parameters(model).items()}
    dcp.load(state, storage_reader=HuggingFaceStorageReader(str(model_path)))
    model.refresh_copies()


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
    temporary = begin_folder(target)
    for file, names in plan.files.items():
        writer = SafetensorsFile(temporary / file, {name: tensors[name] for name in names})
        with writer if dist.get_rank() == 0 else nullcontext():
            for name in names:
                tensor = model.whole(name, held[name].data if name in held else None, shapes[name], torch.float32)
                if tensor is not None:
                    writer.write(tensor.to(dtype))
    if dist.get_rank() == 0:
        write_description(temporary, plan, base)
        copy_companions(base, temporary, chat_template, origin)
    finish_folder(temporary, target)


def write_description(folder: Path, plan: FilePlan, base: Path, dtype: str | None = None) -> None:
    """The index of the weight files, and config.json as the base has it, but for another `dtype` where one is given."""
    if plan.index is not None:
        (folder / INDEX_FILE).write_text(plan.index, encoding="utf-8")
    if dtype is None:
        shutil.copyfile(base / "config.json", folder / "config.json")
        return
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


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


def copy_companions(base: Path, target: Path, chat_template: str | None, origin: dict[str, Any] | None = None) -> None:
    """Copies tokenizer, generation config and licence; `chat_template` replaces the tokenizer's own when given.

    `origin` becomes ORIGIN_FILE: where the model comes from and how it was prompted (finetuning.checkpoint.origin).
    """
    for name in COMPANIONS:
        if (base / name).is_file():
            shutil.copyfile(base / name, target / name)
    if chat_template is not None:
        (target / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    if origin is not None:
        (target / ORIGIN_FILE).write_text(json.dumps(origin, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
