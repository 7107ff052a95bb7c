"""Any stored model out as a Hugging Face folder or a PEFT adapter, against transformers and PEFT themselves."""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from finetuning.checkpoint.store import save_checkpoint
from finetuning.config.degrees import Degrees
from finetuning.config.strategy import Strategy
from finetuning.errors import InputError
from finetuning.formats.huggingface import write
from finetuning.formats.huggingface.files import fingerprint
from finetuning.formats.huggingface.safetensors_writer import Stored, plan_files
from finetuning.formats.huggingface.write import export_hugging_face
from finetuning.formats.peft.adapter import MergedSource
from finetuning.formats.peft.files import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from finetuning.formats.peft.write import export_peft
from finetuning.formats.stored_model import open_model
from finetuning.inference.loading import attach_adapter, load_net
from finetuning.model.attention import make_documents
from finetuning.training.optimizer import build_optimizer, optimizer_state
from tests.closeness import assert_near
from tests.models import build
from tests.processes import run_processes
from tests.references import load_reference, write_random_adapter

TARGETS = ("q_proj", "down_proj")
LORA = Strategy(lora_rank=2, lora_alpha=6.0, lora_targets=TARGETS)


def export_to(model_folder: Path, target: Path, dtype: str | None = None, base: Path | None = None) -> Path:
    export_hugging_face(open_model(model_folder, base), target, dtype, lambda done, total: None)
    return target


def save_trained(model_folder: Path, path: Path, degrees: Degrees, strategy: Strategy) -> None:
    model = build(model_folder, strategy, degrees=degrees)
    lora = strategy.lora_rank is not None
    optimizer = build_optimizer(model, learning_rate=1e-3, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1, fused=False)
    identity = {"peft": "lora" if lora else "none", "lora_rank": 2, "lora_alpha": 6.0, "base_model": fingerprint(model_folder)}
    origin = {"base_model": "tiny", "base_path": str(model_folder), "prompt": None}
    save_checkpoint(path, model, optimizer_state(model, optimizer), {"step": 1, "identity": identity, "origin": origin})


@pytest.mark.unit
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_folder_of_transformers_in_many_files_comes_out_byte_for_byte(tiny_model: Path, tmp_path: Path, dtype: str) -> None:
    folder = tmp_path / "sharded"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    out = export_to(folder, tmp_path / "out")
    for file in out.iterdir():
        assert file.read_bytes() == (folder / file.name).read_bytes(), file.name
    assert {file.name for file in out.iterdir()} == {file.name for file in folder.iterdir()}


@pytest.mark.dist
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_checkpoint_of_tensor_and_pipeline_stages_gives_the_weights_it_was_filled_with(
    tiny_model: Path, tiny_tied_model: Path, tmp_path: Path, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_tied_model if tied else tiny_model
    run_processes(4, save_trained, base, tmp_path / "step=000001", Degrees(tp=2, pp=2), Strategy())
    monkeypatch.setattr(write, "PIECE_BYTES", 10_000)  # several pieces of a weight, across its parts
    out = export_to(tmp_path / "step=000001", tmp_path / "out")
    assert (out / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    assert (out / "config.json").read_bytes() == (base / "config.json").read_bytes()


@pytest.mark.dist
def test_adapters_of_a_checkpoint_come_out_in_peft_format(tiny_model: Path, tmp_path: Path) -> None:
    run_processes(2, save_trained, tiny_model, tmp_path / "step=000001", Degrees(dp_shard=2), LORA)
    stored = open_model(tmp_path / "step=000001")
    export_peft(stored, tmp_path / "out", str(tiny_model))
    assert stored.base_is_checked and stored.adapter is not None
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.peft_config["default"].lora_alpha == 6.0
    weights = peft.get_peft_model_state_dict(loaded)
    for name, update in stored.adapter.updates.items():
        key = "base_model.model." + name.removesuffix(".weight")
        assert torch.equal(weights[f"{key}.lora_A.weight"], update.a) and torch.equal(weights[f"{key}.lora_B.weight"], update.b)


@pytest.mark.unit
@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"down_proj": 4}, "alpha_pattern": {"layers.1.self_attn.q_proj": 3}},
        {"layers_to_transform": [1]},
        {"target_modules": "all-linear"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_every_kind_of_adapter_is_merged_as_peft_does(tiny_model: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    wanted = {"r": 2, "lora_alpha": 6, "target_modules": list(TARGETS), "task_type": "CAUSAL_LM"} | settings
    model = peft.get_peft_model(load_reference(tiny_model), peft.LoraConfig(**wanted))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            parameter.data.normal_(0, 0.1, generator=generator)
        elif "magnitude" in name:
            parameter.data.mul_(1.5)
    model.save_pretrained(tmp_path)
    stored = open_model(tmp_path, tiny_model)
    tokens = torch.arange(3, 40)
    with torch.no_grad():
        expected = model.eval()(input_ids=tokens[None]).logits[0]
    theirs = model.merge_and_unload().state_dict()
    source = stored.weights()
    assert isinstance(source, MergedSource) and stored.adapter is not None and not stored.base_is_checked
    for name in source.shapes():
        ours = torch.cat((source.read(name, 0, 7), source.read(name, 7)))
        assert_near(ours, theirs[name], name)
    net = load_net(stored.base, torch.device("cpu"), torch.float32)
    attach_adapter(net, stored.adapter)  # beside the weights, as evaluate, generate and chat use it
    places = torch.arange(len(tokens))
    with torch.no_grad():
        beside = net(tokens[None], places[None], make_documents([len(tokens)]), at_S=places)[0]
    assert_near(beside, expected)


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    write_random_adapter(tiny_model, tmp_path / "adapter", 2, 6.0, TARGETS)
    return tmp_path / "adapter"


@pytest.mark.unit
def test_an_adapter_of_another_base_is_refused(tiny_model: Path, tiny_tied_model: Path, adapter: Path, tmp_path: Path) -> None:
    origin = {"base_model": "tiny", "base_fingerprint": fingerprint(tiny_model), "prompt": None}
    (adapter / "finetuning.json").write_text(json.dumps(origin), encoding="utf-8")
    assert open_model(adapter, tiny_model).base_is_checked
    with pytest.raises(InputError, match=r"was trained on tiny with fingerprint .* On other weights an adapter gives wrong"):
        open_model(adapter, tiny_tied_model)


@pytest.mark.unit
def test_a_damaged_adapter_is_refused_with_what_is_wrong(tiny_model: Path, adapter: Path) -> None:
    tensors = load_file(adapter / ADAPTER_WEIGHTS_FILE)
    first = next(iter(tensors))
    save_file(tensors | {first: tensors[first][:, :5].contiguous()}, adapter / ADAPTER_WEIGHTS_FILE)
    with pytest.raises(InputError, match="the adapter belongs to another model"):
        open_model(adapter, tiny_model)
    save_file(tensors | {"base_model.model.lm_head.weight": torch.zeros(2)}, adapter / ADAPTER_WEIGHTS_FILE)
    with pytest.raises(InputError, match=r"what is stored is not only LoRA of linear layers: .*lm_head"):
        open_model(adapter, tiny_model)
    (adapter / ADAPTER_WEIGHTS_FILE).write_bytes(b"\x08" + b"\0" * 20)
    with pytest.raises(InputError, match="cannot read the weights"):
        open_model(adapter, tiny_model)
    (adapter / ADAPTER_WEIGHTS_FILE).unlink()
    with pytest.raises(InputError, match="is missing"):
        open_model(adapter, tiny_model)
    (adapter / ADAPTER_CONFIG_FILE).write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match="holds a list, but must hold a mapping"):
        open_model(adapter, tiny_model)


@pytest.mark.unit
def test_a_damaged_model_leaves_nothing_behind(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:-100], whole[:60] + b"#" + whole[61:]):
        weights.write_bytes(damaged)
        with pytest.raises(InputError, match="cannot read the weights"):
            export_to(folder, tmp_path / "out")
    weights.unlink()
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(InputError, match=r"names model-00001-of-00002\.safetensors, which is not in the folder"):
        export_to(folder, tmp_path / "out")
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(InputError, match="is missing"):
        export_to(folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.unit
def test_an_index_that_leads_outside_is_refused_and_writes_nothing(tiny_model: Path, tmp_path: Path) -> None:
    folder, outside = tmp_path / "model", tmp_path / "model.safetensors"
    shutil.copytree(tiny_model, folder)
    tensors = {name: Stored(shape, torch.float32) for name, shape in open_model(folder).weights().shapes().items()}
    shutil.move(folder / "model.safetensors", outside)
    before = outside.read_bytes()
    size = sum(stored.size for stored in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict.fromkeys(tensors, str(outside))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(InputError, match="names a file outside itself"):
        open_model(folder)
    with pytest.raises(InputError, match="names a file outside itself"):  # of a model that is only described
        plan_files(tensors, folder)
    assert outside.read_bytes() == before


@pytest.mark.unit
def test_numbers_beyond_float16_are_refused_and_nothing_is_left(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = 1e6
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"model\.norm\.weight: holds 1e\+06, and float16 ends at 65504"):
        export_to(folder, tmp_path / "out", "float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    out = export_to(folder, tmp_path / "out", "bfloat16")
    assert transformers.AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16


@pytest.mark.unit
def test_a_folder_that_holds_something_is_never_overwritten(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is there already; give another folder"):
        export_to(tiny_model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.unit
def test_what_is_no_model_is_refused_with_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "weights.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"neither a model in Hugging Face format .* found weights\.gguf"):
        open_model(tmp_path)
    with pytest.raises(InputError, match=r"weights\.gguf: cannot be read"):
        open_model(tmp_path / "weights.gguf")
    with pytest.raises(InputError, match="there is no such file or folder"):
        open_model(tmp_path / "nothing")
