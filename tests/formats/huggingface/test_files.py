"""Which files of a folder are the model, and what is no number: as transformers has it, or refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetuning.cli import inspect as inspect_command
from finetuning.config.settings import RunConfig
from finetuning.errors import InputError
from finetuning.formats.huggingface.files import (
    HEAD,
    INDEX_FILE,
    SINGLE_FILE,
    TABLE,
    fingerprint,
    indexed_bytes,
    read_index,
    weight_files,
)
from finetuning.formats.stored_model import open_model
from finetuning.formats.weight_source import HuggingFaceSource
from finetuning.launch.prepare import prepare
from tests.models import build, whole_parameters
from tests.processes import run_processes
from tests.references import write_random_adapter

QUERY = "model.layers.0.self_attn.q_proj.weight"
PLAIN = "with weights in float64, float32, float16, bfloat16"


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load_file(str(folder / SINGLE_FILE))


def save(weights: dict[str, Tensor], file: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, str(file), {"format": "pt"})


def save_in_shards(folder: Path, weights: dict[str, Tensor], places: Callable[[str], str]) -> None:
    """Two files and an index that is true."""
    names: dict[str, list[str]] = {}
    for name in weights:
        names.setdefault(places(name), []).append(name)
    for file, inside in names.items():
        save({name: weights[name] for name in inside}, folder / file)
    index = {"metadata": {}, "weight_map": {name: places(name) for name in weights}}
    (folder / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")
    (folder / SINGLE_FILE).unlink(missing_ok=True)


def halves(name: str) -> str:
    return f"model-0000{1 if '.0.' in name else 2}-of-00002.safetensors"


def other(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor + 1 for name, tensor in weights.items()}


def change_config(folder: Path, **changed: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changed), encoding="utf-8")


def problems(folder: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        open_model(folder).weights().shapes()
    return [problem.replace(f"{folder}", "MODEL") for problem in caught.value.problems]


def reads_as_transformers(folder: Path) -> bool:
    source = HuggingFaceSource(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return all(torch.equal(source.read(name), theirs[name]) for name in source.shapes())


def add_backup(folder: Path) -> None:
    save(other(weights_of(folder)), folder / "model_fp16_backup.safetensors")


def add_variant(folder: Path) -> None:
    save(other(weights_of(folder)), folder / "model.fp16.safetensors")


def add_older_shards(folder: Path) -> None:
    weights = weights_of(folder)
    save_in_shards(folder, weights, halves)
    save(other(weights), folder / "model-00001-of-00001.safetensors")
    save(other(weights), folder / "z-00001-of-00003.safetensors")


def add_finder_file(folder: Path) -> None:
    (folder / "._model.safetensors").write_bytes(b"\0\5\x16\7")
    (folder / "empty.safetensors").touch()


@pytest.mark.unit
def test_an_index_larger_than_that_of_any_model_is_refused_before_it_is_read(tmp_path: Path) -> None:
    names = {f"model.layers.{number}.mlp.up_proj.weight": SINGLE_FILE for number in range(2**17)}
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": names}), encoding="utf-8")
    for read in (read_index, indexed_bytes):
        with pytest.raises(InputError, match="larger than 4 MiB"):
            read(tmp_path / INDEX_FILE)


def add_index_of_the_single_file(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights_of(folder), SINGLE_FILE)}
    (folder / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")


def add_index_of_files_that_are_gone(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {name: halves(name) for name in weights_of(folder)}}
    (folder / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")


def add_old_buffers(folder: Path) -> None:
    save(weights_of(folder) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, folder / SINGLE_FILE)


STRAY = [
    add_backup,
    add_variant,
    add_older_shards,
    add_finder_file,
    add_index_of_the_single_file,
    add_index_of_files_that_are_gone,
    add_old_buffers,
]


@pytest.mark.unit
@pytest.mark.parametrize("add", STRAY)
def test_files_that_are_not_the_model_change_nothing(folder: Path, add: Callable[[Path], None]) -> None:
    add(folder)
    assert reads_as_transformers(folder)


@pytest.mark.dist
@pytest.mark.parametrize("add", [add_backup, add_older_shards, add_finder_file])
def test_training_reads_the_same_files(folder: Path, tiny_model: Path, add: Callable[[Path], None]) -> None:
    add(folder)
    (found,) = run_processes(1, weights_in_memory, folder)
    assert all(torch.equal(found[name], value) for name, value in weights_of(tiny_model).items())


def weights_in_memory(folder: Path) -> dict[str, Tensor]:
    return whole_parameters(build(folder))


@pytest.mark.unit
def test_the_fingerprint_is_that_of_the_files_that_are_read(folder: Path) -> None:
    before = fingerprint(folder)
    add_backup(folder)
    add_finder_file(folder)
    assert fingerprint(folder) == before
    save(other(weights_of(folder)), folder / SINGLE_FILE)
    assert fingerprint(folder) != before


def two_models(folder: Path) -> str:
    weights = weights_of(folder)
    save_in_shards(folder, other(weights), halves)
    save(weights, folder / SINGLE_FILE)
    return (
        "MODEL: holds two models, model.safetensors and 2 files that model.safetensors.index.json names; transformers "
        "reads the first. Move the one that is not meant away"
    )


def two_models_of_one_file_each(folder: Path) -> str:
    weights = weights_of(folder)
    save_in_shards(folder, other(weights), lambda name: "all.safetensors")
    save(weights, folder / SINGLE_FILE)
    return (
        "MODEL: holds two models, model.safetensors and 1 file that model.safetensors.index.json names; transformers reads the "
        "first. Move the one that is not meant away"
    )


def a_weight_in_both_shards(folder: Path) -> str:
    weights = weights_of(folder)
    save_in_shards(folder, weights, halves)
    names = [name for name in weights if halves(name) == halves(TABLE)]
    save({name: weights[name] for name in names} | {QUERY: weights[QUERY] + 1}, folder / halves(TABLE))
    return (
        f"MODEL: {QUERY} is in model-00001-of-00002.safetensors and in model-00002-of-00002.safetensors; move the file that is "
        "not meant away"
    )


def an_index_of_another_save(folder: Path) -> str:
    weights = weights_of(folder)
    save_in_shards(folder, weights, halves)
    swapped = {halves(QUERY): halves(TABLE), halves(TABLE): halves(QUERY)}
    index = {"metadata": {}, "weight_map": {name: swapped[halves(name)] for name in weights}}
    (folder / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")
    return (
        f"MODEL/{INDEX_FILE}: says that {TABLE} is in model-00001-of-00002.safetensors, but it is in "
        "model-00002-of-00002.safetensors; index and weight files are not of one save"
    )


def an_adapter_inside(folder: Path) -> str:
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    return "MODEL: holds a whole model and an adapter (adapter_config.json); move one of them into a folder of its own"


def an_index_of_a_list(folder: Path) -> str:
    (folder / INDEX_FILE).write_text('{"weight_map": ["a"]}', encoding="utf-8")
    return f"MODEL/{INDEX_FILE}: weight_map is a list, but must be a mapping; download it again"


def an_index_without_files(folder: Path) -> str:
    (folder / INDEX_FILE).write_text('{"weight_map": {"a": null}}', encoding="utf-8")
    return f"MODEL/{INDEX_FILE}: weight_map[...] is null, but must be text; download it again"


def an_index_that_names_the_configuration(folder: Path) -> str:
    (folder / INDEX_FILE).write_text('{"weight_map": {"a": "config.json"}}', encoding="utf-8")
    return f"MODEL/{INDEX_FILE}: names config.json, which is no safetensors file"


def a_missing_shard(folder: Path) -> str:
    stored = weights_of(folder)
    save(stored, folder / "model-00001-of-00002.safetensors")
    (folder / SINGLE_FILE).unlink()
    places = dict.fromkeys(stored, "model-00001-of-00002.safetensors") | {QUERY: "model-00002-of-00002.safetensors"}
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    return f"MODEL/{INDEX_FILE}: names model-00002-of-00002.safetensors, which is not in the folder; download it again"


def only_a_variant(folder: Path) -> str:
    (folder / SINGLE_FILE).rename(folder / "model.fp16.safetensors")
    (folder / "pytorch_model.bin").touch()
    return (
        "MODEL: weight file model.safetensors is missing (other weight files: model.fp16.safetensors, pytorch_model.bin); "
        "weights must be in safetensors format"
    )


def a_bias(folder: Path) -> str:
    name = QUERY.replace("weight", "bias")
    save(weights_of(folder) | {name: torch.ones(64)}, folder / SINGLE_FILE)
    return (
        f"MODEL: holds weights that a Llama does not have: {name}. What they do would be lost; give the model that was meant, "
        "or save it without them"
    )


def another_head_beside_a_tied_table(folder: Path) -> str:
    change_config(folder, tie_word_embeddings=True)
    return (
        "MODEL: config.json says tie_word_embeddings, but lm_head.weight and model.embed_tokens.weight are both there and "
        "differ. Set tie_word_embeddings to false, or remove the one that is not meant"
    )


def too_few_layers(folder: Path) -> str:
    change_config(folder, num_hidden_layers=2000)
    return "MODEL: the weights do not fit config.json: 2000 layers, and 21 tensors"


def a_header_of_half_the_file(folder: Path) -> str:
    with (folder / SINGLE_FILE).open("wb") as stream:
        stream.write((2**25).to_bytes(8, "little"))
        stream.truncate(2**26)
    return "MODEL/model.safetensors: cannot read the weights: a header of 32 MiB"


REFUSED = [
    two_models,
    two_models_of_one_file_each,
    an_adapter_inside,
    a_weight_in_both_shards,
    an_index_of_another_save,
    an_index_of_a_list,
    an_index_without_files,
    an_index_that_names_the_configuration,
    a_missing_shard,
    only_a_variant,
    a_bias,
    another_head_beside_a_tied_table,
    too_few_layers,
    a_header_of_half_the_file,
]


@pytest.mark.unit
@pytest.mark.parametrize("damage", REFUSED)
def test_what_contradicts_itself_is_refused_by_name(folder: Path, damage: Callable[[Path], str]) -> None:
    message = damage(folder)
    assert problems(folder) == [message]


@pytest.mark.unit
def test_a_head_that_equals_its_tied_table_is_taken(tiny_tied_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_tied_model, tmp_path / "model"))
    weights = weights_of(folder)
    save(weights | {HEAD: weights[TABLE].clone()}, folder / SINGLE_FILE)
    assert reads_as_transformers(folder)


def fp8(name: str, weight: Tensor) -> dict[str, Tensor]:
    scale = weight.abs().max() / 448
    return {name: (weight / scale).to(torch.float8_e4m3fn), f"{name}_scale": scale.reshape(1)}


def block_fp8(name: str, weight: Tensor) -> dict[str, Tensor]:
    return {name: weight.to(torch.float8_e4m3fn), f"{name}_scale_inv": torch.ones(1, 1)}


def int8(name: str, weight: Tensor) -> dict[str, Tensor]:
    return {name: (weight * 100).to(torch.int8), name.replace("weight", "SCB"): torch.ones(len(weight))}


def nf4(name: str, weight: Tensor) -> dict[str, Tensor]:
    packed = torch.zeros(weight.numel() // 2, 1, dtype=torch.uint8)
    return {name: packed, f"{name}.absmax": torch.ones(4), f"{name}.quant_map": torch.ones(16)}


def gptq(name: str, weight: Tensor) -> dict[str, Tensor]:
    return {name.replace("weight", kind): torch.zeros(8, 8, dtype=torch.int32) for kind in ("qweight", "qzeros", "g_idx")}


QUANTIZED = {
    fp8: (QUERY, "F8_E4M3", "compressed-tensors"),
    block_fp8: (QUERY, "F8_E4M3", "fp8"),
    int8: (QUERY, "I8", "bitsandbytes"),
    nf4: (QUERY, "U8", "bitsandbytes"),
    gptq: (QUERY, "I32", "gptq"),
}


@pytest.fixture(params=QUANTIZED, ids=lambda kind: kind.__name__)
def quantized(request: pytest.FixtureRequest, folder: Path) -> tuple[Path, str, str]:
    """A folder with quantized linear layers, and the beginning and the end of what must be said of its weights."""
    weights: dict[str, Tensor] = {}
    for name, tensor in weights_of(folder).items():
        weights |= request.param(name, tensor) if "_proj" in name else {name: tensor}
    save(weights, folder / SINGLE_FILE)
    _, dtype, _ = QUANTIZED[request.param]
    return folder, f"is stored as {dtype} (", f"give the model that they were made from, {PLAIN}"


@pytest.mark.unit
@pytest.mark.parametrize("declared", [True, False])
def test_quantized_weights_are_refused_before_anything_starts(
    quantized: tuple[Path, str, str], declared: bool, settings: Callable[..., RunConfig], tmp_path: Path
) -> None:
    folder, dtype, remedy = quantized
    if declared:
        change_config(folder, quantization_config={"quant_method": "fp8"})
    with pytest.raises(InputError) as caught:
        prepare(settings(hf_model_id=str(folder)), None, tmp_path / "experiment", tmp_path / "tokens", with_weights=False)
    said = caught.value.problems
    assert said[0].startswith(f"{folder}/model.safetensors: ") and dtype in said[0] and said[0].endswith(remedy)
    assert len(said) == (2 if declared else 1)
    assert problems(folder) == [said[0].replace(str(folder), "MODEL")]  # evaluate, generate, chat, export


@pytest.mark.unit
def test_quantized_weights_are_refused_as_the_base_of_an_adapter(
    quantized: tuple[Path, str, str], tiny_model: Path, tmp_path: Path
) -> None:
    folder, dtype, _ = quantized
    write_random_adapter(tiny_model, tmp_path / "adapter", 2, 4.0, ("q_proj",))
    with pytest.raises(InputError) as caught:
        open_model(tmp_path / "adapter", folder)
    assert dtype in caught.value.problems[0]


@pytest.mark.unit
def test_inspect_shows_what_is_there_and_why_it_is_not_usable(
    quantized: tuple[Path, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, dtype, _ = quantized
    assert inspect_command.main([str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "not usable" in shown and dtype in shown
    inspect_command.main([str(folder), "--json"])
    assert json.loads(capsys.readouterr().out)["problems"]


@pytest.mark.unit
def test_a_quantization_of_plain_weights_when_they_are_loaded_is_refused(folder: Path) -> None:
    change_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    (message,) = problems(folder)
    assert "says that the weights are quantized (quant_method bitsandbytes, load_in_8bit True)" in message


@pytest.mark.unit
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_of_plain_numbers_is_read(folder: Path, dtype: torch.dtype) -> None:
    save({name: tensor.to(dtype) for name, tensor in weights_of(folder).items()}, folder / SINGLE_FILE)
    change_config(folder, dtype=str(dtype).removeprefix("torch."))
    assert HuggingFaceSource(folder).dtype(QUERY) == dtype
    assert reads_as_transformers(folder)


@pytest.mark.unit
def test_the_weight_files_are_those_of_the_rule(folder: Path) -> None:
    add_backup(folder)
    assert weight_files(folder) == [folder / SINGLE_FILE]
    add_older_shards(folder)
    assert [file.name for file in weight_files(folder)] == [halves(QUERY), halves(TABLE)]
