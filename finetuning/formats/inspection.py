"""What can be told about a model without reading its weights: what the doors of every format answer to `inspect`."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuning.config.llama import LlamaConfig
from finetuning.formats.huggingface.files import DTYPE_OF_CODE, TensorHeader

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


@dataclass(frozen=True)
class StoredWeight:
    shape: tuple[int, ...]
    dtype: str

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Inspection:
    """What was found; None: not known, or it has none."""

    path: str
    format: str
    model: LlamaConfig | None
    weights: Mapping[str, StoredWeight]  # under the names that they are stored with
    step: int | None = None  # optimizer steps done
    tokenizer: str | None = None
    layout: Mapping[str, int] | None = None  # parallel degrees that it was saved with
    optimizer_states: bool = False
    base: str | None = None  # the model that an adapter or checkpoint goes back to
    problems: tuple[str, ...] = ()  # why no command takes it

    @property
    def parameters(self) -> int:
        return sum(weight.numel for weight in self.weights.values())

    @property
    def dtypes(self) -> dict[str, int]:
        """dtype -> number of tensors."""
        return dict(Counter(weight.dtype for weight in self.weights.values()))

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        values = dataclasses.asdict(self)
        return values | {"parameters": self.parameters, "dtypes": self.dtypes}


def stored_weights(headers: Mapping[str, TensorHeader]) -> dict[str, StoredWeight]:
    """Of safetensors files."""
    return {name: StoredWeight(header.shape, DTYPE_OF_CODE.get(header.dtype, header.dtype)) for name, header in headers.items()}


def tokenizer_file(folder: Path) -> str | None:
    return next((str(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()), None)
