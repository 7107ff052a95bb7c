"""The shape of a Llama, read from a Hugging Face `config.json`.

Covers Llama 3, 3.1 and 3.2 text models: grouped-query attention, tied or untied head, default or llama3 RoPE.
Everything the decoder cannot compute exactly is refused here, with what was found. Imports no torch.
"""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from finetuning.config.rope import RopeScaling, RopeSettings, parse_rope
from finetuning.config.settings import FP8_MULTIPLE
from finetuning.errors import InputError
from finetuning.files.documents import as_schema, read_json
from finetuning.i18n import t

DTYPES = ("float64", "float32", "float16", "bfloat16")  # of weights that are numbers; all others are codes of some kind
MAX_LAYERS = 2048  # sixteen times those of Llama 3.1-405B: more is a damaged file, and would be built before it is noticed
MAX_SIZE = 2**31 - 1
# Where tools write down that the weights are quantized; what stands there does not matter.
QUANTIZATION_KEYS = ("quantization_config", "compression_config", "quantization")
# What would change the computation, and the values that do not.
PLAIN: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "hidden_act": ("silu",),
    "is_causal": (True,),  # transformers lets every token see all others where it is false
    "partial_rotary_factor": (1.0, None),
    "per_layer_config": (None,),
    "transformers_weights": (None, "model.safetensors"),  # the name of the weight file
}


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
    dtype: str  # of the stored weights, one of DTYPES

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
            "self_attn.q_proj": (query, hidden),
            "self_attn.k_proj": (key_value, hidden),
            "self_attn.v_proj": (key_value, hidden),
            "self_attn.o_proj": (hidden, query),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
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
        InputError: no folder, no or broken config.json, not a Llama, quantized, or a variant that is not supported.
    """
    file = model_path / "config.json"
    if not model_path.is_dir():
        raise InputError(t("--hf_model_id {path}: there is no such folder", path=model_path))
    try:
        raw = read_json(file, dict[str, Any])
    except FileNotFoundError:
        if (model_path / "adapter_config.json").is_file():
            raise InputError(
                t(
                    "--hf_model_id {path}: this is an adapter; give its base model here and the adapter as --restore_config, "
                    "with --peft lora",
                    path=model_path,
                )
            ) from None
        raise InputError(
            t("--hf_model_id {path}: holds no config.json, so it is not a model folder in Hugging Face format", path=model_path)
        ) from None
    found = raw.get("model_type")
    if found != "llama":
        raise InputError(
            t(
                "{file}: model_type is {found!r}; only the Llama family (model_type 'llama') is supported",
                file=file,
                found=_shown(found),
            )
        )
    raw |= {name: None for name in ("rope_scaling", "rope_parameters") if raw.get(name) == {}}  # as if they were not there
    problems = _unsupported(raw, file)
    try:
        return _parse(as_schema(raw, _ConfigFile, file), file, problems)
    except InputError as error:
        raise InputError(problems + [problem for problem in error.problems if problem not in problems]) from None


def write_llama_config(
    config: LlamaConfig, folder: Path, *, bos_token_id: int | None = None, eos_token_id: int | list[int] | None = None
) -> None:
    """Writes `config.json`; `read_llama_config` gives back an equal configuration. None: the model has no such token."""
    values: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"} | dataclasses.asdict(config)
    values |= {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    values |= {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id}  # without them transformers takes Llama 2's
    if config.rope_scaling is not None:
        values["rope_scaling"] = {"rope_type": "llama3"} | dataclasses.asdict(config.rope_scaling)
    values["torch_dtype"] = values.pop("dtype")  # the name that all versions of transformers know
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


class _ConfigFile(msgspec.Struct):
    """What is read of a `config.json`; defaults, and what may be null, are those of transformers."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    rope_theta: float | UnsetType = UNSET
    original_max_position_embeddings: int | UnsetType = UNSET
    rope_parameters: RopeSettings | None = None
    rope_scaling: RopeSettings | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    dtype: str | None = None
    torch_dtype: str | None = None


def _unsupported(raw: dict[str, Any], file: Path) -> list[str]:
    problems = [_quantized(raw[key], key, file) for key in QUANTIZATION_KEYS if raw.get(key) is not None]
    for name, plain in PLAIN.items():
        if name in raw and raw[name] not in plain:
            problems.append(
                t(
                    "{file}: {name} is {value!r}; only {supported!r} is supported",
                    file=file,
                    name=name,
                    value=_shown(raw[name]),
                    supported=plain[0],
                )
            )
    return problems


def _quantized(settings: Any, key: str, file: Path) -> str:
    known = settings if isinstance(settings, dict) else {}
    names = ("quant_method", "quant_algo", "format", "bits", "load_in_8bit", "load_in_4bit")
    shown = ", ".join(f"{name} {known[name]}" for name in names if known.get(name)) or t("no method is named")
    return t(
        "{file}: {key} says that the weights are quantized ({shown}); give the model that they were made from, with weights in "
        "{known}",
        file=file,
        key=key,
        shown=shown,
        known=", ".join(DTYPES),
    )


def _parse(raw: _ConfigFile, file: Path, problems: list[str]) -> LlamaConfig:
    """`problems`: what is wrong already."""
    rope_theta, rope_scaling, wrong = parse_rope(
        raw.rope_scaling, raw.rope_parameters, raw.rope_theta, raw.original_max_position_embeddings, file
    )
    heads = raw.num_attention_heads
    key_value_heads = heads if raw.num_key_value_heads is None else raw.num_key_value_heads
    sizes = {
        "vocab_size": raw.vocab_size,
        "hidden_size": raw.hidden_size,
        "intermediate_size": raw.intermediate_size,
        "num_hidden_layers": raw.num_hidden_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "max_position_embeddings": raw.max_position_embeddings,
    } | ({} if raw.head_dim is None else {"head_dim": raw.head_dim})
    problems = [*problems, *_size_problems(sizes, file), *wrong]
    if not 0 < raw.rms_norm_eps < 1:
        problems.append(_out_of_range(file, "rms_norm_eps", raw.rms_norm_eps, t("a number between 0 and 1")))
    dtype = raw.dtype or raw.torch_dtype or "float32"
    if dtype not in DTYPES:
        problems.append(_out_of_range(file, "dtype", dtype, ", ".join(DTYPES)))
    if problems:
        raise InputError(problems)
    if heads % key_value_heads or raw.hidden_size % heads:
        raise InputError(
            t(
                "{file}: {heads} attention heads must be a multiple of {key_value_heads} key/value heads and divide the hidden "
                "size {hidden}",
                file=file,
                heads=heads,
                key_value_heads=key_value_heads,
                hidden=raw.hidden_size,
            )
        )
    head_dim = raw.head_dim or raw.hidden_size // heads
    if head_dim % 2:
        raise InputError(_out_of_range(file, "head_dim", head_dim, t("even, as RoPE rotates pairs")))
    return LlamaConfig(
        vocab_size=raw.vocab_size,
        hidden_size=raw.hidden_size,
        intermediate_size=raw.intermediate_size,
        num_hidden_layers=raw.num_hidden_layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        rms_norm_eps=raw.rms_norm_eps,
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        max_position_embeddings=raw.max_position_embeddings,
        tie_word_embeddings=raw.tie_word_embeddings,
        dtype=dtype,
    )


def _size_problems(sizes: dict[str, int], file: Path) -> Iterator[str]:
    for name, value in sizes.items():
        most = MAX_LAYERS if name == "num_hidden_layers" else MAX_SIZE
        if value < 1:
            yield t(
                "{file}: {name} is {value!r}, but must be a positive whole number",
                file=file,
                name=name,
                value=value,
            )
        elif value > most:
            yield _out_of_range(file, name, f"{value:.3g}" if value > 10**9 else value, t("at most {most}", most=most))


def _out_of_range(file: Path, name: str, value: object, rule: str) -> str:
    return t("{file}: {name} is {value}, but must be {rule}", file=file, name=name, value=value, rule=rule)


def _shown(value: Any) -> Any:
    """A value of a file as short as a message can have it."""
    if isinstance(value, list | dict):
        return type(value).__name__
    return value[:80] if isinstance(value, str) else value
