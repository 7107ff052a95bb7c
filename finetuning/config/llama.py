"""The shape of a Llama, read from a Hugging Face `config.json`.

Covers Llama 3, 3.1 and 3.2 text models: grouped-query attention, tied or untied head, default or llama3 RoPE.
Everything the decoder cannot compute exactly is refused here, with what was found. Imports no torch.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuning.config.settings import FP8_MULTIPLE
from finetuning.errors import InputError
from finetuning.i18n import t


@dataclass(frozen=True)
class RopeScaling:
    """Frequency scaling of Llama 3.1 (`rope_type: llama3`); lengths in tokens."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes in elements; names as in `config.json`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    max_position_embeddings: int
    tie_word_embeddings: bool
    dtype: str  # of the stored weights: bfloat16, float16 or float32

    @property
    def layer_parameters(self) -> int:
        """Parameters of one decoder block."""
        heads = 2 * self.num_attention_heads + 2 * self.num_key_value_heads
        linears = heads * self.head_dim * self.hidden_size + 3 * self.hidden_size * self.intermediate_size
        return linears + 2 * self.hidden_size

    @property
    def head_fits_fp8(self) -> bool:
        """Whether a product that sums over the vocabulary can be in fp8."""
        return self.vocab_size % FP8_MULTIPLE == 0

    @property
    def num_parameters(self) -> int:
        tables = (1 if self.tie_word_embeddings else 2) * self.vocab_size * self.hidden_size
        return self.num_hidden_layers * self.layer_parameters + tables + self.hidden_size

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter of the whole decoder by its name, in Hugging Face's files and in ours."""
        hidden, inner = self.hidden_size, self.intermediate_size
        query, key_value = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        block = {
            "self_attn.q_proj": (query, hidden), "self_attn.k_proj": (key_value, hidden),
            "self_attn.v_proj": (key_value, hidden), "self_attn.o_proj": (hidden, query),
            "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner),
            "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
        }  # fmt: skip
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        for layer in range(self.num_hidden_layers):
            shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
        shapes["model.norm.weight"] = (hidden,)
        return shapes if self.tie_word_embeddings else shapes | {"lm_head.weight": (self.vocab_size, hidden)}

    @property
    def attention_cost(self) -> float:
        """Cost of one query-key pair relative to one token's matrix products.

        A document of n positions costs about n + attention_cost * n². Causal attention touches n²/2 pairs with
        4 * heads * head_dim operations each; the linear layers take 2 operations per parameter and token.
        """
        pair = 2 * self.num_attention_heads * self.head_dim * self.num_hidden_layers
        token = 2 * (self.num_hidden_layers * self.layer_parameters + self.vocab_size * self.hidden_size)
        return pair / token


def read_llama_config(model_path: Path) -> LlamaConfig:
    """Reads `config.json` of a local model folder.

    Raises:
        InputError: no folder, no or broken config.json, not a Llama, or a variant that is not supported.
    """
    file = model_path / "config.json"
    if not model_path.is_dir():
        raise InputError(t("--hf_model_id {path}: there is no such folder", path=model_path))
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (model_path / "adapter_config.json").is_file():
            raise InputError(
                t("--hf_model_id {path}: this is an adapter; give its base model here and the adapter as --restore_config, "
                  "with --peft lora", path=model_path)
            ) from None  # fmt: skip
        raise InputError(
            t("--hf_model_id {path}: holds no config.json, so it is not a model folder in Hugging Face format", path=model_path)
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(t("{file}: not valid JSON: {error}", file=file, error=error)) from None
    if not isinstance(raw, dict) or raw.get("model_type") != "llama":
        found = raw.get("model_type") if isinstance(raw, dict) else None
        raise InputError(
            t(
                "{file}: model_type is {found!r}; only the Llama family (model_type 'llama') is supported",
                file=file,
                found=found,
            )
        )
    return _parse(raw, file)


def write_llama_config(config: LlamaConfig, folder: Path) -> None:
    """Writes `config.json`; `read_llama_config` gives back an equal configuration."""
    values: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"} | dataclasses.asdict(config)
    values |= {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    if config.rope_scaling is not None:
        values["rope_scaling"] = {"rope_type": "llama3"} | dataclasses.asdict(config.rope_scaling)
    values["torch_dtype"] = values.pop("dtype")  # the name that all versions of transformers know
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _parse(raw: dict[str, Any], file: Path) -> LlamaConfig:
    problems = []
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    for name in sizes:
        if not isinstance(raw.get(name), int) or raw[name] < 1:
            problems.append(t("{file}: {name} is {value!r}, but must be a positive whole number", file=file, name=name,
                              value=raw.get(name)))  # fmt: skip
    for name, supported in (("attention_bias", False), ("mlp_bias", False), ("hidden_act", "silu")):
        if raw.get(name, supported) != supported:
            problems.append(t("{file}: {name} is {value!r}; only {supported!r} is supported", file=file, name=name,
                              value=raw[name], supported=supported))  # fmt: skip
    # transformers 5 writes rope_parameters; earlier versions rope_theta and rope_scaling.
    rope = raw.get("rope_parameters") or {**(raw.get("rope_scaling") or {}), "rope_theta": raw.get("rope_theta", 10000.0)}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ("default", "llama3"):
        problems.append(
            t("{file}: RoPE type {value!r} is not supported; 'default' and 'llama3' are", file=file, value=rope_type)
        )
    if rope_type == "llama3":
        missing = [field.name for field in dataclasses.fields(RopeScaling) if field.name not in rope]
        problems += [t("{file}: the llama3 RoPE scaling has no {name}", file=file, name=name) for name in missing]
    if problems:
        raise InputError(problems)
    heads = raw["num_attention_heads"]
    key_value_heads = raw.get("num_key_value_heads") or heads
    if heads % key_value_heads or (raw["hidden_size"] % heads and not raw.get("head_dim")):
        raise InputError(
            t("{file}: {heads} attention heads must be a multiple of {key_value_heads} key/value heads and divide the hidden "
              "size {hidden}", file=file, heads=heads, key_value_heads=key_value_heads, hidden=raw["hidden_size"])
        )  # fmt: skip
    scaling = None
    if rope_type == "llama3":
        scaling = RopeScaling(
            factor=float(rope["factor"]),
            low_freq_factor=float(rope["low_freq_factor"]),
            high_freq_factor=float(rope["high_freq_factor"]),
            original_max_position_embeddings=int(rope["original_max_position_embeddings"]),
        )
    return LlamaConfig(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_hidden_layers=raw["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope_theta=float(rope.get("rope_theta", 10000.0)),
        rope_scaling=scaling,
        max_position_embeddings=int(raw.get("max_position_embeddings", 2048)),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
    )
