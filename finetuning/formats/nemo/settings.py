"""The shape of a Llama as NeMo and Megatron write it down, under their many names.

In: the settings of a checkpoint, from NeMo 2's `model.yaml` or `io.json`, Megatron-Bridge's `run_config.yaml`, the arguments
that Megatron-LM stores, or NeMo 1's `model_config.yaml`. Out: a `LlamaConfig`, or what keeps it from being one.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from finetuning.config.llama import LlamaConfig
from finetuning.config.rope import RopeScaling
from finetuning.errors import InputError
from finetuning.i18n import t
from finetuning.storage.file_parts import FilePart

# What changes the computation, and the values that are a Llama's; a setting that is not there has one of them.
LLAMA_ONLY: Mapping[str, tuple[Any, ...]] = {
    "normalization": ("RMSNorm", "rmsnorm"), "gated_linear_unit": (True,), "swiglu": (True,),
    "activation": ("fast-swiglu", "swiglu"), "add_bias_linear": (False,), "bias": (False,), "add_qkv_bias": (False,),
    "position_embedding_type": ("rope",), "rotary_percent": (1.0,), "rotary_percentage": (1.0,),
    "rotary_interleaved": (False,), "num_moe_experts": (None,), "num_experts": (None,), "qk_layernorm": (False,),
    "layernorm_zero_centered_gamma": (False,), "apply_layernorm_1p": (False,), "multi_latent_attention": (False,),
    "seq_len_interpolation_factor": (None,), "rotary_seq_len_interpolation_factor": (None,), "window_size": (None,),
    "mtp_num_layers": (None,), "transformer_block_type": ("pre_ln",),
}  # fmt: skip
LLAMA3_SCALING = RopeScaling(8.0, 1.0, 4.0, 8192)  # the numbers that Megatron-core has built in, but for the factor


def read_yaml(part: FilePart) -> dict[str, Any]:
    """A YAML file of plain values; tags of Python objects are refused by the loader.

    Raises:
        InputError: it is damaged, or holds something else.
    """
    try:
        values = yaml.safe_load(part.read().decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError, RecursionError) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise InputError(t("{file}: not valid YAML: {error}", file=part.path, error=reason)) from None
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
        t("{file}: {name} is {value!r}; a Llama has {supported!r}", file=source, name=name, value=settings[name],
          supported=supported[0])
        for name, supported in LLAMA_ONLY.items()
        if settings.get(name) is not None and settings[name] not in supported
    ]  # fmt: skip
    activation = settings.get("activation_func")
    if activation is not None and "silu" not in str(activation):
        problems.append(t("{file}: {name} is {value!r}; a Llama has {supported!r}", file=source, name="activation_func",
                          value=activation, supported="silu"))  # fmt: skip
    sizes = {}
    for name in ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads"):
        value = settings.get(name)
        if not isinstance(value, int) or value < 1:
            problems.append(
                t("{file}: {name} is {value!r}, but must be a positive whole number", file=source, name=name, value=value)
            )
        else:
            sizes[name] = value
    if problems:
        raise InputError(problems)
    heads = sizes["num_attention_heads"]
    grouped = settings.get("group_query_attention", True)
    groups = (settings.get("num_query_groups") if grouped else None) or heads
    vocabulary = settings.get("vocab_size")
    return LlamaConfig(
        vocab_size=vocabulary if isinstance(vocabulary, int) and 0 < vocabulary <= rows else rows,
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["ffn_hidden_size"],
        num_hidden_layers=sizes["num_layers"],
        num_attention_heads=heads,
        num_key_value_heads=int(groups),
        head_dim=int(settings.get("kv_channels") or sizes["hidden_size"] // heads),
        rms_norm_eps=float(_first(settings, "layernorm_epsilon", "norm_epsilon") or 1e-5),
        rope_theta=float(settings.get("rotary_base") or 10000.0),
        rope_scaling=_rope_scaling(settings),
        max_position_embeddings=int(_first(settings, "seq_length", "max_position_embeddings", "encoder_seq_length") or 8192),
        tie_word_embeddings=_is_tied(settings),
        dtype=dtype,
    )


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


def _rope_scaling(settings: Mapping[str, Any]) -> RopeScaling | None:
    if settings.get("scale_factor") and settings.get("old_context_len"):  # NeMo 2
        return RopeScaling(
            float(settings["scale_factor"]), float(settings.get("low_freq_factor", LLAMA3_SCALING.low_freq_factor)),
            float(settings.get("high_freq_factor", LLAMA3_SCALING.high_freq_factor)), int(settings["old_context_len"]),
        )  # fmt: skip
    if _first(settings, "rope_scaling", "use_rope_scaling", "scale_positional_embedding"):
        factor = settings.get("rope_scaling_factor")
        return dataclasses.replace(LLAMA3_SCALING, factor=float(factor)) if factor else LLAMA3_SCALING
    return None


def _is_tied(settings: Mapping[str, Any]) -> bool:
    if "untie_embeddings_and_output_weights" in settings:
        return not settings["untie_embeddings_and_output_weights"]
    return bool(settings.get("share_embeddings_and_output_weights", False))


def _first(settings: Mapping[str, Any], *names: str) -> Any:
    return next((settings[name] for name in names if settings.get(name) is not None), None)
