"""RoPE's base and scaling out of a `config.json`, which may name them in three places.

transformers 5.23 takes `rope_scaling` before `rope_parameters`, and the base in there before the one outside
(`convert_rope_params_to_dict`). What is read here is what it reads; where two places say different things one of them is
not meant, and that is refused. Imports no torch.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from finetuning.i18n import t

DEFAULT_THETA = 10000.0
NAMES = "rope_scaling", "rope_parameters"


@dataclass(frozen=True)
class RopeScaling:
    """Frequency scaling of Llama 3.1 (`rope_type: llama3`); lengths in tokens."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


class RopeSettings(msgspec.Struct, rename={"old_type": "type"}):
    """`rope_parameters` of transformers 5, `rope_scaling` of earlier versions."""

    rope_type: str | UnsetType = UNSET
    old_type: str | UnsetType = UNSET  # its name before transformers 4.43
    rope_theta: float | UnsetType = UNSET
    partial_rotary_factor: float | None = None
    factor: float | UnsetType = UNSET
    low_freq_factor: float | UnsetType = UNSET
    high_freq_factor: float | UnsetType = UNSET
    original_max_position_embeddings: int | UnsetType = UNSET


def parse_rope(
    rope_scaling: RopeSettings | None,
    rope_parameters: RopeSettings | None,
    outer_theta: float | UnsetType,
    outer_length: int | UnsetType,
    file: Path,
) -> tuple[float, RopeScaling | None, list[str]]:
    """Base, scaling, and a message for everything that is wrong; with messages the rest is worth nothing.

    Args:
        outer_theta: `rope_theta` beside the two.
        outer_length: `original_max_position_embeddings` beside the two; transformers reads it at one place and not at another.
    """
    found = rope_scaling or rope_parameters or RopeSettings()
    outer = {"rope_theta": outer_theta, "original_max_position_embeddings": outer_length}
    given = {name: value for name, value in outer.items() if not isinstance(value, UnsetType)}
    problems = list(_contradictions(rope_scaling, rope_parameters, given, file))
    theta = next((value for value in (found.rope_theta, outer_theta) if not isinstance(value, UnsetType)), DEFAULT_THETA)
    if not 0 < theta < math.inf:
        problems.append(
            t("{file}: {name} is {value!r}, but must be a positive number", file=file, name="rope_theta", value=theta)
        )
    if found.partial_rotary_factor not in (None, 1.0):
        problems.append(
            t(
                "{file}: {name} is {value!r}; only {supported!r} is supported",
                file=file,
                name="partial_rotary_factor",
                value=found.partial_rotary_factor,
                supported=1.0,
            )
        )
    if _type_of(found) == "default":
        return theta, None, problems
    if _type_of(found) != "llama3":
        problems.append(
            t("{file}: RoPE type {value!r} is not supported; 'default' and 'llama3' are", file=file, value=_type_of(found))
        )
        return theta, None, problems
    numbers: dict[str, Any] = {field.name: getattr(found, field.name) for field in dataclasses.fields(RopeScaling)}
    missing = [name for name, value in numbers.items() if value is UNSET]
    problems += [t("{file}: the llama3 RoPE scaling has no {name}", file=file, name=name) for name in missing]
    if missing:
        return theta, None, problems
    scaling = RopeScaling(**numbers)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    if not (0 < low < high < math.inf and 0 < scaling.factor < math.inf and scaling.original_max_position_embeddings > 0):
        problems.append(
            t("{file}: the llama3 RoPE scaling needs positive numbers, and low_freq_factor below high_freq_factor", file=file)
        )
    return theta, scaling, problems


def _contradictions(
    rope_scaling: RopeSettings | None, rope_parameters: RopeSettings | None, outer: dict[str, float], file: Path
) -> Iterator[str]:
    there = {name: rope for name, rope in zip(NAMES, (rope_scaling, rope_parameters), strict=True) if rope is not None}
    # setting -> place -> value
    places: dict[str, dict[str, Any]] = {name: {name: value} for name, value in outer.items()}
    for name, rope in there.items():
        for setting, value in _settings(rope):
            places.setdefault(setting, {})[f"{name}.{setting}"] = value
    for setting, values in places.items():
        found = set(values.values())
        # Of two mappings one is not looked at: what only it says would be lost.
        lost = len(there) == 2 and len(values) == 1 and setting not in outer
        if len(found) > 1 or lost:
            said = [f"{place} {value}" for place, value in values.items()]
            said += [t("nothing in the other")] if lost else []
            yield t(
                "{file}: RoPE is described in several places that do not agree ({said}); keep what it was trained with",
                file=file,
                said=", ".join(said),
            )


def _settings(rope: RopeSettings) -> Iterator[tuple[str, Any]]:
    """What is set."""
    yield "rope_type", _type_of(rope)
    for field in msgspec.structs.fields(rope):
        value = getattr(rope, field.name)
        if field.name not in ("rope_type", "old_type") and value is not UNSET and value is not None:
            yield field.name, value


def _type_of(rope: RopeSettings) -> str:
    return next((name for name in (rope.rope_type, rope.old_type) if not isinstance(name, UnsetType)), "default")
