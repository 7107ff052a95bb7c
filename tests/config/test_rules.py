"""Rules of the settings: every message, with what would work instead."""

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import pytest

from finetuning.config.llama import LlamaConfig, read_llama_config
from finetuning.config.rules import check_devices, check_layout, check_settings
from finetuning.config.settings import RunConfig

pytestmark = pytest.mark.unit


def given(**changed: Any) -> RunConfig:
    return RunConfig(hf_model_id="model", dataset_path="data", **changed)


@pytest.fixture
def model(tiny_model: Path) -> LlamaConfig:
    """4 attention heads, 2 key/value heads, 2 layers, hidden size 64."""
    return read_llama_config(tiny_model)


def test_the_defaults_keep_every_rule() -> None:
    assert check_settings(given()) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_gpus": 0}, "--num_gpus 0: must be 1 or more"),
        ({"num_nodes": -1}, "--num_nodes -1: must be 1 or more"),
        ({"max_steps": 0}, "--max_steps 0: must be 1 or more"),
        ({"global_batch_size": 0}, "--global_batch_size 0: must be 1 or more"),
        ({"keep_last": 0}, "--keep_last 0: must be 1 or more"),
        ({"lora_rank": 0, "peft": "lora"}, "--lora_rank 0: must be 1 or more"),
        (
            {"early_stopping": 2, "save_every_n_steps": 0},
            "--early_stopping keeps the weights of the best validation; --save_every_n_steps 0 keeps none, leave it out",
        ),
        (
            {"export": "best", "save_every_n_steps": 0},
            "--export best keeps the weights of the best validation; --save_every_n_steps 0 keeps none, leave it out",
        ),
        ({"warmup_steps": 3, "warmup_ratio": 0.1}, "--warmup_ratio and --warmup_steps say the same; give one of them"),
        ({"warmup_ratio": 1.0}, "--warmup_ratio 1.0: must be at least 0 and less than 1"),
        ({"lr_schedule": "constant", "min_lr": 1e-9}, "--min_lr has no effect with --lr_schedule constant"),
        ({"lora_scaling": "rslora"}, "--lora_scaling has no effect without --peft lora"),
        ({"warmup_steps": -1}, "--warmup_steps -1: must be 0 or more"),
        ({"seed": -1}, "--seed -1: must be 0 or more"),
        ({"seq_length": 1}, "--seq_length 1: must be 2 or more"),
        ({"row_length": 0}, "--row_length 0: must be 1 or more"),
        (
            {"row_length": 4096},
            "--row_length 4096: a row must hold the longest sample, --seq_length 8192; give 8192 or more, or leave it out",
        ),
        ({"lr": 0.0}, "--lr 0.0: must be greater than 0"),
        ({"lr": math.nan}, "--lr nan: must be greater than 0"),
        ({"lr": math.inf}, "--lr inf: must be finite"),
        ({"clip_grad": math.nan}, "--clip_grad nan: must be 0 or more"),
        ({"adam_beta2": 1.0}, "--adam_beta2 1.0: must be at least 0 and less than 1"),
        ({"global_batch_size": 10**12}, "--global_batch_size 1000000000000: must be 1048576 or less"),
        ({"max_steps": 10**15}, "--max_steps 1000000000000000: must be 1000000000 or less"),
        ({"seed": 2**63}, f"--seed {2**63}: must be {2**63 - 1} or less"),
        ({"lr": 5e-6, "min_lr": 1.0}, "--min_lr 1.0 is above the peak learning rate 5e-06"),
        (
            {"peft": "lora", "lora_targets": ("q_proj", "qq")},
            "--lora_targets q_proj,qq: unknown 'qq'; choose from q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj",
        ),
        ({"peft": "lora", "lora_targets": ("q_proj", "q_proj")}, "--lora_targets q_proj,q_proj: a name is given twice"),
        ({"lora_rank": 8}, "--lora_rank has no effect without --peft lora"),
        ({"log_artifacts": True}, "--log_artifacts has no effect without --mlflow_tracking_uri or --wandb_project"),
        ({"wandb_project": "x"}, "--wandb_project needs a package that is not installed: pip install wandb"),
        ({"mlflow_tracking_uri": "x"}, "--mlflow_tracking_uri needs a package that is not installed: pip install mlflow"),
        (
            {"pipeline_schedule": "interleaved"},
            "--pipeline_schedule interleaved has no effect without --pipeline_model_parallel_size 2 or more",
        ),
        (
            {"sharding": "replicated"},
            (
                "--sharding replicated keeps frozen weights whole, and without --peft lora none are frozen; for whole copies "
                "of trained weights give --data_parallel_replicate_size"
            ),
        ),
        (
            {"sharding": "full", "pipeline_model_parallel_size": 2},
            (
                "--sharding full gathers weights for each use, but a pipeline schedule gathers them once per step; give "
                "--sharding step, or replicated with --peft lora"
            ),
        ),
        ({"data_parallel_replicate_size": 0}, "--data_parallel_replicate_size 0: must be 1 or more"),
        (
            {"profile_steps": 2, "max_steps": 3},
            "--profile_steps 2 looks at steps after the first 3; give a --max_steps above 3",
        ),
        ({"least_memory": True}, "--least_memory needs --peft lora"),
        (
            {"least_memory": True, "peft": "lora", "lora_targets": ("q_proj",)},
            "--least_memory needs --lora_targets q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
        ),
        (
            {"least_memory": True, "peft": "lora", "tensor_model_parallel_size": 2},
            "--least_memory needs --tensor_model_parallel_size 1",
        ),
        (
            {"least_memory": True, "peft": "lora", "pipeline_model_parallel_size": 2},
            "--least_memory needs --pipeline_model_parallel_size 1",
        ),
        ({"least_memory": True, "peft": "lora", "context_parallel_size": 2}, "--least_memory needs --context_parallel_size 1"),
        ({"least_memory": True, "peft": "lora", "sharding": "step"}, "--least_memory needs --sharding replicated"),
        (
            {"least_memory": True, "peft": "lora", "activation_checkpointing": "full"},
            "--least_memory needs --activation_checkpointing auto",
        ),
        ({"least_memory": True, "peft": "lora", "compile": "on"}, "--least_memory needs --compile auto"),
        ({"time": "8:00:00"}, "--time has no effect without --executor slurm"),
        ({"mounts": ("/scratch",)}, "--mounts has no effect without --executor slurm"),
        ({"nemo_model": "a.nemo"}, "--nemo_model a.nemo: there is no such file or folder"),
        ({"restore_config": "/no/such"}, "--restore_config /no/such: there is no such folder"),
    ],
)
def test_a_wrong_setting_is_named_with_the_rule(changed: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert check_settings(given(**changed)) == [message]


@pytest.mark.parametrize("name", ["a/b", "..", ".", ".hidden", "-x", "", "a b", "../../etc"])
def test_an_experiment_name_that_is_no_plain_folder_name_is_refused(name: str) -> None:
    (problem,) = check_settings(given(experiment=name))
    assert problem.startswith(f"--experiment {name!r}: it names a folder; use letters, digits, '_', '-' and '.'")


@pytest.mark.parametrize("name", ["llama31_finetuning", "v1.2-b", "微調_8B"])
def test_letters_of_any_language_may_name_an_experiment(name: str) -> None:
    assert check_settings(given(experiment=name)) == []


def test_all_wrong_settings_are_listed_together() -> None:
    assert len(check_settings(given(num_gpus=0, max_steps=0, lr=-1.0, experiment="a/b", seed=-1))) == 6  # lr < min_lr as well


def test_a_tensor_degree_that_does_not_divide_the_heads_is_refused_with_those_that_do(model: LlamaConfig) -> None:
    config = given(num_gpus=8, tensor_model_parallel_size=4)
    assert check_layout(config, model) == [
        "--tensor_model_parallel_size 4: must divide 4 attention heads and 2 key/value heads; with 8 GPUs use 1, 2"
    ]


def test_more_pipeline_stages_than_layers_are_refused(model: LlamaConfig) -> None:
    config = given(num_gpus=8, pipeline_model_parallel_size=4)
    assert check_layout(config, model) == [
        "--pipeline_model_parallel_size 4 with --pipeline_schedule 1f1b makes 4 stages, but the model has only 2 layers"
    ]
    two_stages_each = given(num_gpus=8, pipeline_model_parallel_size=2, pipeline_schedule="interleaved")
    assert check_layout(two_stages_each, model) == [
        "--pipeline_model_parallel_size 2 with --pipeline_schedule interleaved makes 4 stages, but the model has only 2 layers"
    ]


def test_a_vocabulary_that_tensor_parallel_does_not_divide_is_refused(model: LlamaConfig) -> None:
    odd = dataclasses.replace(model, vocab_size=511)
    assert check_layout(given(num_gpus=8, tensor_model_parallel_size=2), odd) == [
        (f"--tensor_model_parallel_size 2: must divide the vocabulary of 511 and the MLP's {model.intermediate_size} features")
    ]


def test_copies_that_do_not_divide_data_parallel_are_refused_with_those_that_do() -> None:
    config = given(num_gpus=8, tensor_model_parallel_size=2, data_parallel_replicate_size=3, global_batch_size=8)
    assert check_layout(config, None) == ["--data_parallel_replicate_size 3: must divide data parallel 4; use 1, 2, 4"]


def test_degrees_that_do_not_divide_the_gpus_are_refused_with_the_products_that_do() -> None:
    config = given(num_nodes=2, num_gpus=6, tensor_model_parallel_size=2, pipeline_model_parallel_size=4)
    (problem,) = check_layout(config, None)
    assert problem == (
        "2 x 6 = 12 GPUs cannot be divided by tensor 2 x pipeline 4 x context 1 = 8; the product must be one of "
        "1, 2, 3, 4, 6, 12"
    )


@pytest.mark.parametrize(("batch", "nearest"), [(100, "96, 104"), (5, "8"), (9, "8, 16")])
def test_a_global_batch_that_is_no_multiple_is_refused_with_the_nearest(batch: int, nearest: str) -> None:
    config = given(num_gpus=4, micro_batch_size=2, global_batch_size=batch)
    assert check_layout(config, None) == [
        f"--global_batch_size {batch}: must be a multiple of micro_batch_size 2 x data parallel 4 = 8; nearest: {nearest}"
    ]


def test_adapters_wider_than_the_model_are_refused(model: LlamaConfig) -> None:
    config = given(peft="lora", lora_rank=65)
    assert check_layout(config, model) == ["--lora_rank 65: must be at most the model's hidden size, 64"]


def test_sizes_out_of_range_are_left_to_the_check_of_the_settings(model: LlamaConfig) -> None:
    for changed in ({"num_gpus": 0}, {"num_gpus": 10**12}, {"tensor_model_parallel_size": -1}):
        assert check_layout(given(**changed), model) == []
        assert any(name in check_settings(given(**changed))[0] for name in changed)


def test_a_layout_that_fits_is_accepted(model: LlamaConfig) -> None:
    config = given(num_gpus=8, tensor_model_parallel_size=2, pipeline_model_parallel_size=2, global_batch_size=128)
    assert check_layout(config, model) == []


def test_more_processes_than_gpus_are_refused_with_what_this_machine_has() -> None:
    (problem,) = check_devices(given(num_gpus=8), visible_gpus=1)
    assert problem == (
        "--num_gpus 8: this machine has 1; give --num_gpus 1 (and a --global_batch_size that is a multiple of "
        "micro_batch_size x 1)"
    )
    assert check_devices(given(num_gpus=8), visible_gpus=8) == []


def test_without_gpus_the_default_of_eight_processes_is_accepted_and_a_slip_of_the_keyboard_is_not() -> None:
    assert check_devices(given(num_gpus=8), visible_gpus=0) == []
    cores, limit = os.cpu_count(), max(8, 4 * (os.cpu_count() or 1))
    (problem,) = check_devices(given(num_gpus=limit + 1), visible_gpus=0)
    assert problem == (
        f"--num_gpus {limit + 1}: without a GPU it counts CPU processes, and this machine has {cores} cores; give {limit} or "
        "less"
    )


def test_a_job_elsewhere_is_not_measured_against_this_machine() -> None:
    assert check_devices(given(executor="slurm", num_gpus=8), visible_gpus=1) == []
