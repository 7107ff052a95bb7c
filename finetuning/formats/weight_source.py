"""Weights of a model, wherever they are: read lazily under Hugging Face's names, rows of one weight at a time.

Every tool that takes a model (export, merge, evaluate, generate) reads through `WeightSource`, on one process and in
memory that does not grow with the model. Not for training, which reads straight into the sharded model.
"""

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from finetuning.config.llama import LlamaConfig, read_llama_config
from finetuning.errors import InputError
from finetuning.formats.huggingface.files import check_weights, weight_files
from finetuning.i18n import t
from finetuning.model.llama import Llama
from finetuning.storage.dcp_reader import ShardedFiles

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip


class WeightSource(Protocol):
    """All weights of a Llama, under the names and in the shapes of Hugging Face's files."""

    @property
    def config(self) -> LlamaConfig: ...

    def shapes(self) -> dict[str, torch.Size]:
        """Name -> whole shape of every weight, in the model's order; a tied head has none of its own."""

    def dtype(self, name: str) -> torch.dtype:
        """In which the weight is stored."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start:stop) of a weight, on the CPU, in its stored dtype.

        Raises:
            InputError: a file is damaged or cut short.
        """


@dataclass(frozen=True)
class HuggingFaceSource:
    """A local folder in Hugging Face format, in one file or several."""

    folder: Path

    @cached_property
    def config(self) -> LlamaConfig:
        return read_llama_config(self.folder)

    @cached_property
    def files(self) -> dict[str, Path]:
        """Name -> the file that holds it.

        Raises:
            InputError: a file is missing or unreadable, or its tensors do not fit config.json.
        """
        check_weights(self.folder, self.config)
        found: dict[str, Path] = {}
        for file in weight_files(self.folder):
            with safe_open(str(file), framework="pt") as tensors:
                found |= dict.fromkeys(tensors.keys(), file)
        return found

    def shapes(self) -> dict[str, torch.Size]:
        assert self.files
        return llama_shapes(self.config)

    def dtype(self, name: str) -> torch.dtype:
        with safe_open(str(self.files[name]), framework="pt") as tensors:
            stored = tensors.get_slice(name).get_dtype()
        if stored not in DTYPES:
            raise InputError(
                t("{file}: {name} is stored as {dtype}; only {known} can be read", file=self.files[name], name=name,
                  dtype=stored, known=", ".join(DTYPES))
            )  # fmt: skip
        return DTYPES[stored]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        file = self.files[name]
        try:
            with safe_open(str(file), framework="pt") as tensors:
                return tensors.get_slice(name)[start:stop]
        except (SafetensorError, OSError) as error:
            raise InputError(t("{file}: cannot read the weights: {error}", file=file, error=error)) from None


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint of ours with all weights trained, of any layout."""

    folder: Path
    config: LlamaConfig
    prefix: str = "model."

    @cached_property
    def files(self) -> ShardedFiles:
        return ShardedFiles(self.folder)

    def shapes(self) -> dict[str, torch.Size]:
        return self._checked_shapes

    @cached_property
    def _checked_shapes(self) -> dict[str, torch.Size]:
        wanted = llama_shapes(self.config)
        stored = self.files.sizes
        wrong = [
            t("{name} should be {wanted}, found {found}", name=name, wanted=list(shape),
              found=list(stored[self.prefix + name]) if self.prefix + name in stored else t("nothing"))
            for name, shape in wanted.items()
            if stored.get(self.prefix + name) != shape
        ]  # fmt: skip
        if wrong:
            shown = "; ".join(wrong[:3]) + (f"; … ({len(wrong)})" if len(wrong) > 3 else "")
            raise InputError(t("{path}: the weights do not fit the model: {shown}", path=self.folder, shown=shown))
        return wanted

    def dtype(self, name: str) -> torch.dtype:
        return self.files.dtype(self.prefix + name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        return self.files.read(self.prefix + name, start, stop)


@cache
def llama_shapes(config: LlamaConfig) -> dict[str, torch.Size]:
    """Name -> shape of every weight of a model, in its order."""
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in Llama(config).named_parameters()}
