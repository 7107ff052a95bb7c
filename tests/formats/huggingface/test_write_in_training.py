"""Models in and out in Hugging Face format, against transformers itself."""

import json
import resource
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import transformers
from torch import Tensor

from finetuning.config.degrees import Degrees
from finetuning.config.llama import read_llama_config
from finetuning.config.settings import LORA_TARGETS
from finetuning.config.strategy import LINEAR, LOW_MEMORY, Strategy
from finetuning.data.prompts.prompt_format import load_prompt_format
from finetuning.data.reading.records import Sample
from finetuning.errors import NoRoom
from finetuning.formats.huggingface import safetensors_writer as safetensors_files
from finetuning.formats.huggingface import write as writing
from finetuning.formats.huggingface.write import export_model
from finetuning.formats.load_sharded import load_base_weights
from finetuning.model.blocks.frozen_linear import SmallFp8Matrix
from finetuning.model.blocks.low_memory_block import LowMemoryBlock
from finetuning.parallel.mesh import Layout
from finetuning.parallel.parallelize import base_parameters, build_model
from tests.closeness import assert_near
from tests.disks import fill
from tests.models import build, whole_logits, whole_parameters
from tests.processes import run_processes
from tests.references import load_reference

pytestmark = pytest.mark.dist

TOKENS = torch.from_numpy(np.random.default_rng(2).integers(0, 512, 40))
TEMPLATE = r"問題：{input}\n回答：{output}"


def load_change_and_export(
    model_folder: Path, target: Path, template: str | None, shard_bytes: int
) -> tuple[Tensor, dict[str, Tensor]]:
    safetensors_files.SHARD_BYTES = shard_bytes
    model = build(model_folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
    chat_template = load_prompt_format(model_folder, template, None).chat_template()
    export_model(model, target, model_folder, chat_template)
    return whole_logits(model, TOKENS), whole_parameters(model)


def weights_in_memory(model_folder: Path) -> dict[str, Tensor]:
    return whole_parameters(build(model_folder))


def weights_of_the_least_memory(model_folder: Path, fp8: bool) -> dict[str, Tensor]:
    """As on a GPU, where the table and what is to be quantized are filled on the host, as plain tensors."""
    strategy = Strategy(
        lora_rank=2, lora_targets=LORA_TARGETS, sharding="replicated", blocks=LOW_MEMORY, fp8=(LINEAR,) if fp8 else ()
    )
    layout = Layout("cpu", Degrees())
    model = build_model(read_llama_config(model_folder), layout, torch.device("cpu"), strategy)
    model.device = torch.device("cuda")
    load_base_weights(model_folder, model)
    block = model.get_submodule("parts.0.model.layers.1")
    assert isinstance(block, LowMemoryBlock)
    (w_qkv, *_) = block.weights()
    found = {name: weight.data for name, weight in base_parameters(model).items() if weight.numel()}
    if isinstance(w_qkv, SmallFp8Matrix):
        found["qkv"] = w_qkv.rows[0].float() * w_qkv.rows[1]
    return found


@pytest.mark.parametrize("fp8", [False, True])
def test_with_the_least_memory_every_weight_is_filled_once(tiny_model: Path, fp8: bool) -> None:
    (found,) = run_processes(1, weights_of_the_least_memory, tiny_model, fp8)
    expected = load_reference(tiny_model).float().state_dict()
    if fp8:
        layer = "model.layers.1.self_attn"
        joint = torch.cat([expected[f"{layer}.{name}_proj.weight"] for name in "qkv"])
        assert (found.pop("qkv") - joint).norm() < 0.05 * joint.norm()  # 3 bits of fraction: off by 1/16 at most
        assert found.keys() == {name for name in expected if "_proj" not in name}
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_process_count_reads_the_stored_weights_bit_for_bit(tiny_model: Path, world_size: int) -> None:
    expected = load_reference(tiny_model).float().state_dict()
    for found in run_processes(world_size, weights_in_memory, tiny_model):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("shard_bytes", [safetensors_files.SHARD_BYTES, 100_000], ids=["one file", "several files"])
def test_transformers_loads_the_export_and_computes_our_logits(
    tiny_model: Path, tiny_tied_model: Path, tmp_path: Path, tied: bool, shard_bytes: int
) -> None:
    base = tiny_tied_model if tied else tiny_model
    ours, weights = run_processes(2, load_change_and_export, base, tmp_path / "export", None, shard_bytes)[0]
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float64).eval()
    with torch.no_grad():
        theirs = model(input_ids=TOKENS[None]).logits[0]
    assert_near(ours, theirs)
    assert all(torch.equal(model.state_dict()[name].float(), value) for name, value in weights.items())
    files = sorted(path.name for path in (tmp_path / "export").glob("*.safetensors"))
    assert len(files) == 1 if shard_bytes == safetensors_files.SHARD_BYTES else len(files) > 2
    assert all((tmp_path / "export" / name).stat().st_size < 2 * shard_bytes for name in files)


def test_the_export_has_tokenizer_chat_template_config_and_generation_config(tiny_model: Path, tmp_path: Path) -> None:
    export = tmp_path / "export"
    run_processes(1, load_change_and_export, tiny_model, export, None, safetensors_files.SHARD_BYTES)
    messages = [{"role": "user", "content": "你好！"}]
    before, after = (transformers.AutoTokenizer.from_pretrained(folder) for folder in (tiny_model, export))
    assert after.apply_chat_template(messages, tokenize=False) == before.apply_chat_template(messages, tokenize=False)
    assert (export / "config.json").read_bytes() == (tiny_model / "config.json").read_bytes()
    generation = transformers.GenerationConfig.from_pretrained(export)
    assert generation.eos_token_id == transformers.GenerationConfig.from_pretrained(tiny_model).eos_token_id
    assert len(generation.eos_token_id) == 3


def test_a_custom_chinese_template_becomes_the_chat_template_of_the_export(tiny_model: Path, tmp_path: Path) -> None:
    """Also where the base model keeps its template inside tokenizer_config.json, as older folders do."""
    base = tmp_path / "base"
    base.mkdir()
    for file in tiny_model.iterdir():
        if file.name != "chat_template.jinja":
            (base / file.name).write_bytes(file.read_bytes())
    settings = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["chat_template"] = (tiny_model / "chat_template.jinja").read_text(encoding="utf-8")
    (base / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")

    export = tmp_path / "export"
    run_processes(1, load_change_and_export, base, export, TEMPLATE, safetensors_files.SHARD_BYTES)
    tokenizer = transformers.AutoTokenizer.from_pretrained(export)
    trained_with = load_prompt_format(base, TEMPLATE, None)
    for question in ("請解釋「遞迴」\n與\\n 的差別。", "Name a color  ", 'say "hi" {input}'):
        messages = [{"role": "user", "content": question}]
        found = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        sample = Sample(1, question, "答案。")
        assert found == trained_with.encode_prompt(sample)
        whole = trained_with.encode(sample)[0].tolist()
        assert (
            tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": "答案。"}], return_dict=False) == whole
        )
    assert tokenizer.decode(found).startswith("<|begin_of_text|>問題：")


def test_an_earlier_export_is_replaced_as_a_whole(tiny_model: Path, tmp_path: Path) -> None:
    export = tmp_path / "export"
    export.mkdir()
    (export / "model-00001-of-00002.safetensors").write_bytes(b"old")
    run_processes(1, load_change_and_export, tiny_model, export, None, safetensors_files.SHARD_BYTES)
    assert not (export / "model-00001-of-00002.safetensors").exists()
    assert (export / "model.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def export_where_one_rank_has_no_room(model_folder: Path, target: Path, folder_to_fill: Path | None) -> tuple[str, float]:
    """On rank 0 the disk is full, or files may not become larger, once it has begun; the error, and how long that took."""
    model = build(model_folder)

    def begin(path: Path, needed: int) -> None:
        if folder_to_fill is None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (needed // 3, resource.RLIM_INFINITY))
        else:
            fill(folder_to_fill)
            (folder_to_fill / "taken").unlink()

    writing.require_room = begin
    started = time.monotonic()
    try:
        export_model(model, target, model_folder, None)
    except NoRoom as error:
        return str(error), time.monotonic() - started
    finally:
        if dist.get_rank() == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return "exported", 0.0


def check_no_room(found: list[tuple[str, float]], target: Path, reason: str) -> None:
    (first, _), (second, _) = found
    assert first == second
    assert first.startswith(f"{target.parent}: no room left ({reason}")
    assert all(seconds < 10 for _, seconds in found)
    assert [path.name for path in target.iterdir()] == ["old"]
    assert not list(target.parent.glob(".incomplete-*"))


def test_a_file_that_may_not_become_larger_ends_an_export_on_all_ranks_at_once(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "old").touch()
    found = run_processes(2, export_where_one_rank_has_no_room, tiny_model, tmp_path / "export", None)
    check_no_room(found, tmp_path / "export", "File too large")


def test_a_disk_that_becomes_full_in_an_export_ends_it_on_all_ranks_at_once(tiny_model: Path, small_disk: Path) -> None:
    (small_disk / "export").mkdir()
    (small_disk / "export" / "old").touch()
    (small_disk / "taken").write_bytes(bytes(200_000))
    found = run_processes(2, export_where_one_rank_has_no_room, tiny_model, small_disk / "export", small_disk)
    check_no_room(found, small_disk / "export", "No space left on device")
