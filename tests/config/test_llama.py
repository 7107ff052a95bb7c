"""Reading a model's shape from `config.json`, and what is refused there."""

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from finetuning.config.llama import LlamaConfig, read_llama_config, write_llama_config
from finetuning.config.rope import RopeScaling
from finetuning.errors import InputError
from finetuning.model.llama import Llama

pytestmark = pytest.mark.unit

LLAMA_3_1_8B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 128256,
}

SCALING = LLAMA_3_1_8B["rope_scaling"]
LLAMA_3_2_1B = {
    **LLAMA_3_1_8B,
    "head_dim": 64,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "rope_scaling": {**LLAMA_3_1_8B["rope_scaling"], "factor": 32.0},
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize("raw", [LLAMA_3_1_8B, LLAMA_3_2_1B], ids=["untied head", "tied head"])
def test_the_shapes_told_without_torch_are_those_of_the_decoder(tmp_path: Path, raw: dict[str, Any]) -> None:
    config = read(tmp_path, raw)
    with torch.device("meta"):
        decoder = {name: tuple(parameter.shape) for name, parameter in Llama(config).named_parameters()}
    assert config.parameter_shapes() == decoder
    assert sum(map(math.prod, decoder.values())) == config.num_parameters


def test_llama_3_1_8b_is_read_whole(tmp_path: Path) -> None:
    assert read(tmp_path, LLAMA_3_1_8B) == LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192),
        max_position_embeddings=131072,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )


@pytest.mark.parametrize(
    ("raw", "parameters"),
    [(LLAMA_3_1_8B, 8_030_261_248), (LLAMA_3_2_1B, 1_235_814_400)],
    ids=["Llama 3.1 8B", "Llama 3.2 1B, tied head"],
)
def test_parameters_are_counted_as_published(tmp_path: Path, raw: dict[str, Any], parameters: int) -> None:
    assert read(tmp_path, raw).num_parameters == parameters


def test_attention_costs_as_much_as_the_linear_layers_where_their_operations_are_equal(tmp_path: Path) -> None:
    config = read(tmp_path, LLAMA_3_1_8B)
    tokens = 1 / config.attention_cost
    linear_operations = 2 * (config.num_parameters - config.vocab_size * config.hidden_size)  # the embedding is a look-up
    attention_operations = 4 * 32 * 128 * tokens / 2 * 32  # heads, head dimension, half of the pairs, layers
    assert attention_operations == pytest.approx(linear_operations, rel=1e-3)  # norms do not multiply matrices


def test_files_of_transformers_5_and_4_read_the_same(tmp_path: Path) -> None:
    rope = {**LLAMA_3_1_8B["rope_scaling"], "rope_theta": 500000.0}
    newer = {name: value for name, value in LLAMA_3_1_8B.items() if name not in ("rope_theta", "rope_scaling", "torch_dtype")}
    assert read(tmp_path, {**newer, "rope_parameters": rope, "dtype": "bfloat16"}) == read(tmp_path, LLAMA_3_1_8B)


def test_what_transformers_saves_is_read(tmp_path: Path) -> None:
    transformers.LlamaConfig(**LLAMA_3_2_1B).save_pretrained(tmp_path)
    written = read_llama_config(tmp_path)
    assert written == read(tmp_path, LLAMA_3_2_1B)


def test_what_a_file_leaves_out_is_as_in_transformers(tmp_path: Path) -> None:
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = read(tmp_path, {"model_type": "llama"} | {name: LLAMA_3_1_8B[name] for name in sizes})
    theirs = transformers.LlamaConfig(**{name: LLAMA_3_1_8B[name] for name in sizes})
    assert config.num_key_value_heads == theirs.num_key_value_heads == 32
    assert config.head_dim == theirs.head_dim == 128
    assert config.rms_norm_eps == theirs.rms_norm_eps
    assert config.rope_theta == theirs.rope_parameters["rope_theta"]
    assert config.rope_scaling is None
    assert config.tie_word_embeddings == theirs.tie_word_embeddings
    assert config.max_position_embeddings == theirs.max_position_embeddings


@pytest.mark.parametrize("name", ["rope_type", "type"])
def test_a_rope_type_of_default_is_no_scaling(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, {**LLAMA_3_1_8B, "rope_scaling": {name: "default"}}).rope_scaling is None


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert problems(tmp_path / "nowhere") == [f"--hf_model_id {tmp_path}/nowhere: there is no such folder"]


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    assert problems(tmp_path) == [
        f"--hf_model_id {tmp_path}: holds no config.json, so it is not a model folder in Hugging Face format"
    ]


@pytest.mark.parametrize(
    ("content", "reason"), [(b"{", "not valid JSON: "), (b"\xff\xfe{}", "not UTF-8 (byte 0)")], ids=["cut off", "not UTF-8"]
)
def test_a_broken_config_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    (message,) = problems(tmp_path)
    assert message.startswith(f"{tmp_path}/config.json: {reason}")


@pytest.mark.parametrize(("content", "found"), [({"model_type": "qwen2"}, "'qwen2'"), ({}, "None")], ids=str)
def test_another_family_is_refused_with_its_name(tmp_path: Path, content: Any, found: str) -> None:
    assert refused(tmp_path, content) == [f"model_type is {found}; only the Llama family (model_type 'llama') is supported"]


@pytest.mark.parametrize("value", [0, -1])
def test_a_size_that_is_no_positive_whole_number_is_refused(tmp_path: Path, value: Any) -> None:
    assert refused(tmp_path, {**LLAMA_3_1_8B, "hidden_size": value}) == [
        f"hidden_size is {value!r}, but must be a positive whole number"
    ]


@pytest.mark.parametrize(
    ("name", "value", "supported"),
    [("attention_bias", True, False), ("mlp_bias", True, False), ("hidden_act", "gelu", "silu"), ("is_causal", False, True)],
)
def test_a_decoder_that_computes_something_else_is_refused(tmp_path: Path, name: str, value: Any, supported: Any) -> None:
    assert refused(tmp_path, {**LLAMA_3_1_8B, name: value}) == [f"{name} is {value!r}; only {supported!r} is supported"]


@pytest.mark.parametrize("name", ["rope_type", "type"])
@pytest.mark.parametrize("rope_type", ["linear", "dynamic", "yarn", "longrope"])
def test_another_rope_type_is_refused(tmp_path: Path, name: str, rope_type: str) -> None:
    raw = {**LLAMA_3_1_8B, "rope_scaling": {name: rope_type, "factor": 2.0}}
    assert refused(tmp_path, raw) == [f"RoPE type '{rope_type}' is not supported; 'default' and 'llama3' are"]


def test_all_problems_of_a_file_are_listed_at_once(tmp_path: Path) -> None:
    raw = {**LLAMA_3_1_8B, "vocab_size": 0, "mlp_bias": True, "rope_scaling": {"rope_type": "yarn"}}
    assert refused(tmp_path, raw) == [
        "mlp_bias is True; only False is supported",
        "vocab_size is 0, but must be a positive whole number",
        "RoPE type 'yarn' is not supported; 'default' and 'llama3' are",
    ]
    assert refused(tmp_path, {**raw, "vocab_size": None, "rms_norm_eps": "small"}) == [
        "mlp_bias is True; only False is supported",
        "vocab_size is null, but must be a whole number",
        "rms_norm_eps is text, but must be a number",
    ]


WRONG_TYPES = [
    ("hidden_size", 4096.0, "is a number, but must be a whole number"),
    ("hidden_size", "4096", "is text, but must be a whole number"),
    ("num_hidden_layers", True, "is true or false, but must be a whole number"),
    ("num_key_value_heads", [8], "is a list, but must be a whole number or null"),
    ("head_dim", {}, "is a mapping, but must be a whole number or null"),
    ("rms_norm_eps", None, "is null, but must be a number"),
    ("max_position_embeddings", None, "is null, but must be a whole number"),
    ("tie_word_embeddings", None, "is null, but must be true or false"),
    ("tie_word_embeddings", 1, "is a whole number, but must be true or false"),
    ("rope_theta", None, "is null, but must be a number"),
    ("rope_parameters", [], "is a list, but must be a mapping or null"),
    ("rope_scaling", "llama3", "is text, but must be a mapping or null"),
    ("torch_dtype", 16, "is a whole number, but must be text or null"),
    ("eos_token_id", "2", "is text, but must be a whole number or a list or null"),
]


@pytest.mark.parametrize(("name", "value", "sentence"), WRONG_TYPES)
def test_a_wrong_type_is_one_sentence_with_its_key(tmp_path: Path, name: str, value: Any, sentence: str) -> None:
    assert refused(tmp_path, {**LLAMA_3_1_8B, name: value}) == [f"{name} {sentence}"]


@pytest.mark.parametrize(
    ("place", "name", "value", "sentence"),
    [
        ("rope_scaling", "factor", None, "is null, but must be a number"),
        ("rope_scaling", "rope_type", None, "is null, but must be text"),
        ("rope_parameters", "original_max_position_embeddings", "8192", "is text, but must be a whole number"),
    ],
)
def test_a_wrong_type_inside_of_the_rope_settings_names_both(
    tmp_path: Path, place: str, name: str, value: Any, sentence: str
) -> None:
    raw = {key: value for key, value in LLAMA_3_1_8B.items() if key != "rope_scaling"}
    assert refused(tmp_path, {**raw, place: {**SCALING, name: value}}) == [f"{place}.{name} {sentence}"]


OUT_OF_RANGE = [
    ("rms_norm_eps", math.nan, "rms_norm_eps is nan, but must be a number between 0 and 1"),
    ("rms_norm_eps", -1e-5, "rms_norm_eps is -1e-05, but must be a number between 0 and 1"),
    ("rope_theta", math.inf, "rope_theta is inf, but must be a positive number"),
    ("rope_theta", 0, "rope_theta is 0.0, but must be a positive number"),
    ("num_hidden_layers", 10**6, "num_hidden_layers is 1000000, but must be at most 2048"),
    ("vocab_size", 10**30, "vocab_size is 1e+30, but must be at most 2147483647"),
    ("num_key_value_heads", 0, "num_key_value_heads is 0, but must be a positive whole number"),
    ("head_dim", 0, "head_dim is 0, but must be a positive whole number"),
    ("head_dim", 127, "head_dim is 127, but must be even, as RoPE rotates pairs"),
    ("max_position_embeddings", -1, "max_position_embeddings is -1, but must be a positive whole number"),
    ("torch_dtype", "bf16", "dtype is bf16, but must be float64, float32, float16, bfloat16"),
    ("torch_dtype", "float8_e4m3fn", "dtype is float8_e4m3fn, but must be float64, float32, float16, bfloat16"),
    ("partial_rotary_factor", 0.5, "partial_rotary_factor is 0.5; only 1.0 is supported"),
    ("transformers_weights", "other.safetensors", "transformers_weights is 'other.safetensors'; only None is supported"),
    ("rope_scaling", SCALING | {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; only 1.0 is supported"),
    (
        "rope_scaling",
        SCALING | {"low_freq_factor": 4.0},
        "the llama3 RoPE scaling needs positive numbers, and low_freq_factor below high_freq_factor",
    ),
    ("num_attention_heads", 33, "33 attention heads must be a multiple of 8 key/value heads and divide the hidden size 4096"),
]


@pytest.mark.parametrize(("name", "value", "sentence"), OUT_OF_RANGE)
def test_a_value_that_makes_no_llama_is_refused(tmp_path: Path, name: str, value: Any, sentence: str) -> None:
    assert refused(tmp_path, {**LLAMA_3_1_8B, name: value}) == [sentence]


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, ["llama"]) == ["holds a list, but must hold a mapping"]


@pytest.mark.parametrize("target", ["/dev/zero", "a pipe"])
def test_what_never_ends_is_not_waited_for(tmp_path: Path, target: str) -> None:
    if target == "a pipe":
        os.mkfifo(tmp_path / "config.json")
    else:
        (tmp_path / "config.json").symlink_to(target)
    assert problems(tmp_path) == [f"{tmp_path}/config.json: not a regular file"]


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("quantization_config", {"quant_method": "bitsandbytes", "bits": 4}, "quant_method bitsandbytes, bits 4"),
        ("quantization_config", {"quant_method": "fp8", "weight_block_size": [128, 128]}, "quant_method fp8"),
        ("quantization_config", {}, "no method is named"),
        ("compression_config", {"format": "float-quantized"}, "format float-quantized"),
        ("quantization", {"group_size": 64, "bits": 4}, "bits 4"),
    ],
)
def test_quantized_weights_are_refused_by_the_configuration_alone(
    tmp_path: Path, key: str, value: dict[str, Any], shown: str
) -> None:
    (message,) = refused(tmp_path, {**LLAMA_3_1_8B, key: value})
    assert message == (
        f"{key} says that the weights are quantized ({shown}); give the model that they were made from, with weights in "
        "float64, float32, float16, bfloat16"
    )


WITHOUT_ROPE = {key: value for key, value in LLAMA_3_1_8B.items() if key not in ("rope_theta", "rope_scaling")}
NEW = SCALING | {"rope_theta": 500000.0}
SAID_ONCE_OR_EQUALLY = [
    {"rope_parameters": NEW},
    {"rope_parameters": SCALING, "rope_theta": 500000.0},
    {"rope_parameters": NEW, "rope_theta": 500000.0},
    {"rope_scaling": SCALING, "rope_parameters": NEW, "rope_theta": 500000},
    {"rope_scaling": NEW, "rope_parameters": NEW},
    {"rope_scaling": {}, "rope_parameters": NEW},
    {"rope_scaling": None, "rope_parameters": NEW},
    {"rope_scaling": NEW | {"type": "llama3"}, "rope_parameters": None},
    {"rope_theta": 500000.0},
    {"rope_scaling": SCALING},
    {"rope_parameters": {"rope_type": "default"}, "rope_theta": 500000.0},
    {"rope_parameters": NEW, "original_max_position_embeddings": NEW["original_max_position_embeddings"]},
    {},
]


@pytest.mark.parametrize("rope", SAID_ONCE_OR_EQUALLY, ids=str)
def test_rope_settings_are_those_of_transformers_wherever_they_stand(tmp_path: Path, rope: dict[str, Any]) -> None:
    config = read(tmp_path, WITHOUT_ROPE | rope)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path).rope_parameters
    assert config.rope_theta == theirs["rope_theta"]
    scaling = dataclasses.asdict(config.rope_scaling) if config.rope_scaling is not None else None
    names = [field.name for field in dataclasses.fields(RopeScaling)]
    assert scaling == ({name: theirs[name] for name in names} if theirs["rope_type"] == "llama3" else None)


CONTRADICTIONS = [
    ({"rope_parameters": NEW, "rope_theta": 10000.0}, "rope_theta 10000.0, rope_parameters.rope_theta 500000.0"),
    (
        {"rope_scaling": SCALING, "rope_parameters": NEW | {"factor": 32.0}, "rope_theta": 500000.0},
        "rope_scaling.factor 8.0, rope_parameters.factor 32.0",
    ),
    (
        {"rope_parameters": NEW, "original_max_position_embeddings": 4096},
        "original_max_position_embeddings 4096, rope_parameters.original_max_position_embeddings 8192",
    ),
    ({"rope_scaling": SCALING, "rope_parameters": NEW}, "rope_parameters.rope_theta 500000.0, nothing in the other"),
]


@pytest.mark.parametrize(("rope", "said"), CONTRADICTIONS, ids=str)
def test_rope_settings_that_contradict_each_other_are_refused(tmp_path: Path, rope: dict[str, Any], said: str) -> None:
    assert refused(tmp_path, WITHOUT_ROPE | rope) == [
        f"RoPE is described in several places that do not agree ({said}); keep what it was trained with"
    ]


def test_what_is_written_is_read_as_it_was_with_the_tokens_that_begin_and_end(tmp_path: Path) -> None:
    config = read(tmp_path, LLAMA_3_1_8B)
    write_llama_config(config, tmp_path, bos_token_id=1, eos_token_id=[2, 3])
    assert read_llama_config(tmp_path) == config
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (1, [2, 3])


def read(folder: Path, raw: Any) -> LlamaConfig:
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    return read_llama_config(folder)


def problems(folder: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        read_llama_config(folder)
    return caught.value.problems


def refused(folder: Path, raw: Any) -> list[str]:
    """The messages that refuse this file, without its path in front."""
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    found = problems(folder)
    assert all(message.startswith(f"{folder}/config.json: ") for message in found)
    return [message.removeprefix(f"{folder}/config.json: ") for message in found]
