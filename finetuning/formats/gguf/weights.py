"""GGUF files of llama.cpp in: weights under Hugging Face's names and in its shapes, and their configuration.

How llama.cpp keeps a Llama (checked against its converter of September 2026): query and key rows so that the two numbers that
RoPE turns together are neighbors; llama3's RoPE scaling as one divisor of each frequency, in `rope_freqs.weight`; no output
weight where the head is tied. Rows of a head of 4, of Hugging Face and there: 0 1 2 3 -> 0 2 1 3.

float32, float16 and bfloat16 are read as they are. Quantized blocks become float32 by the `gguf` package, which only they need.
"""

import dataclasses
import hashlib
import importlib.util
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetuning.config.llama import LlamaConfig, write_llama_config
from finetuning.config.rope import RopeScaling
from finetuning.errors import InputError
from finetuning.formats.gguf.header import GgufHeader, GgufTensor, read_gguf_header
from finetuning.formats.gguf.tokenizer import write_tokenizer
from finetuning.formats.huggingface.companions import special_token_ids
from finetuning.formats.weight_source import llama_shapes
from finetuning.i18n import t

PLAIN = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}  # types that hold numbers as they are
QUANTISED_DTYPE = "bfloat16"  # that a model of quantized weights says it has: Llama's own
ROPE_DIVISORS = "rope_freqs.weight"
ADAPTER = "adapter"  # what general.type is of one
OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
INNER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
# What a Llama does not have, and what would say that it is not used.
REFUSED: dict[str, tuple[Any, ...]] = {
    "expert_count": (None, 0),
    "rope.scaling.type": (None, "none"),
    "logit_scale": (None, 1.0),
    "residual_scale": (None, 1.0),
    "embedding_scale": (None, 1.0),
    "attention.sliding_window": (None, 0),
}
META_SCALING = RopeScaling(8.0, 1.0, 4.0, 8192)  # Llama 3.1's; 3.2 has another factor
DIVISOR_TOLERANCE = 1e-5  # of float32


@dataclass(frozen=True)
class GgufSource:
    """A GGUF file as a `WeightSource`."""

    path: Path
    header: GgufHeader
    config: LlamaConfig

    def shapes(self) -> dict[str, torch.Size]:
        return llama_shapes(self.config)

    def dtype(self, name: str) -> torch.dtype:
        return PLAIN.get(self._stored(name).kind, torch.float32)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        tensor, rows = self._stored(name), self.shapes()[name][0]
        stop = rows if stop is None else min(stop, rows)
        if not name.endswith(("q_proj.weight", "k_proj.weight")):
            return self._rows(tensor, name, start, stop)
        head = self.config.head_dim  # whole heads are read, as their rows are mixed
        first, last = start // head * head, -(-stop // head) * head
        mixed = self._rows(tensor, name, first, last)
        ordered = mixed.unflatten(0, (-1, head // 2, 2)).transpose(1, 2).flatten(0, 2)
        return ordered[start - first : stop - first].contiguous()

    def type_name(self, name: str) -> str:
        """How its numbers are kept, as finetuning.formats.gguf.header names it."""
        return self._stored(name).type_name

    def _stored(self, name: str) -> GgufTensor:
        return self.header.tensors[gguf_name(name)]

    def _rows(self, tensor: GgufTensor, name: str, start: int, stop: int) -> Tensor:
        if len(tensor.shape) == 1:
            return self._read(tensor, name, 0, 1).view(-1)[start:stop]
        return self._read(tensor, name, start, stop)

    def _read(self, tensor: GgufTensor, name: str, start: int, stop: int) -> Tensor:
        row_bytes = tensor.row_bytes
        begin = tensor.offset + start * row_bytes
        try:
            raw = np.fromfile(self.path, np.uint8, (stop - start) * row_bytes, offset=begin)
            if len(raw) < (stop - start) * row_bytes:
                raise EOFError("the file ends too early")
        except (OSError, EOFError) as error:
            raise InputError(t("{file}: cannot read {name}: {error}", file=self.path, name=name, error=error)) from None
        shape = (stop - start, tensor.shape[-1])
        if tensor.kind in PLAIN:
            return torch.from_numpy(raw).view(PLAIN[tensor.kind]).view(shape)
        from gguf import GGMLQuantizationType, dequantize

        blocks = raw.reshape(stop - start, row_bytes)
        return torch.from_numpy(dequantize(blocks, GGMLQuantizationType(tensor.kind))).view(shape)


def gguf_name(name: str) -> str:
    """model.layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight"""
    if name in OUTER:
        return OUTER[name]
    layer, _, inner = name.removeprefix("model.layers.").removesuffix(".weight").partition(".")
    return f"blk.{layer}.{INNER[inner]}.weight"


@dataclass(frozen=True)
class GgufModel:
    """A GGUF file that has been opened: its header only."""

    path: Path
    header: GgufHeader

    @cached_property
    def config(self) -> LlamaConfig:
        """The shape as the file describes it.

        Raises:
            InputError: it is no Llama, or a part of a split file.
        """
        settings, tensors = self.header.settings, self.header.tensors
        if settings.get("general.type") == ADAPTER:
            raise InputError(
                t("{file}: is an adapter of llama.cpp, no whole model; give the adapter that it was made from", file=self.path)
            )
        architecture = settings.get("general.architecture")
        if architecture != "llama":
            raise InputError(
                t("{file}: the architecture is {found!r}; only 'llama' can be read", file=self.path, found=architecture)
            )
        if settings.get("split.count") not in (None, 0, 1):
            raise InputError(
                t(
                    "{file}: is one of {count} parts; put them together first, by llama.cpp's llama-gguf-split --merge",
                    file=self.path,
                    count=settings["split.count"],
                )
            )
        problems = [
            t("{file}: {name} is {value!r}, which a Llama does not have", file=self.path, name=name, value=value)
            for name, allowed in REFUSED.items()
            if (value := settings.get(f"llama.{name}")) not in allowed
        ]
        if problems:
            raise InputError(problems)
        table = tensors.get(OUTER["model.embed_tokens.weight"])
        if table is None or len(table.shape) != 2:
            raise InputError(
                t(
                    "{path}: the weights do not fit the model: {shown}",
                    path=self.path,
                    shown=t(
                        "{name} should be {wanted}, found {found}",
                        name=OUTER["model.embed_tokens.weight"],
                        wanted="[V, D]",
                        found=list(table.shape) if table is not None else t("nothing"),
                    ),
                )
            )
        heads, hidden, layers = (self._whole(n) for n in ("attention.head_count", "embedding_length", "block_count"))
        head_dim = self._whole("attention.key_length", self._whole("rope.dimension_count", max(1, hidden // heads)))
        if layers > len(tensors) or head_dim % 2:
            raise InputError(
                t(
                    "{file}: {layers} layers with heads of {size} do not fit {count} tensors",
                    file=self.path,
                    layers=layers,
                    size=head_dim,
                    count=len(tensors),
                )
            )
        theta = self._real("rope.freq_base", 10000.0)
        return LlamaConfig(
            vocab_size=table.shape[0],
            hidden_size=hidden,
            intermediate_size=self._whole("feed_forward_length"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=self._whole("attention.head_count_kv", heads),
            head_dim=head_dim,
            rms_norm_eps=_short(self._real("attention.layer_norm_rms_epsilon")),
            rope_theta=theta,
            rope_scaling=self._rope_scaling(head_dim, theta),
            max_position_embeddings=self._whole("context_length"),
            tie_word_embeddings=OUTER["lm_head.weight"] not in tensors,
            dtype=str(PLAIN[table.kind]).removeprefix("torch.") if table.kind in PLAIN else QUANTISED_DTYPE,
        )

    def source(self, config: LlamaConfig | None = None) -> GgufSource:
        """The weights; a configuration that is given must say what the file says.

        Raises:
            InputError: it says something else, a weight is missing, has another shape or a type that cannot be read.
        """
        if config is not None and (found := _differences(self.config, config)):
            raise InputError([f"{self.path}: {difference}" for difference in found])
        wanted = {gguf_name(name): list(shape) for name, shape in self.config.parameter_shapes().items()}
        stored = self.header.tensors
        wrong = [
            t(
                "{name} should be {wanted}, found {found}",
                name=name,
                wanted=shape,
                found=list(stored[name].shape) if name in stored else t("nothing"),
            )
            for name, shape in wanted.items()
            if name not in stored or list(stored[name].shape) != shape
        ]
        if wrong:
            shown = "; ".join(wrong[:3]) + (f"; … ({len(wrong)})" if len(wrong) > 3 else "")
            raise InputError(t("{path}: the weights do not fit the model: {shown}", path=self.path, shown=shown))
        unknown = [name for name in stored if name not in wanted and name != ROPE_DIVISORS]
        if unknown:
            shown = ", ".join(unknown[:3]) + (f", … ({len(unknown)})" if len(unknown) > 3 else "")
            raise InputError(t("{path}: holds weights that a Llama does not have: {names}", path=self.path, names=shown))
        quantized = sorted({tensor.type_name for tensor in stored.values() if tensor.kind not in PLAIN})
        if any(name.startswith("type ") for name in quantized):
            raise InputError(t("{file}: holds weights of {types}, which cannot be read", file=self.path, types=quantized[-1]))
        if quantized and importlib.util.find_spec("gguf") is None:
            raise InputError(
                t(
                    "{file}: holds weights of {types}, and reading these needs the gguf package: pip install gguf",
                    file=self.path,
                    types=", ".join(quantized),
                )
            )
        return GgufSource(self.path, self.header, config or self.config)

    def fingerprint(self) -> str:
        """Identifies the weights without reading them all: size, and 64 KiB at sixteen places."""
        size = self.path.stat().st_size
        digest = hashlib.sha256(f"{size}\n".encode())
        with self.path.open("rb") as stream:
            for part in range(16):
                stream.seek(size * part // 16)
                digest.update(stream.read(65536))
        return digest.hexdigest()[:16]

    def describe(self, scratch: Path) -> Path:
        """A folder in Hugging Face format without weights: configuration, tokenizer and chat template.

        Raises:
            InputError: its tokenizer cannot be rebuilt.
        """
        target = scratch / f"{self.path.stem}-{self.fingerprint()}"
        write_tokenizer(self.path, self.header.settings, self.config, target)
        write_llama_config(self.config, target, **special_token_ids(target))
        return target

    def _whole(self, name: str, default: int | None = None) -> int:
        """A setting of the architecture.

        Raises:
            InputError: it is missing, or no positive whole number.
        """
        value = self.header.settings.get(f"llama.{name}", default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(
                t(
                    "{file}: {name} is {value!r}, but must be a positive whole number",
                    file=self.path,
                    name=f"llama.{name}",
                    value=value,
                )
            )
        return value

    def _real(self, name: str, default: float | None = None) -> float:
        value = self.header.settings.get(f"llama.{name}", default)
        if not isinstance(value, float) or not 0 < value < math.inf:
            raise InputError(
                t(
                    "{file}: {name} is {value!r}, but must be a positive number",
                    file=self.path,
                    name=f"llama.{name}",
                    value=value,
                )
            )
        return value

    def _rope_scaling(self, head_dim: int, theta: float) -> RopeScaling | None:
        """Which llama3 scaling gives the stored divisors.

        Raises:
            InputError: none that is known does.
        """
        tensor = self.header.tensors.get(ROPE_DIVISORS)
        if tensor is None:
            return None
        if tensor.shape != (head_dim // 2,) or tensor.kind not in PLAIN:
            found: Any = list(tensor.shape)
        else:
            width = PLAIN[tensor.kind].itemsize
            raw = np.fromfile(self.path, np.uint8, width * (head_dim // 2), offset=tensor.offset)
            divisors = torch.from_numpy(raw).view(PLAIN[tensor.kind]).float()
            scaling = dataclasses.replace(META_SCALING, factor=divisors.max().item())
            if torch.allclose(divisors, rope_divisors(scaling, head_dim, theta), rtol=DIVISOR_TOLERANCE, atol=0):
                return scaling
            found = f"{divisors.min().item():g} … {divisors.max().item():g}"
        raise InputError(
            t(
                "{file}: {name} ({found}) is not the RoPE scaling of Llama 3.1 or 3.2",
                file=self.path,
                name=ROPE_DIVISORS,
                found=found,
            )
        )


def open_gguf(path: Path) -> GgufModel:
    """
    Raises:
        InputError: it is damaged, cut short, or no GGUF file.
    """
    return GgufModel(path, read_gguf_header(path))


def rope_divisors(scaling: RopeScaling, head_dim: int, theta: float) -> Tensor:
    """By what llama3's scaling divides each frequency (float32, [head_dim / 2]), as llama.cpp computes it."""
    frequencies = 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)  # within the original length
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return 1 / ((1 - smooth) / scaling.factor + smooth)


def _differences(stored: LlamaConfig, given: LlamaConfig) -> list[str]:
    """What the file and config.json say differently, of what the computation depends on."""
    return [
        t("{name} is {stored} in the checkpoint and {given} in config.json", name=field.name, stored=a, given=b)
        for field in dataclasses.fields(LlamaConfig)
        if field.name not in ("max_position_embeddings", "dtype")
        and (a := getattr(stored, field.name)) != (b := getattr(given, field.name))
    ]


def _short(value: float) -> float:
    """A float32 as the shortest decimal number that means it: 9.99999974737e-06 is 1e-05."""
    return float(str(np.float32(value)))
