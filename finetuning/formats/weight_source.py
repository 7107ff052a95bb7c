"""Weights of a model, wherever they are: read lazily under Hugging Face's names, rows of one weight at a time.

Every tool that takes a model (export, merge, evaluate, generate) reads through `WeightSource`, on one process and in
memory that does not grow with the model. Not for training, which reads straight into the sharded model.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from finetuning.config.llama import LlamaConfig, read_llama_config
from finetuning.errors import InputError
from finetuning.formats.huggingface.files import (
    DTYPE_OF_CODE,
    TensorHeader,
    check_weights,
    dtype_problems,
    unreadable_dtypes,
)
from finetuning.i18n import t
from finetuning.model.llama import Llama
from finetuning.storage.stored_tensors import TensorTable

DTYPES: dict[str, torch.dtype] = {code: getattr(torch, name) for code, name in DTYPE_OF_CODE.items()}  # of safetensors


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
        if problems := unreadable_dtypes(self.folder):  # says more than that config.json calls them quantized
            raise InputError(problems)
        return read_llama_config(self.folder)

    @cached_property
    def headers(self) -> dict[str, TensorHeader]:
        """Name -> what its file says of it.

        Raises:
            InputError: a file is missing or unreadable, or its tensors do not fit config.json.
        """
        return check_weights(self.folder, self.config)

    @cached_property
    def _open(self) -> dict[Path, Any]:
        """Files that are mapped: to open one reads its whole header, and a weight is read in many blocks."""
        return {}

    def shapes(self) -> dict[str, torch.Size]:
        assert self.headers
        return llama_shapes(self.config)

    def dtype(self, name: str) -> torch.dtype:
        return DTYPES[self.headers[name].dtype]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        file = self.headers[name].file
        try:
            if file not in self._open:
                self._open[file] = safe_open(str(file), framework="pt")
            return self._open[file].get_slice(name)[start:stop]
        except (SafetensorError, OSError) as error:
            raise InputError(t("{file}: cannot read the weights: {error}", file=file, error=error)) from None


@cache
def llama_shapes(config: LlamaConfig) -> dict[str, torch.Size]:
    """Name -> shape of every weight of a model, in its order."""
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in Llama(config).named_parameters()}


def table_dtype_problems(table: TensorTable, keys: Iterable[str]) -> list[str]:
    """A message where weights of a table are no numbers as they stand."""
    return dtype_problems({(table.where, key): str(table.dtype(key)).removeprefix("torch.") for key in keys})
