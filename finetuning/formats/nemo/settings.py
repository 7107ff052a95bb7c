"""The shape of a Llama as NeMo and Megatron write it down, under their many names.

In: the settings of a checkpoint, from NeMo 2's `model.yaml` or `io.json`, Megatron-Bridge's `run_config.yaml`, the arguments
that Megatron-LM stores, or NeMo 1's `model_config.yaml`. Out: a `LlamaConfig`, or what keeps it from being one.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetuning.config.llama import MAX_LAYERS, MAX_SIZE, LlamaConfig
from finetuning.config.rope import RopeScaling
from finetuning.errors import InputError
from finetuning.files.documents import MAX_BYTES, parse_yaml
from finetuning.i18n import t
from finetuning.storage.file_parts import FilePart

# What changes the computation, and the values that are a Llama's; a setting that is not there has one of them.
LLAMA_ONLY: Mapping[str, tuple[Any, ...]] = {
    "normalization": ("RMSNorm", "rmsnorm"),
    "gated_linear_unit": (True,),
    "swiglu": (True,),
    "activation": ("fast-swiglu", "swiglu"),
    "add_bias_linear": (False,),
    "bias": (False,),
    "add_qkv_bias": (False,),
    "position_embedding_type": ("rope",),
    "rotary_percent": (1.0,),
    "rotary_percentage": (1.0,),
    "rotary_interleaved": (False,),
    "num_moe_experts": (None,),
    "num_experts": (None,),
    "qk_layernorm": (False,),
    "layernorm_zero_centered_gamma": (False,),
    "apply_layernorm_1p": (False,),
    "multi_latent_attention": (False,),
    "seq_len_interpolation_factor": (None,),
    "rotary_seq_len_interpolation_factor": (None,),
    "window_size": (None,),
    "mtp_num_layers": (None,),
    "transformer_block_type": ("pre_ln",),
}
EXPONENT = re.compile(r"\d+(\.\d+)?[eE][+-]?\d+")
LLAMA3_SCALING = RopeScaling(8.0, 1.0, 4.0, 8192)  # the numbers that Megatron-core has built in, but for the factor


def read_yaml(part: FilePart) -> dict[str, Any]:
    """A YAML file of plain values; tags of Python objects are refused by the loader.

    Raises:
        InputError: it is damaged, or holds something else.
    """
    if part.length > MAX_BYTES:
        raise InputError(t("{file}: larger than {most} MiB", file=part.path, most=MAX_BYTES // 2**20))
    try:
        text = part.read().decode("utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(t("{file}: not valid YAML: {error}", file=part.path, error=error)) from None
    values = parse_yaml(text, part.path)
    if not isinstance(values, dict):
        raise InputError(t("{file}: holds no settings", file=part.path))
    return values


def read_io_json(part: FilePart) -> dict[str, Any]:
    """The model's settings in NeMo 2's `io.json`, which lists the objects of a run and their arguments.

    Raises:
        InputError: it is damaged, or has no model.
    """
    try:
        objects = json.loads(part.read())["objects"]
        found = [entry for entry in objects.values() if "<root>.model.config" in entry.get("paths", [])]
        items = found[0]["items"]
        return {
            name.removeprefix(".").removeprefix("Attr(name='").removesuffix("')"): value.get("value")
            for name, value in items
            if isinstance(value, dict) and value.get("type") == "leaf"
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise InputError(t("{file}: holds no settings of a model ({error!r})", file=part.path, error=error)) from None


def llama_config(settings: Mapping[str, Any], rows: int, dtype: str, source: Path) -> LlamaConfig:
    """The Llama that these settings describe.

    Args:
        settings: names and values as the checkpoint has them.
        rows: of the embedding, padding included.
        dtype: of the stored weights.
        source: the file of the settings, for messages.

    Raises:
        InputError: it is no Llama, or sizes are missing.
    """
    problems = [
        t(
            "{file}: {name} is {value!r}; a Llama has {supported!r}",
            file=source,
            name=name,
            value=settings[name],
            supported=supported[0],
        )
        for name, supported in LLAMA_ONLY.items()
        if settings.get(name) is not None and settings[name] not in supported
    ]
    activation = settings.get("activation_func")
    if activation is not None and "silu" not in str(activation):
        problems.append(
            t(
                "{file}: {name} is {value!r}; a Llama has {supported!r}",
                file=source,
                name="activation_func",
                value=activation,
                supported="silu",
            )
        )
    sizes: dict[str, int] = {}
    for name in ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads"):
        most = MAX_LAYERS if name == "num_layers" else MAX_SIZE
        value = settings.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            problems.append(
                t("{file}: {name} is {value!r}, but must be a positive whole number", file=source, name=name, value=value)
            )
        else:
            sizes[name] = value
    if problems:
        raise InputError(problems)
    heads = sizes["num_attention_heads"]
    numbers = _Numbers(settings, source)
    grouped = settings.get("group_query_attention", True)
    config = LlamaConfig(
        vocab_size=min(numbers.whole("vocab_size", default=rows), rows),
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["ffn_hidden_size"],
        num_hidden_layers=sizes["num_layers"],
        num_attention_heads=heads,
        num_key_value_heads=numbers.whole("num_query_groups", default=heads) if grouped else heads,
        head_dim=numbers.whole("kv_channels", default=max(1, sizes["hidden_size"] // heads)),
        rms_norm_eps=numbers.real("layernorm_epsilon", "norm_epsilon", default=1e-5),
        rope_theta=numbers.real("rotary_base", default=10000.0),
        rope_scaling=_rope_scaling(settings, numbers),
        max_position_embeddings=numbers.whole("seq_length", "max_position_embeddings", "encoder_seq_length", default=8192),
        tie_word_embeddings=_is_tied(settings),
        dtype=dtype,
    )
    if numbers.problems:
        raise InputError(numbers.problems)
    if heads % config.num_key_value_heads or config.head_dim % 2:
        raise InputError(
            t(
                "{file}: {heads} attention heads of {size} do not fit {groups} key/value heads and RoPE",
                file=source,
                heads=heads,
                size=config.head_dim,
                groups=config.num_key_value_heads,
            )
        )
    return config


class _Numbers:
    """Positive numbers out of settings, under the first of several names that is set; what is none becomes a problem."""

    def __init__(self, settings: Mapping[str, Any], file: Path):
        self.settings, self.file = settings, file
        self.problems: list[str] = []

    def whole(self, *names: str, default: int) -> int:
        name, value = self._first(names, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_SIZE:
            self.problems.append(
                t("{file}: {name} is {value!r}, but must be a positive whole number", file=self.file, name=name, value=value)
            )
            return default
        return value

    def real(self, *names: str, default: float) -> float:
        name, value = self._first(names, default)
        if isinstance(value, str) and EXPONENT.fullmatch(value):  # YAML 1.1 reads 1e-5 as text
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            self.problems.append(
                t("{file}: {name} is {value!r}, but must be a positive number", file=self.file, name=name, value=value)
            )
            return default
        return float(value)

    def _first(self, names: tuple[str, ...], default: float) -> tuple[str, Any]:
        return next(((name, self.settings[name]) for name in names if self.settings.get(name) is not None), (names[0], default))


def differences(stored: LlamaConfig, given: LlamaConfig) -> list[str]:
    """What the checkpoint's own configuration and config.json say differently, of what the computation depends on.

    The vocabulary of config.json may be smaller: Megatron pads its own.
    """
    passed_over = ("max_position_embeddings", "dtype", "vocab_size")
    found = [
        (field.name, getattr(stored, field.name), getattr(given, field.name))
        for field in dataclasses.fields(LlamaConfig)
        if field.name not in passed_over
    ]
    return [
        t("{name} is {stored} in the checkpoint and {given} in config.json", name=name, stored=a, given=b)
        for name, a, b in found
        if a != b
    ]


def _rope_scaling(settings: Mapping[str, Any], numbers: _Numbers) -> RopeScaling | None:
    usual = LLAMA3_SCALING
    if settings.get("scale_factor") and settings.get("old_context_len"):  # NeMo 2
        return RopeScaling(
            numbers.real("scale_factor", default=usual.factor),
            numbers.real("low_freq_factor", default=usual.low_freq_factor),
            numbers.real("high_freq_factor", default=usual.high_freq_factor),
            numbers.whole("old_context_len", default=usual.original_max_position_embeddings),
        )
    if any(settings.get(name) for name in ("rope_scaling", "use_rope_scaling", "scale_positional_embedding")):
        return dataclasses.replace(usual, factor=numbers.real("rope_scaling_factor", default=usual.factor))
    return None


def _is_tied(settings: Mapping[str, Any]) -> bool:
    if "untie_embeddings_and_output_weights" in settings:
        return not settings["untie_embeddings_and_output_weights"]
    return bool(settings.get("share_embeddings_and_output_weights", False))
