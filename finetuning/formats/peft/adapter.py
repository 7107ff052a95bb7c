"""Adapters as plain tensors: out of a PEFT folder, and merged into the rows of a weight.

For one process: export, merge, evaluate and generate. Read are LoRA, also rank-stabilized (scaled by alpha / sqrt(rank)),
with patterns of rank and alpha, for some layers only, and DoRA (Liu et al. 2024). What else PEFT can express is refused.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from finetuning.config.llama import LlamaConfig
from finetuning.config.settings import LORA_TARGETS
from finetuning.errors import InputError
from finetuning.formats.peft.files import ADAPTER_WEIGHTS_FILE, PREFIX, check_layers, read_adapter_header, read_settings
from finetuning.formats.peft.settings import unsupported_settings
from finetuning.formats.weight_source import WeightSource
from finetuning.i18n import t


@dataclass(frozen=True)
class LowRank:
    """The update of one weight W [out, in]: W + scale * B A; with a magnitude, its rows are then given that length."""

    a: Tensor  # [rank, in], float32
    b: Tensor  # [out, rank], float32
    scale: float
    magnitude: Tensor | None = None  # [out], float32: DoRA

    def merged(self, rows: Tensor, start: int, stop: int) -> Tensor:
        """Rows [start:stop) of the weight with the update, in float32."""
        found = torch.addmm(rows.float(), self.b[start:stop], self.a, alpha=self.scale)
        if self.magnitude is not None:
            found *= (self.magnitude[start:stop] / torch.linalg.vector_norm(found, dim=1))[:, None]
        return found


@dataclass(frozen=True)
class Adapter:
    """Updates by the name of the weight, e.g. model.layers.0.self_attn.q_proj.weight."""

    updates: dict[str, LowRank]

    @property
    def targets(self) -> list[str]:
        """Names of the linear layers that are updated somewhere, as --lora_targets takes them."""
        there = {name.split(".")[-2] for name in self.updates}
        return [target for target in LORA_TARGETS if target in there]

    def check(self, shapes: dict[str, torch.Size], path: Path) -> None:
        """
        Raises:
            InputError: the model has no such weight, or one of another shape.
        """
        wrong = [
            t(
                "{name} is {found} there, the model's is {wanted}",
                name=name,
                found=[len(u.b), u.a.shape[1]],
                wanted=list(shapes[name]) if name in shapes else t("nothing"),
            )
            for name, u in self.updates.items()
            if shapes.get(name) != (len(u.b), u.a.shape[1])
        ]
        if wrong:
            raise InputError(t("{path}: the adapter belongs to another model: {shown}", path=path, shown="; ".join(wrong[:3])))


@dataclass(frozen=True)
class MergedSource:
    """A model with an adapter merged into it: computed in float32, row by row, and given in the base's dtype."""

    base: WeightSource
    adapter: Adapter
    base_is_checked: bool = False  # its fingerprint is that of the training
    rounds: bool = True  # to the base's dtype; else merged weights stay in float32

    @property
    def config(self) -> LlamaConfig:
        return self.base.config

    def shapes(self) -> dict[str, torch.Size]:
        return self.base.shapes()

    def dtype(self, name: str) -> torch.dtype:
        return self.base.dtype(name) if self.rounds or name not in self.adapter.updates else torch.float32

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        rows = self.base.read(name, start, stop)
        update = self.adapter.updates.get(name)
        return rows if update is None else update.merged(rows, start, start + len(rows)).to(self.dtype(name))


def read_adapter(folder: Path) -> Adapter:
    """An adapter in PEFT format.

    Raises:
        InputError: a file is missing or damaged, or the adapter computes something that is not supported.
    """
    settings = read_settings(folder)
    problems = unsupported_settings(folder, settings)
    if problems:
        raise InputError(problems)
    check_layers(folder, settings, read_adapter_header(folder))
    tensors = read_tensors(folder)
    updates: dict[str, LowRank] = {}
    for key in [key for key in tensors if key.startswith(PREFIX) and key.endswith(".lora_A.weight")]:
        module = key.removesuffix(".lora_A.weight")
        name = module.removeprefix(PREFIX)
        if module + ".lora_B.weight" not in tensors:
            raise InputError(t("{folder}: holds no adapter {name}", folder=folder, name=name + ".lora_B.weight"))
        a, b = tensors.pop(key), tensors.pop(module + ".lora_B.weight")
        magnitude = tensors.pop(module + ".lora_magnitude_vector", None) if settings.get("use_dora") else None
        if settings.get("use_dora") and magnitude is None:
            raise InputError(t("{folder}: holds no adapter {name}", folder=folder, name=name + ".lora_magnitude_vector"))
        updates[name + ".weight"] = LowRank(a.float(), b.float(), _scale(settings, name, len(a)), magnitude)
    if tensors or not updates:
        shown = ", ".join(sorted(tensors)[:3]) or t("nothing")
        raise InputError(t("{folder}: what is stored is not only LoRA of linear layers: {shown}", folder=folder, shown=shown))
    return Adapter(updates)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of the adapter, by PEFT's names.

    Raises:
        InputError: the file is missing or damaged, or holds what is no plain number.
    """
    read_adapter_header(folder)
    file = folder / ADAPTER_WEIGHTS_FILE
    try:
        return load_file(str(file))
    except (SafetensorError, OSError) as error:
        raise InputError(t("{file}: cannot read the weights: {error}", file=file, error=error)) from None


def _scale(settings: dict[str, Any], module: str, rank: int) -> float:
    """PEFT's rule: alpha of the first pattern that the end of the module's name matches, else of all."""
    patterns: dict[str, float] = settings.get("alpha_pattern") or {}
    matching = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
    alpha = float(next(matching, settings["lora_alpha"]))
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
