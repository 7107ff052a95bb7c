"""Models in and out in Hugging Face format.

In: safetensors of a local folder, read by slices straight into the sharded model. Out: a folder that
`AutoModelForCausalLM.from_pretrained` loads, written shard by shard, with config, tokenizer, chat template and
generation config. A model on the hub is downloaded first (`finetuning.launch.hub`).
"""

import hashlib
import json
import shutil
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.tensor import DTensor

from finetuning.errors import InputError
from finetuning.i18n import t
from finetuning.model.config import LlamaConfig
from finetuning.model.llama import Llama
from finetuning.parallel.apply import base_parameters

SHARD_BYTES = 4 * 2**30
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
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


def load_base_weights(model_path: Path, model: Llama) -> None:
    """Fills all weights but the adapters from a local folder; every rank must call it and reads its own slices."""
    state = {name: parameter.data for name, parameter in base_parameters(model).items()}
    dcp.load(state, storage_reader=HuggingFaceStorageReader(str(model_path)))


def export_model(model: Llama, target: Path, base: Path, chat_template: str | None) -> None:
    """Writes the full model to `target`, in the base model's dtype; every rank must call it, rank 0 writes.

    At most one shard (SHARD_BYTES) is held in host memory. An earlier result in `target` is replaced when the new one
    is complete.
    """
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(model.config.dtype, torch.float32)
    parameters = dict(model.named_parameters())
    shards = _assign_shards({name: p.numel() * dtype.itemsize for name, p in parameters.items()})
    temporary = begin_folder(target)
    for number, names in enumerate(shards, start=1):
        tensors = {}
        for name in names:
            tensor = gather(parameters[name])
            if dist.get_rank() == 0:
                tensors[name] = tensor.to(device="cpu", dtype=dtype).contiguous()
        if dist.get_rank() == 0:
            save_file(tensors, str(temporary / _shard_name(number, len(shards))), metadata={"format": "pt"})
    if dist.get_rank() == 0:
        if len(shards) > 1:
            weight_map = {name: _shard_name(n, len(shards)) for n, names in enumerate(shards, 1) for name in names}
            total = sum(p.numel() * dtype.itemsize for p in parameters.values())
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (temporary / INDEX_FILE).write_text(json.dumps(index, indent=2), encoding="utf-8")
        shutil.copyfile(base / "config.json", temporary / "config.json")
        copy_companions(base, temporary, chat_template)
    finish_folder(temporary, target)


def gather(parameter: torch.nn.Parameter) -> torch.Tensor:
    """The whole tensor on every rank; every rank must call it."""
    data = parameter.data
    return data.full_tensor() if isinstance(data, DTensor) else data


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
