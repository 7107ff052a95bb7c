"""The settings and the header of an adapter in PEFT's format: one sentence for whatever is wrong with them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetuning.config.settings import RunConfig
from finetuning.errors import InputError
from finetuning.formats.peft.adapter import read_adapter
from finetuning.formats.peft.files import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, PREFIX, read_settings
from finetuning.formats.peft.sharded import check_adapter
from finetuning.formats.recognize import inspect, recognize
from finetuning.formats.stored_model import open_model
from finetuning.inference.loading import attach_adapter, load_net
from tests.references import load_peft_reference, write_random_adapter

pytestmark = pytest.mark.unit


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    write_random_adapter(tiny_model, tmp_path / "adapter", 2, 4.0, ("q_proj", "v_proj"))
    return tmp_path / "adapter"


def change(folder: Path, **changed: Any) -> None:
    file = folder / ADAPTER_CONFIG_FILE
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changed), encoding="utf-8")


WRONG = [
    ("lora_alpha", None, "lora_alpha is null, but must be a number"),
    ("lora_alpha", "8", "lora_alpha is text, but must be a number"),
    ("lora_alpha", math.nan, "lora_alpha is nan, but must be a finite number"),
    ("r", None, "r is null, but must be a whole number"),
    ("r", True, "r is true or false, but must be a whole number"),
    ("r", 0, "r is 0, but must be between 1 and 65536"),
    ("r", 10**9, "r is 1000000000, but must be between 1 and 65536"),
    ("target_modules", 3, "target_modules is a whole number, but must be text or a list or null"),
    ("base_model_name_or_path", ["a"], "base_model_name_or_path is a list, but must be text or null"),
    ("use_rslora", "yes", "use_rslora is text, but must be true or false or null"),
    ("alpha_pattern", {"q_proj": "4"}, "alpha_pattern[...] is text, but must be a number"),
    ("alpha_pattern", {"(a+)+": 4}, "alpha_pattern '(a+)+' is not understood; name the layers"),
    ("alpha_pattern", {"[": 4}, "alpha_pattern '[' is not understood; name the layers"),
]


@pytest.mark.parametrize(("name", "value", "sentence"), WRONG)
def test_a_wrong_value_is_one_sentence_with_its_key(adapter: Path, name: str, value: Any, sentence: str) -> None:
    change(adapter, **{name: value})
    for read in (read_settings, read_adapter):
        with pytest.raises(InputError) as caught:
            read(adapter)
        assert caught.value.problems == [f"{adapter / ADAPTER_CONFIG_FILE}: {sentence}"]


def test_an_adapter_without_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no adapter_config\.json"):
        read_settings(tmp_path)


def test_a_base_without_a_name_is_none(adapter: Path) -> None:
    change(adapter, base_model_name_or_path="")
    found = recognize(adapter)
    assert found.base is None and found.kind.named_base(adapter) is None


def test_an_adapter_of_codes_is_refused_by_every_reader(adapter: Path, tiny_model: Path) -> None:
    file = adapter / ADAPTER_WEIGHTS_FILE
    save_file({name: tensor.to(torch.int8) for name, tensor in load_file(str(file)).items()}, str(file))
    with pytest.raises(InputError, match=r"is stored as I8 \(8 of 8 weights are no plain numbers\)"):
        read_adapter(adapter)
    run = RunConfig(
        hf_model_id=str(tiny_model),
        dataset_path="",
        peft="lora",
        lora_rank=2,
        lora_alpha=4.0,
        lora_targets=("q_proj", "v_proj"),
    )
    with pytest.raises(InputError, match="is stored as I8"):
        check_adapter(adapter, run)


def test_inspect_says_why_an_adapter_is_refused(adapter: Path) -> None:
    assert inspect(adapter).problems == ()
    change(adapter, modules_to_save=["lm_head"])
    assert inspect(adapter).problems == (f"{adapter}: modules_to_save is ['lm_head'], which is not supported",)
    change(adapter, modules_to_save=None)
    file = adapter / ADAPTER_WEIGHTS_FILE
    save_file({name: tensor.to(torch.int8) for name, tensor in load_file(str(file)).items()}, str(file))
    (problem,) = inspect(adapter).problems
    assert "is stored as I8" in problem and "Quantized weights are not read" in problem


def test_an_adapter_that_holds_more_than_it_says_is_refused_before_the_start(adapter: Path, tiny_model: Path) -> None:
    change(adapter, target_modules=["q_proj"])
    run = RunConfig(
        hf_model_id=str(tiny_model), dataset_path="", peft="lora", lora_rank=2, lora_alpha=4.0, lora_targets=("q_proj",)
    )
    assert check_adapter(adapter, run) == [
        f"{adapter}: adapter_config.json names the layers q_proj, but adapter_model.safetensors holds q_proj,v_proj"
    ]


def test_an_adapter_of_layers_that_its_settings_leave_out_is_refused_by_every_reader(adapter: Path, tiny_model: Path) -> None:
    """PEFT would pass over them."""
    change(adapter, exclude_modules=["layers.0.self_attn.v_proj"])
    run = RunConfig(
        hf_model_id=str(tiny_model),
        dataset_path="",
        peft="lora",
        lora_rank=2,
        lora_alpha=4.0,
        lora_targets=("q_proj", "v_proj"),
    )
    said = "names no adapter of model.layers.0.self_attn.v_proj, but adapter_model.safetensors holds one"
    for read in (read_adapter, lambda folder: check_adapter(folder, run)):
        with pytest.raises(InputError, match=said):
            read(adapter)


def test_an_adapter_of_another_rank_than_its_settings_name_is_refused_by_every_reader(adapter: Path, tiny_model: Path) -> None:
    change(adapter, r=4)
    run = RunConfig(
        hf_model_id=str(tiny_model),
        dataset_path="",
        peft="lora",
        lora_rank=4,
        lora_alpha=4.0,
        lora_targets=("q_proj", "v_proj"),
    )
    for read in (read_adapter, lambda folder: check_adapter(folder, run)):
        with pytest.raises(InputError, match=r"lora_A\.weight has the shape \[2, \d+\], which is no adapter of rank 4"):
            read(adapter)


def test_an_adapter_whose_two_halves_differ_in_rank_is_refused(adapter: Path) -> None:
    change(adapter, rank_pattern={"q_proj": 1})
    file = adapter / ADAPTER_WEIGHTS_FILE
    tensors = load_file(str(file))
    name = next(name for name in tensors if "q_proj.lora_A" in name)
    save_file(tensors | {name: tensors[name][:1].contiguous()}, str(file))
    with pytest.raises(InputError, match=r"q_proj\.lora_A\.weight and its lora_B have ranks that differ"):
        read_adapter(adapter)


def test_adapters_without_the_prefix_of_peft_are_refused(adapter: Path) -> None:
    file = adapter / ADAPTER_WEIGHTS_FILE
    save_file({name.removeprefix(PREFIX): tensor for name, tensor in load_file(str(file)).items()}, str(file))
    with pytest.raises(InputError, match=r"what is stored is not only LoRA of linear layers: model\.layers"):
        read_adapter(adapter)


def test_a_head_with_an_adapter_answers_as_in_peft(tiny_model: Path, tmp_path: Path) -> None:
    write_random_adapter(tiny_model, tmp_path / "adapter", 2, 4.0, ("lm_head",))
    file = tmp_path / "adapter" / ADAPTER_WEIGHTS_FILE
    save_file({name: tensor for name, tensor in load_file(str(file)).items() if ".lora_" in name}, str(file))
    stored = open_model(tmp_path / "adapter", tiny_model)
    net = load_net(stored.base, torch.device("cpu"), torch.float32)
    assert stored.adapter is not None
    attach_adapter(net, stored.adapter)
    theirs = load_peft_reference(tiny_model, tmp_path / "adapter").merge_and_unload().state_dict()["lm_head.weight"]
    torch.testing.assert_close(net.lm_head.weight, theirs.float())
