"""LoRA adapters in and out in PEFT's format, against PEFT itself."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from torch import Tensor

from finetuning.config.settings import LORA_TARGETS, RunConfig
from finetuning.config.strategy import Strategy
from finetuning.errors import InputError
from finetuning.formats.peft.files import ADAPTER_CONFIG_FILE
from finetuning.formats.peft.sharded import check_adapter
from finetuning.formats.peft.write import export_adapters
from finetuning.model.lora import initial_adapter
from tests.closeness import assert_near
from tests.models import build, whole_logits, whole_parameters
from tests.processes import run_processes
from tests.references import load_peft_reference, write_random_adapter

TOKENS = torch.from_numpy(np.random.default_rng(2).integers(0, 512, 40))
TARGETS = ("q_proj", "v_proj", "down_proj")
RANK, ALPHA = 3, 12.0
TECHNIQUE = Strategy(lora_rank=RANK, lora_alpha=ALPHA, lora_targets=TARGETS)


def config(model_folder: Path) -> RunConfig:
    return RunConfig(
        hf_model_id=str(model_folder), dataset_path="", peft="lora", lora_rank=RANK, lora_alpha=ALPHA, lora_targets=TARGETS
    )


def logits_and_weights(model_folder: Path, adapter: Path | None, export: Path | None) -> tuple[Tensor, dict[str, Tensor]]:
    model = build(model_folder, TECHNIQUE, adapter)
    if export is not None:
        export_adapters(model, export, config(model_folder), model_folder, None)
    return whole_logits(model, TOKENS), {name: value for name, value in whole_parameters(model).items() if ".lora_" in name}


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "of-peft"
    write_random_adapter(tiny_model, folder, RANK, ALPHA, TARGETS)
    return folder


@pytest.mark.dist
@pytest.mark.parametrize("world_size", [1, 2])
def test_an_adapter_of_peft_gives_peft_s_logits(tiny_model: Path, adapter: Path, world_size: int) -> None:
    ours, _ = run_processes(world_size, logits_and_weights, tiny_model, adapter, None)[0]
    with torch.no_grad():
        theirs = load_peft_reference(tiny_model, adapter).eval()(input_ids=TOKENS[None]).logits[0]
    assert_near(ours, theirs)


@pytest.mark.dist
def test_peft_loads_our_export_with_the_same_logits(
    tiny_model: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = tmp_path / "export"
    ours, weights = run_processes(2, logits_and_weights, tiny_model, adapter, export)[0]
    monkeypatch.chdir(tmp_path)  # from any folder
    model = peft.AutoPeftModelForCausalLM.from_pretrained(export, dtype=torch.float64).eval()
    with torch.no_grad():
        theirs = model(input_ids=TOKENS[None]).logits[0]
    assert_near(ours, theirs)
    loaded = peft.get_peft_model_state_dict(model)
    assert {name.removeprefix("base_model.model.") for name in loaded} == weights.keys()
    assert all(torch.equal(loaded[f"base_model.model.{name}"].float(), value) for name, value in weights.items())
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (export / name).read_bytes() == (tiny_model / name).read_bytes()


@pytest.mark.dist
def test_a_local_base_model_is_found_from_any_folder(tiny_model: Path, adapter: Path, tmp_path: Path) -> None:
    export = tmp_path / "export"
    run_processes(1, export_from_relative_path, tiny_model, adapter, export)
    assert json.loads((export / ADAPTER_CONFIG_FILE).read_text(encoding="utf-8"))["base_model_name_or_path"] == str(tiny_model)


def export_from_relative_path(model_folder: Path, adapter: Path, export: Path) -> None:
    os.chdir(model_folder.parent)
    model = build(model_folder, TECHNIQUE, adapter)
    settings = replace(config(model_folder), hf_model_id=model_folder.name)
    export_adapters(model, export, settings, model_folder, None)


@pytest.mark.dist
@pytest.mark.parametrize("world_size", [1, 4])
def test_the_start_is_the_same_in_every_layout(tiny_model: Path, world_size: int) -> None:
    _, weights = run_processes(world_size, logits_and_weights, tiny_model, None, None)[0]
    assert len(weights) == 2 * 2 * len(TARGETS)
    for name, value in weights.items():
        assert torch.equal(value, initial_adapter(name, value.shape, seed=1234))


@pytest.mark.dist
def test_a_missing_tensor_is_named(tiny_model: Path, tmp_path: Path) -> None:
    write_random_adapter(tiny_model, tmp_path, RANK, ALPHA, ("q_proj",))
    run_processes(1, loading_names_the_missing_adapter, tiny_model, tmp_path)


def loading_names_the_missing_adapter(model_folder: Path, adapter: Path) -> None:
    with pytest.raises(InputError, match=r"holds no adapter model\.layers\.0\.self_attn\.v_proj\.lora_A\.weight"):
        build(model_folder, TECHNIQUE, adapter)


@pytest.mark.unit
def test_an_adapter_that_fits_the_run_has_no_problems(tiny_model: Path, adapter: Path) -> None:
    assert check_adapter(adapter, config(tiny_model)) == []


@pytest.mark.unit
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"use_dora": True}, "use_dora is True; only False is supported"),
        ({"bias": "all"}, "bias is 'all'; only 'none' is supported"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern is {'q_proj': 8}; only {} is supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head'], which is not supported"),
        ({"lora_bias": True}, "lora_bias is True, which is not supported"),
        ({"init_lora_weights": "pissa"}, "which changes the base weights as well"),
        ({"r": 8}, "the adapter has --lora_rank 8, but the run asks for 3; give the same, or leave it out"),
        ({"lora_alpha": 6}, "the adapter has --lora_alpha 6.0, but the run asks for 12.0"),
        (
            {"target_modules": ["q_proj"]},
            "the adapter has --lora_targets q_proj, but the run asks for q_proj,v_proj,down_proj",
        ),
    ],
)
def test_an_adapter_that_computes_something_else_is_refused(
    tiny_model: Path, adapter: Path, tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    settings = json.loads((adapter / ADAPTER_CONFIG_FILE).read_text(encoding="utf-8")) | changed
    (tmp_path / ADAPTER_CONFIG_FILE).write_text(json.dumps(settings), encoding="utf-8")
    problems = check_adapter(tmp_path, config(tiny_model))
    assert len(problems) == 1 and message in problems[0] and str(tmp_path) in problems[0]


@pytest.mark.unit
def test_all_seven_linears_are_the_default_targets() -> None:
    assert RunConfig(hf_model_id="m", dataset_path="d").lora_targets == LORA_TARGETS
