"""rsLoRA: what a run with --lora_scaling rslora computes and exports is what PEFT computes with use_rslora."""

import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from finetuning.config.llama import read_llama_config
from finetuning.config.resolve import make_strategy
from finetuning.config.settings import RunConfig
from finetuning.formats.peft.sharded import adapter_settings, check_adapter
from finetuning.formats.peft.write import export_adapters
from finetuning.model.lora import is_adapter
from finetuning.parallel.weights import fill
from tests.closeness import assert_near
from tests.models import build, whole_logits
from tests.processes import run_processes
from tests.references import load_reference

pytestmark = pytest.mark.dist

TOKENS = torch.arange(3, 35)


def config_of(model_folder: Path) -> RunConfig:
    return RunConfig(
        hf_model_id=str(model_folder), dataset_path="d", num_gpus=1, peft="lora", lora_rank=4, lora_scaling="rslora"
    )


def export_run(model_folder: Path, target: Path) -> Tensor:
    config = config_of(model_folder)
    strategy = make_strategy(config, read_llama_config(model_folder), "full", "fp32", "none", 64, on_gpu=False)
    model = build(model_folder, strategy)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            view = model.view(name, parameter.data)
            fill(view, torch.randn(view.shape, generator=generator) * 0.05)
    export_adapters(model, target, config, model_folder, None)
    with torch.no_grad():
        return whole_logits(model, TOKENS)


@pytest.fixture(scope="module")
def exported(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    target = tmp_path_factory.mktemp("rslora") / "export"
    (logits,) = run_processes(1, export_run, tiny_model, target)
    return target, logits


def test_a_rank_stabilized_run_is_read_by_peft_with_the_same_scale(tiny_model: Path, exported: tuple[Path, Tensor]) -> None:
    folder, ours = exported
    settings = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    assert (settings["r"], settings["lora_alpha"], settings["use_rslora"]) == (4, 8.0, True)
    loaded = peft.PeftModel.from_pretrained(load_reference(tiny_model), folder)
    assert {layer.scaling["default"] for layer in loaded.modules() if isinstance(layer, LoraLayer)} == {8.0 / 2}
    with torch.no_grad():
        theirs = loaded(input_ids=TOKENS[None]).logits[0]
    assert_near(ours.double(), theirs, "logits")


def test_a_rank_stabilized_adapter_goes_on_as_one(tiny_model: Path, exported: tuple[Path, Tensor]) -> None:
    folder, _ = exported
    found = adapter_settings(folder)
    assert (found["lora_rank"], found["lora_alpha"], found["lora_scaling"]) == (4, 8.0, "rslora")
    config = config_of(tiny_model)
    assert check_adapter(folder, config) == []
    (problem,) = check_adapter(folder, replace(config, lora_scaling="standard", lora_alpha=8.0))
    assert "the adapter has --lora_scaling rslora, but the run asks for standard; give the same" in problem
