"""The weights in a checkpoint of ours, of any layout: all of them, or the adapters."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from finetuning.config.llama import LlamaConfig
from finetuning.errors import InputError
from finetuning.formats.peft.adapter import Adapter, LowRank
from finetuning.formats.weight_source import llama_shapes, table_dtype_problems
from finetuning.i18n import t
from finetuning.storage.dcp_reader import ShardedFiles


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
            t(
                "{name} should be {wanted}, found {found}",
                name=name,
                wanted=list(shape),
                found=list(stored[self.prefix + name]) if self.prefix + name in stored else t("nothing"),
            )
            for name, shape in wanted.items()
            if stored.get(self.prefix + name) != shape
        ]
        if wrong:
            shown = "; ".join(wrong[:3]) + (f"; … ({len(wrong)})" if len(wrong) > 3 else "")
            raise InputError(t("{path}: the weights do not fit the model: {shown}", path=self.folder, shown=shown))
        if problems := table_dtype_problems(self.files, [self.prefix + name for name in wanted]):
            raise InputError(problems)
        return wanted

    def dtype(self, name: str) -> torch.dtype:
        return self.files.dtype(self.prefix + name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        return self.files.read(self.prefix + name, start, stop)


def checkpoint_adapter(files: ShardedFiles, alpha: float, rank: int) -> Adapter:
    """The adapters of a checkpoint that was trained with --peft lora.

    Raises:
        InputError: a file is damaged, or holds what is no plain number.
    """
    if problems := table_dtype_problems(files, [key for key in files.tensors if ".lora_" in key and key.startswith("model.")]):
        raise InputError(problems)
    updates = {}
    for key in files.tensors:
        if key.startswith("model.") and key.endswith(".lora_A.weight"):
            module = key.removesuffix(".lora_A.weight")
            name = module.removeprefix("model.") + ".weight"
            updates[name] = LowRank(files.read(key), files.read(module + ".lora_B.weight"), alpha / rank)
    return Adapter(updates)
