"""GGUF files in: written by the gguf package as llama.cpp's converter writes them (which `test_llama_cpp` runs itself)."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer

from finetuning.cli import export, generate
from finetuning.config.llama import read_llama_config
from finetuning.data.reading.records import Sample
from finetuning.errors import EXIT_FINISHED, InputError
from finetuning.formats.gguf import header as gguf_header
from finetuning.formats.gguf.header import read_gguf_header
from finetuning.formats.gguf.weights import META_SCALING, gguf_name, open_gguf, rope_divisors
from finetuning.formats.recognize import inspect
from finetuning.formats.stored_model import open_model
from finetuning.i18n import printable
from finetuning.launch.hub import find_model

pytestmark = pytest.mark.unit

TYPES = gguf.GGMLQuantizationType
TEXTS = ["3 33 333 3333  \n\n ok", "I'll 'RE we\u2019ve", "颱風 😶\u200d🌫️ <|eot_id|> <|start_header_id|>", "\t\t x\n  \n   y  "]
Change = Callable[[gguf.GGUFWriter, dict[str, torch.Tensor]], None]


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """As in `LlamaModel.permute` of llama.cpp's conversion/llama.py."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    folder: Path, file: Path, kind: TYPES = TYPES.F32, settings: dict[str, Any] | None = None, change: Change | None = None
) -> Path:
    """The model of a folder; matrices as `kind`, norms in float32."""
    config = read_llama_config(folder)
    state = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    add_tokenizer(writer, folder)
    tensors = {}
    for name, weight in state.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            weight = permuted(weight, heads)
        tensors[gguf_name(name)] = weight
    assert config.rope_scaling is not None
    tensors["rope_freqs.weight"] = rope_divisors(config.rope_scaling, config.head_dim, config.rope_theta)
    for name, value in (settings or {}).items():
        writer.add_key_value(name, value, gguf.GGUFValueType.get_type(value))
    if change is not None:
        change(writer, tensors)
    for name, weight in tensors.items():
        stored = kind if weight.ndim > 1 else TYPES.F32
        writer.add_tensor(name, gguf.quantize(weight.contiguous().numpy(), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    special = {token["content"] for token in raw["added_tokens"]}
    tokens = [tokenizer.id_to_token(number) for number in range(tokenizer.get_vocab_size())]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in raw["model"]["merges"]])
    writer.add_bos_token_id(tokens.index("<|begin_of_text|>"))
    writer.add_eos_token_id(tokens.index("<|eot_id|>"))
    writer.add_add_bos_token(True)
    writer.add_chat_template((folder / "chat_template.jinja").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_float32_file_gives_the_model_that_was_converted_with_its_tokenizer_and_template(
    tiny_model: Path, tiny_tied_model: Path, tmp_path: Path, tied: bool
) -> None:
    folder = tiny_tied_model if tied else tiny_model
    found, original = open_model(write_gguf(folder, tmp_path / "x.gguf")), open_model(folder)
    source, expected = found.weights(), original.weights()
    assert source.config == expected.config and source.config.rope_scaling is not None
    for name in expected.shapes():
        assert torch.equal(source.read(name), expected.read(name)), name
        for start, stop in ((0, 1), (3, 21), (15, 17), (30, None)):
            assert torch.equal(source.read(name, start, stop), expected.read(name, start, stop)), name
    ours, theirs = found.prompt_format(), original.prompt_format()
    assert (ours.fingerprint, ours.end_token_ids) == (theirs.fingerprint, theirs.end_token_ids)
    for text in TEXTS:
        sample = Sample(1, text, text)
        assert ours.encode(sample)[0].tolist() == theirs.encode(sample)[0].tolist()


@pytest.mark.parametrize(
    ("kind", "dtype", "share"),
    [
        (TYPES.F16, "float16", 2**-11),
        (TYPES.BF16, "bfloat16", 2**-8),
        (TYPES.Q8_0, "bfloat16", 1 / 254 + 2**-11),
        (TYPES.Q4_0, "bfloat16", 1 / 7),
        (TYPES.Q5_1, "bfloat16", 1 / 30),
    ],
    ids=lambda value: value.name if isinstance(value, TYPES) else "",
)
def test_rounded_weights_differ_by_the_rounding_of_their_type(
    tiny_model: Path, tmp_path: Path, kind: TYPES, dtype: str, share: float
) -> None:
    source, expected = open_model(write_gguf(tiny_model, tmp_path / "x.gguf", kind)).weights(), open_model(tiny_model).weights()
    assert source.config.dtype == dtype
    for name in expected.shapes():
        weight = expected.read(name)
        rounded = source.read(name).float()
        if weight.ndim == 1:
            assert torch.equal(rounded, weight)
            continue
        # Of the largest number of a block of 32, which a quantized type scales to its largest step.
        blocks, found = weight.view(-1, 32), rounded.view(-1, 32)
        assert ((blocks - found).abs().amax(1) <= share * blocks.abs().amax(1)).all(), name
        assert not torch.equal(blocks, found)


def test_blocks_are_those_that_transformers_makes_of_them(tiny_model: Path, tmp_path: Path) -> None:
    """Rows are read a few at a time here, and all at once there; RoPE scaling, which transformers forgets, aside."""
    file = write_gguf(tiny_model, tmp_path / "x.gguf", TYPES.Q8_0)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).state_dict()
    source = open_model(file).weights()
    for name, shape in source.shapes().items():
        found = torch.cat([source.read(name, start, start + 5) for start in range(0, shape[0], 5)])
        assert torch.equal(found, theirs[name]), name


def test_the_commands_take_a_file(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_gguf(tiny_model, tmp_path / "x.gguf", TYPES.BF16)
    assert export.main([str(file), str(tmp_path / "out")]) == EXIT_FINISHED
    assert read_llama_config(tmp_path / "out").dtype == "bfloat16"
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    question = [{"role": "user", "content": TEXTS[0]}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    capsys.readouterr()
    assert generate.main([str(file), TEXTS[0], "--max_new_tokens", "8"]) == EXIT_FINISHED
    assert capsys.readouterr().out.rstrip("\n") == printable(tokenizer.decode(answer, skip_special_tokens=True))
    found = inspect(file)
    assert found.model is not None and found.model.num_hidden_layers == 2 and found.tokenizer == "gpt2, llama-bpe"
    with pytest.raises(InputError, match=r"x\.gguf: is a GGUF file; write it as a model folder first, by finetune export"):
        find_model(str(file), None, with_weights=True)


def test_another_tokenizer_is_taken_from_the_base(tiny_model: Path, tiny_tied_model: Path, tmp_path: Path) -> None:
    file = write_gguf(tiny_model, tmp_path / "x.gguf", settings={"tokenizer.ggml.pre": "falcon"})
    with pytest.raises(InputError, match=r"its tokenizer \(gpt2, falcon\) is none of those.*as --base"):
        open_model(file)
    assert open_model(file, tiny_model).tokenizer_folder == tiny_model
    with pytest.raises(InputError, match="tie_word_embeddings is False in the checkpoint and True in config"):
        open_model(file, tiny_tied_model)


def test_a_folder_without_a_tokenizer_is_completed_by_a_base(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare, ignore=lambda folder, names: {name for name in names if "token" in name})
    with pytest.raises(
        InputError, match=r"tokenizer\.json: cannot read the tokenizer: .*finetune export .*bare OUT --base MODEL"
    ):
        open_model(bare).prompt_format()
    file = write_gguf(tiny_model, tmp_path / "x.gguf")
    for base in (tiny_model, file):
        target = tmp_path / f"from-{base.name}"
        assert export.main([str(bare), str(target), "--base", str(base)]) == EXIT_FINISHED
        assert open_model(target).prompt_format().fingerprint == open_model(tiny_model).prompt_format().fingerprint
        assert (target / "model.safetensors").read_bytes() == (tiny_model / "model.safetensors").read_bytes()
    config = json.loads((bare / "config.json").read_text())
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    (other / "config.json").write_text(json.dumps(config | {"vocab_size": 700}))
    with pytest.raises(InputError, match=r"--base .*other: its tokenizer is for 700 tokens, and .*bare has [\d,]+"):
        open_model(bare, other)
    capsys.readouterr()


def other_rope(writer: gguf.GGUFWriter, tensors: dict[str, torch.Tensor]) -> None:
    tensors["rope_freqs.weight"] = tensors["rope_freqs.weight"] * 1.01


def with_bias(writer: gguf.GGUFWriter, tensors: dict[str, torch.Tensor]) -> None:
    tensors["blk.0.attn_q.bias"] = torch.zeros(64)


def without_norm(writer: gguf.GGUFWriter, tensors: dict[str, torch.Tensor]) -> None:
    del tensors["blk.1.ffn_norm.weight"]


def cut_weight(writer: gguf.GGUFWriter, tensors: dict[str, torch.Tensor]) -> None:
    tensors["output_norm.weight"] = tensors["output_norm.weight"][:32].contiguous()


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        ({"general.architecture": "qwen2"}, None, "the architecture is 'qwen2'; only 'llama' can be read"),
        ({"llama.expert_count": 8}, None, "expert_count is 8, which a Llama does not have"),
        ({"llama.rope.scaling.type": "yarn"}, None, r"rope\.scaling\.type is 'yarn'"),
        ({"split.count": 3}, None, "is one of 3 parts; put them together first"),
        ({"llama.block_count": 2**30}, None, "1073741824 layers with heads of 16 do not fit"),
        ({"llama.attention.head_count": 0}, None, r"llama\.attention\.head_count is 0, but must be a positive whole number"),
        ({"llama.rope.dimension_count": 15}, None, "heads of 15 do not fit"),
        ({"llama.rope.freq_base": float("inf")}, None, r"rope\.freq_base is inf, but must be a positive number"),
        (None, other_rope, r"rope_freqs\.weight .* is not the RoPE scaling of Llama 3"),
        (None, with_bias, r"holds weights that a Llama does not have: blk\.0\.attn_q\.bias"),
        (None, without_norm, r"blk\.1\.ffn_norm\.weight should be \[64\], found nothing"),
        (None, cut_weight, r"output_norm\.weight should be \[64\], found \[32\]"),
    ],
    ids=lambda value: str(value)[:30] if not callable(value) else value.__name__,
)
def test_what_is_no_llama_is_refused_with_the_reason(
    tiny_model: Path, tmp_path: Path, settings: dict[str, Any] | None, change: Change | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        open_model(write_gguf(tiny_model, tmp_path / "x.gguf", settings=settings, change=change))


def test_the_divisors_are_llama_cpp_s(tmp_path: Path) -> None:
    """Its own loop over the wavelengths, from conversion/llama.py."""
    expected = []
    for frequency in 1.0 / (500000.0 ** (torch.arange(0, 128, 2, dtype=torch.float32) / 128)):
        wavelength = 2 * np.pi / frequency.item()
        if wavelength < 8192 / 4.0:
            expected.append(1.0)
        elif wavelength > 8192 / 1.0:
            expected.append(8.0)
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            expected.append(1 / ((1 - smooth) / 8.0 + smooth))
    torch.testing.assert_close(rope_divisors(META_SCALING, 128, 500000.0), torch.tensor(expected), rtol=1e-6, atol=0)


def test_a_cut_or_changed_header_is_an_error_or_harmless(tiny_model: Path, tmp_path: Path) -> None:
    file = write_gguf(tiny_model, tmp_path / "x.gguf")
    raw = file.read_bytes()
    header = read_gguf_header(file)
    begin = min(tensor.offset for tensor in header.tensors.values())
    damaged = tmp_path / "y.gguf"
    outcomes = {"refused": 0, "read": 0}
    cuts = [raw[:length] for length in (0, 3, 20, begin // 2, begin, len(raw) - 40)]
    table = raw.rindex(b"general.architecture", 0, 100)
    places = [*range(64), *range(table, table + 200, 3), *range(begin - 1500, begin, 11)]
    for data in (*cuts, *(raw[:n] + bytes([raw[n] ^ 0x5A]) + raw[n + 1 :] for n in places)):
        damaged.write_bytes(data)
        try:
            source = open_gguf(damaged).source()
            for name in source.shapes():
                source.read(name, 0, 2)
        except InputError:
            outcomes["refused"] += 1
        else:
            outcomes["read"] += 1
    assert outcomes["refused"] > outcomes["read"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (struct.pack("<IQQ", 3, 2**60, 1), "a count of"),
        (struct.pack("<IQQ", 9, 0, 0), "version 9"),
        (struct.pack("<IQQQ", 3, 0, 1, 2**40), "a count of"),
        (struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 9, 1) * 5000, "an array of type 9"),
    ],
)
def test_a_header_that_asks_for_memory_without_end_is_refused(raw: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF" + raw)
    with pytest.raises(InputError, match=message):
        read_gguf_header(file)


def test_nothing_is_left_of_an_export_whose_file_ends_too_early(tiny_model: Path, tmp_path: Path) -> None:
    file = write_gguf(tiny_model, tmp_path / "x.gguf")
    model = open_model(file)
    shutil.copyfile(file, tmp_path / "whole")
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 2)
    with pytest.raises(InputError, match="the file ends too early"):
        export.export_hugging_face(model, tmp_path / "out", None, lambda done, total: None)
    assert not list(tmp_path.glob("*out*"))


def test_the_configuration_that_is_written_names_the_tokens_that_begin_and_end(tiny_model: Path, tmp_path: Path) -> None:
    model = open_model(write_gguf(tiny_model, tmp_path / "x.gguf"))
    found, first = (json.loads((folder / "config.json").read_text()) for folder in (model.base_folder, tiny_model))
    assert [found[name] for name in ("bos_token_id", "eos_token_id")] == [first["bos_token_id"], first["eos_token_id"]]


def test_a_tensor_of_200_000_dimensions_is_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    tensor = struct.pack("<Q1sI", 1, b"x", 200_000) + struct.pack("<Q", 1) * 200_000
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + tensor)
    with pytest.raises(InputError, match="x has 200000 dimensions"):
        read_gguf_header(file)


def test_a_name_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    setting, tensor = struct.pack("<Q1sIB", 1, b"a", 0, 1), struct.pack("<Q1sIQIQ", 1, b"x", 1, 1, 0, 0)
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + setting * 2)
    with pytest.raises(InputError, match="a is set twice"):
        read_gguf_header(file)
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2, 0) + tensor * 2)
    with pytest.raises(InputError, match="two tensors have one name"):
        read_gguf_header(file)


def test_a_header_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gguf_header.MAX_BYTES == 64 * 2**20
    monkeypatch.setattr(gguf_header, "MAX_BYTES", 2**20)
    file = tmp_path / "x.gguf"
    setting = b"".join(struct.pack("<Q4sIIQ", 4, b"%04d" % n, 9, 0, 2**18) + bytes(2**18) for n in range(5))
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 5) + setting)
    with pytest.raises(InputError, match="a header of more than 1 MiB"):
        read_gguf_header(file)


def test_weights_of_whole_numbers_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    file = write_gguf(tiny_model, tmp_path / "x.gguf")
    raw = file.read_bytes()
    name = b"blk.0.ffn_down.weight"
    at = raw.index(name) + len(name) + 4 + 2 * 8  # number of dimensions, two sizes
    file.write_bytes(raw[:at] + struct.pack("<I", 26) + raw[at + 4 :])  # ggml's I32
    with pytest.raises(InputError, match="holds weights of type 26, which cannot be read"):
        open_model(file)
