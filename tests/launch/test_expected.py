"""What a run is expected to take, and what it took, side by side."""

import json
from pathlib import Path

import pytest

from finetuning.cli.plan_screens import beside_words
from finetuning.config.resolve import resolve
from finetuning.config.settings import CHOSEN_LATER, RunConfig
from finetuning.launch.expected import (
    EXPECTED_FILE,
    Expected,
    Outlook,
    Used,
    as_dict,
    expected_and_used,
    look_ahead,
    with_degrees,
    write_expected,
)
from finetuning.launch.gpus import GpuMemory
from finetuning.plan.known_models import known_model
from finetuning.plan.workload import Workload
from finetuning.training.metrics import COLUMNS, MetricsFile

pytestmark = pytest.mark.unit

LLAMA_8B = known_model("meta-llama/Llama-3.1-8B")
WORK = Workload(samples=256, tokens=260, squared=514, target_share=0.8)
H200 = GpuMemory(139.8, name="NVIDIA H200")


def outlook(gpu: GpuMemory | None, **flags: object) -> Outlook | None:
    config = RunConfig(hf_model_id="m", dataset_path="d", global_batch_size=256, **({"num_gpus": 2} | flags))
    strategy = resolve(config, LLAMA_8B, gpu.gib if gpu else None, on_gpu=gpu is not None)
    return look_ahead(config, LLAMA_8B, strategy, gpu, WORK)


def metrics(folder: Path, steps: int) -> None:
    file = MetricsFile(folder / "metrics.csv", 0)
    for step in range(1, steps + 1):
        row = dict.fromkeys(COLUMNS, 0.0) | {"step": step, "memory_gib": 40.0 + step, "seconds": 9.0 if step < 4 else 2.0}
        file.append(row | {"tokens_per_second": 1000.0 if step < 4 else 5000.0})


def test_of_processes_on_cpus_nothing_is_said() -> None:
    assert outlook(None) is None


def test_of_a_gpu_that_is_not_in_the_table_only_memory_is_said() -> None:
    found = outlook(GpuMemory(139.8, name="Somebody's GPU"))
    assert found is not None
    assert found.expected.memory_gib > 60
    assert (found.expected.step_s, found.expected.tokens_per_second, found.faster) == (None, None, None)


def test_of_a_known_gpu_the_time_is_said_and_a_faster_layout() -> None:
    found, best = outlook(H200, tensor_model_parallel_size=2), outlook(H200)
    assert found is not None and best is not None and found.faster is not None
    assert best.faster is None
    assert found.expected.tokens_per_second == pytest.approx(256 * 260 / found.expected.step_s)
    assert found.expected.measured_rates


def test_plan_and_reality_stand_side_by_side_after_the_steps_that_compile(tmp_path: Path) -> None:
    expected = Expected(memory_gib=44.0, step_s=1.9, tokens_per_second=5200.0, measured_rates=True)
    (tmp_path / EXPECTED_FILE).write_text(json.dumps({"memory_gib": 44.0, "step_s": 1.9, "tokens_per_second": 5200.0}))
    metrics(tmp_path, 3)
    assert expected_and_used(tmp_path) is None
    metrics(tmp_path, 6)
    both = expected_and_used(tmp_path)
    assert both is not None
    assert both[1] == Used(memory_gib=46.0, step_s=2.0, tokens_per_second=5000.0)
    assert beside_words(expected, both[1]) == (
        "memory 46.0 GiB, 44.0 planned · 2.00 s a step, 1.90 planned · 5,000 tokens/s, 5,200 planned"
    )
    assert as_dict(*both)["used"] == {"memory_gib": 46.0, "step_s": 2.0, "tokens_per_second": 5000.0}
    assert beside_words(Expected(44.0), both[1]).endswith(
        "2.00 s a step, not known planned · 5,000 tokens/s, not known planned"
    )


@pytest.mark.parametrize("text", [None, "{", '{"memory_gib": "much"}'], ids=["none", "damaged", "of somebody else"])
def test_without_a_plan_there_is_nothing_to_compare(text: str | None, tmp_path: Path) -> None:
    metrics(tmp_path, 6)
    if text is not None:
        (tmp_path / EXPECTED_FILE).write_text(text)
    assert expected_and_used(tmp_path) is None


def test_the_plan_is_kept_in_the_experiment(tmp_path: Path) -> None:
    write_expected(tmp_path, None)
    assert not list(tmp_path.iterdir())
    found = outlook(H200)
    assert found is not None
    write_expected(tmp_path, found)
    metrics(tmp_path, 6)
    both = expected_and_used(tmp_path)
    assert both is not None and both[0] == found.expected


@pytest.mark.parametrize(("gpu", "expected"), [(None, 1), (H200, 1), (GpuMemory(20.0, name="NVIDIA H200"), 8)], ids=str)
def test_a_degree_that_was_left_is_chosen_for_the_gpus_that_there_are(gpu: GpuMemory | None, expected: int) -> None:
    config = RunConfig(
        hf_model_id="m",
        dataset_path="d",
        num_gpus=8,
        global_batch_size=256,
        tensor_model_parallel_size=CHOSEN_LATER,
        activation_checkpointing="none",
    )
    assert with_degrees(config, LLAMA_8B, gpu, WORK).tensor_model_parallel_size == expected
