"""Which files of a folder in Hugging Face format hold its weights, and what their headers say; no number is read.

Imports no torch, so that a launch answers soon. Reading tensors is left to `weight_source`.
"""

import hashlib
import json
from pathlib import Path

from safetensors import safe_open

from finetuning.config.llama import LlamaConfig
from finetuning.errors import InputError
from finetuning.i18n import t

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


def weight_files(model_path: Path) -> list[Path]:
    """The safetensors files that hold the weights.

    Raises:
        InputError: there are none, the index is broken, or it names a missing one.
    """
    index = model_path / INDEX_FILE
    names = sorted(set(read_index(index).values())) if index.is_file() else [SINGLE_FILE]
    missing = [name for name in names if not (model_path / name).is_file()]
    if missing:
        other = ", ".join(sorted(p.name for p in model_path.glob("*.bin"))) or t("nothing")
        raise InputError(
            t("{path}: weight file {missing} is missing (other weight files: {other}); weights must be in safetensors format",
              path=model_path, missing=", ".join(missing), other=other)
        )  # fmt: skip
    return [model_path / name for name in names]


def read_index(index: Path) -> dict[str, str]:
    """Name of a weight -> name of the file that holds it.

    Raises:
        InputError: it is broken, or names a file outside its folder.
    """
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        outside = next((name for name in found.values() if Path(name).name != name), None)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(t("{file}: not an index of weight files; download it again", file=index)) from None
    if outside is not None:
        raise InputError(t("{folder}: names a file outside itself ({file})", folder=index, file=outside))
    return dict(found)


def check_weights(model_path: Path, config: LlamaConfig) -> None:
    """Reads the headers of the weight files and compares names and shapes with `config.json`; no tensor is read.

    Raises:
        InputError: a file is unreadable, or a tensor is missing or has another shape.
    """
    stored: dict[str, list[int]] = {}
    for file in weight_files(model_path):
        try:
            with safe_open(str(file), framework="numpy") as tensors:
                stored |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
        except Exception as error:  # safetensors raises its own SafetensorError or OSError depending on the damage
            raise InputError(t("{file}: cannot read the weights: {error}", file=file, error=error)) from None
    wanted = {name: list(shape) for name, shape in config.parameter_shapes().items()}
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
