"""GGUF files out: read back by our own reader and by the gguf package, with an adapter merged in float32."""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from finetuning.cli import export
from finetuning.data.reading.records import Sample
from finetuning.errors import EXIT_FINISHED, InputError, RunError
from finetuning.formats.gguf.header import read_gguf_header
from finetuning.formats.gguf.vocabulary import read_vocabulary
from finetuning.formats.gguf.write import with_date
from finetuning.formats.stored_model import open_model
from tests.formats.gguf.test_gguf import TEXTS, write_gguf
from tests.references import write_random_adapter

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    write_random_adapter(tiny_model, folder, 2, 6.0, ("q_proj", "k_proj", "down_proj"))
    return folder


def exported(model: Path, out: Path, *flags: str, name: str | None = None) -> Path:
    assert export.main([str(model), str(out), "--to", "gguf", *flags]) == EXIT_FINISHED
    (file,) = out.glob("*.gguf")
    assert name is None or file.name == name
    return file


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_model_comes_back_from_its_file_with_weights_tokens_and_template(
    tiny_model: Path, tiny_tied_model: Path, tmp_path: Path, tied: bool
) -> None:
    folder = tiny_tied_model if tied else tiny_model
    found, original = open_model(exported(folder, tmp_path / "out", name="model-f32.gguf")), open_model(folder)
    source, expected = found.weights(), original.weights()
    assert source.config == expected.config
    assert all(torch.equal(source.read(name), expected.read(name)) for name in expected.shapes())
    ours, theirs = found.prompt_format(), original.prompt_format()
    assert (ours.fingerprint, ours.end_token_ids) == (theirs.fingerprint, theirs.end_token_ids)
    for text in TEXTS:
        assert ours.encode(Sample(1, text, text))[0].tolist() == theirs.encode(Sample(1, text, text))[0].tolist()


def test_the_file_says_what_llama_cpp_s_converter_says(tiny_model: Path, tmp_path: Path) -> None:
    """The reference is the file of the other tests, made with the gguf package as the converter does."""
    ours = read_gguf_header(exported(tiny_model, tmp_path / "out"))
    theirs = read_gguf_header(write_gguf(tiny_model, tmp_path / "x.gguf"))
    template = theirs.settings.pop("tokenizer.chat_template")
    assert {name: value for name, value in ours.settings.items() if name in theirs.settings} == theirs.settings
    # llama.cpp tells every template today's date, which the training was not told.
    assert ours.settings.pop("tokenizer.chat_template") == '{% set date_string = "26 Jul 2024" %}' + template
    assert {name: (t.shape, t.kind) for name, t in ours.tensors.items()} == {
        name: (t.shape, t.kind) for name, t in theirs.tensors.items()
    }
    more = {name: ours.settings[name] for name in ours.settings.keys() - theirs.settings.keys()}
    assert more == {
        "general.type": "model",
        "general.name": "out",
        "general.file_type": 0,
        "general.quantization_version": 2,
        "llama.attention.key_length": 16,
        "llama.attention.value_length": 16,
        "tokenizer.ggml.eot_token_id": ours.settings["tokenizer.ggml.eos_token_id"],
        "tokenizer.ggml.eom_token_id": ours.settings["tokenizer.ggml.tokens"].index("<|eom_id|>"),
    }


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
def test_an_adapter_is_merged_in_float32_and_rounded_once(
    tiny_model: Path, adapter: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base in bfloat16, in pieces of a few rows: rounding to the base's dtype first would give other numbers."""
    assert export.main([str(tiny_model), str(tmp_path / "base"), "--dtype", "bfloat16"]) == EXIT_FINISHED
    monkeypatch.setattr("finetuning.formats.huggingface.write.PIECE_BYTES", 4 * 64 * 24)
    given = open_model(adapter, tmp_path / "base")
    file = exported(adapter, tmp_path / "out", "--base", str(tmp_path / "base"), "--quantize", kind)
    found, wholes = open_model(file).weights(), given.weights(rounds=False)
    number = gguf.GGMLQuantizationType[kind.upper()]
    differs = False
    for name in wholes.shapes():
        whole = wholes.read(name).float()
        stored = whole if whole.ndim == 1 else torch.from_numpy(gguf.dequantize(gguf.quantize(whole.numpy(), number), number))
        assert torch.equal(found.read(name).float(), stored), name
        differs |= not torch.equal(whole, given.weights().read(name).float())
    assert differs


def test_rows_that_are_no_whole_blocks_stay_in_float16(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    from examples.make_tiny_model import make_tiny_model
    from tests.conftest import TINY_SHAPE

    make_tiny_model(folder, **TINY_SHAPE | {"intermediate_size": 100})
    header = read_gguf_header(exported(folder, tmp_path / "out", "--quantize", "q8_0"))
    assert header.tensors["blk.0.ffn_down.weight"].type_name == "float16"
    assert header.tensors["blk.0.ffn_up.weight"].type_name == "Q8_0"


def test_the_gguf_package_reads_the_same_tensors(tiny_model: Path, tmp_path: Path) -> None:
    file = exported(tiny_model, tmp_path / "out")
    header, read = read_gguf_header(file), gguf.GGUFReader(file)
    assert [tensor.name for tensor in read.tensors] == list(header.tensors)
    raw = np.fromfile(file, np.uint8)
    for tensor in read.tensors:
        offset = header.tensors[tensor.name].offset
        assert np.array_equal(tensor.data.reshape(-1).view(np.uint8), raw[offset : offset + tensor.n_bytes]), tensor.name


def test_flags_without_effect_and_files_as_folders_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    cases = {
        ("--quantize", "q8_0"): "--quantize q8_0 has no effect without --to gguf",
        ("--to", "gguf", "--dtype", "float16"): "--dtype has no effect with --to gguf; give --quantize",
        ("--to", "gguf", "--merge"): r"--merge has no effect: .* has no adapter",
    }
    for flags, message in cases.items():
        with pytest.raises(InputError, match=message):
            export.main([str(tiny_model), str(tmp_path / "out"), *flags])
    with pytest.raises(InputError, match=r"x\.gguf: is a name for a file, and a folder is written; give for example .*x"):
        export.main([str(tiny_model), str(tmp_path / "x.gguf"), "--to", "gguf"])
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(InputError, match="is there already"):
        export.main([str(tiny_model), str(tmp_path / "there"), "--to", "gguf"])


def test_a_template_that_asks_for_no_date_is_written_as_it_is(tiny_model: Path) -> None:
    prompt_format = open_model(tiny_model).prompt_format()
    assert with_date("{{ bos_token }}", prompt_format) == "{{ bos_token }}"
    dated = with_date("{{ date_string }}", None)
    assert dated == '{% set date_string = "26 Jul 2024" %}{{ date_string }}' and with_date(dated, prompt_format) == dated


def test_a_k_quant_without_llama_cpp_says_where_to_get_it(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    with pytest.raises(InputError, match=r"--quantize q4_k_m: llama\.cpp's own llama-quantize makes this type, and it is"):
        export.main([str(tiny_model), str(tmp_path / "out"), "--to", "gguf", "--quantize", "q4_k_m"])
    program = tmp_path / "bin" / "llama-quantize"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "cannot quantize $3" >&2\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    monkeypatch.setenv("PATH", "/bin")
    with pytest.raises(RunError, match="llama-quantize failed: cannot quantize q4_k_m"):
        export.main([str(tiny_model), str(tmp_path / "out"), "--to", "gguf", "--quantize", "q4_k_m"])
    assert not (tmp_path / "out").exists()


def changed_tokenizer(folder: Path, target: Path, **changed: object) -> Path:
    shutil.copytree(folder, target)
    file = target / "tokenizer.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    for path, value in changed.items():
        place, *names = path.split("__")
        inner = found
        for name in [place, *names][:-1]:
            inner = inner[int(name) if name.isdigit() else name]
        inner[[place, *names][-1]] = value
    file.write_text(json.dumps(found), encoding="utf-8")
    return target


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"normalizer": {"type": "NFC"}}, "splits text in a way that has no name in llama.cpp"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, r"has no name in llama\.cpp \(llama-bpe, smollm, gpt-2, qwen2 …\)"),
        ({"pre_tokenizer": None}, "splits text in a way that has no name"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": 3}}, "splits text in a way that has no name"),
        ({"model__byte_fallback": True}, "is no byte-level BPE, which alone can be written"),
        ({"model__merges": [["a", "b c"]]}, "is no byte-level BPE, which alone can be written"),
        ({"added_tokens__0__lstrip": True}, r"'<\|begin_of_text\|>' takes white space beside it"),
        ({"added_tokens__0__id": 512}, "has a token of number 512, and the embedding table has 512 rows"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_tokenizer_that_llama_cpp_cannot_have_is_refused(
    tiny_model: Path, tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_vocabulary(changed_tokenizer(tiny_model, tmp_path / "model", **changed), 512, None)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json: cannot read the tokenizer: No such file"):
        read_vocabulary(tmp_path, 512, None)


def test_rules_ends_and_rows_without_a_token(tiny_model: Path, tmp_path: Path) -> None:
    found = read_vocabulary(tiny_model, 515, "<|end_of_text|>")
    assert found.rule == "llama-bpe" and found.adds_begin and found.tokens[found.begin or 0] == "<|begin_of_text|>"
    assert {name: found.tokens[token] for name, token in found.ends.items()} == {
        "eos": "<|eot_id|>",
        "eot": "<|end_of_text|>",
        "eom": "<|eom_id|>",
    }
    assert found.tokens[512:] == ["[PAD512]", "[PAD513]", "[PAD514]"] and found.kinds[510:] == [3, 3, 5, 5, 5]
    digits = {"type": "Digits", "individual_digits": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    smollm = {"type": "Sequence", "pretokenizers": [digits, level]}
    other = changed_tokenizer(
        tiny_model, tmp_path / "other", pre_tokenizer=smollm, model__ignore_merges=False, post_processor=None
    )
    (other / "generation_config.json").write_text(json.dumps({"eos_token_id": [found.tokens.index("<|python_tag|>"), 3]}))
    found = read_vocabulary(other, 512, None)
    assert (found.rule, found.adds_begin) == ("smollm", False) and "<|python_tag|>" in found.other_ends
    plain = changed_tokenizer(tiny_model, tmp_path / "plain", pre_tokenizer=level, model__ignore_merges=False)
    assert read_vocabulary(plain, 512, None).rule == "gpt-2"
    split = changed_tokenizer(tiny_model, tmp_path / "split", model__ignore_merges=False)
    assert read_vocabulary(split, 512, None).rule == "dbrx"  # Llama 3's expression, where no word is taken whole
