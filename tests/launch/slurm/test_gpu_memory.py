"""How much memory the GPUs of a cluster have: given, measured, by name, or asked for."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from finetuning.config.rules import check_settings
from finetuning.config.settings import RunConfig
from finetuning.errors import InputError
from finetuning.launch.gpus import GpuMemory
from finetuning.launch.slurm.cluster import Cluster, Partition, gpu_types, parse_partitions
from finetuning.launch.slurm.gpu_memory import MEASURED_FILE, memory_of_type, record_measured
from finetuning.launch.slurm.job_script import JobPlan, plan_job

pytestmark = pytest.mark.unit

PARTITION = Partition("gpu", is_default=True, is_up=True, num_nodes=2, gpus_per_node=8, cpus_per_node=64, time_limit="1-0")


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("h200", 139),
        ("H100", 79),
        ("nvidia_h100_80gb_hbm3", 80),
        ("nvidia_a100-sxm4-40gb", 40),
        ("a100-80", 80),
        ("a100_80g", 80),
        ("a100_1g.5gb", 5),
        ("nvidia_h100_80gb_hbm3_1g.10gb", 10),
        ("tesla_v100-32gb", 32),
        ("l40s", 44),
        ("nvidia_rtx_a6000", 47),
        ("a100", None),
        ("v100", None),
        ("gh200", None),
        ("", None),
        ("gtx_1080", None),
    ],
)
def test_the_size_is_read_from_the_name_where_the_name_says_it(name: str, gib: float | None) -> None:
    assert memory_of_type(name) == gib


def test_the_names_are_those_of_the_generic_resources() -> None:
    assert gpu_types("gpu:h100:4(S:0-1),gpu:a100:4,nvme:1") == ("h100", "a100")
    assert gpu_types("gpu:8") == ("",)
    assert gpu_types("(null)") == ()
    (partition,) = parse_partitions("p*|up|2|gpu:h200:8(S:0-1)|64|1-0\np*|up|1|gpu:h100:8|64|1-0\np*|up|1|gpu:h200:4|64|1-0\n")
    assert partition.gpu_types == ("h200", "h100")


def test_the_flag_comes_first_then_what_was_measured_then_the_name(tmp_path: Path) -> None:
    assert plan(tmp_path, ("h200",)).gpu_memory == GpuMemory(139, "Slurm's name of the GPUs: h200", "h200")
    assert plan(tmp_path, ("h200", "h100")).gpu_memory == GpuMemory(79, "Slurm's name of the GPUs: h200, h100")
    asked = plan(tmp_path, ("h200", "h100", ""), sbatch_options="--gres=gpu:h200:4")
    assert asked.gpu_memory == GpuMemory(139, "Slurm's name of the GPUs: h200", "h200")
    record_measured(tmp_path, "other", 39.6, "NVIDIA A100")
    record_measured(tmp_path, "gpu", 93.1, "NVIDIA H100 NVL")
    measured = plan(tmp_path, ("h100",)).gpu_memory
    assert measured is not None and measured.source is not None
    assert measured.gib == 93.1
    assert measured.source.startswith("NVIDIA H100 NVL, measured by finetune doctor --slurm on 20")
    assert plan(tmp_path, ("h100",), gpu_memory_gib=141.0).gpu_memory == GpuMemory(141.0, "--gpu_memory_gib")


@pytest.mark.parametrize(
    ("types", "named"), [(("",), "gpu"), (("a100",), "a100"), (("h100", ""), "h100, gpu"), ((), "nothing")]
)
def test_what_nobody_says_is_asked_for_and_not_guessed(types: tuple[str, ...], named: str, tmp_path: Path) -> None:
    found = plan(tmp_path, types)
    assert found.gpu_memory is None
    assert found.problems == [], "the doctor's own job has no problem with it"
    assert found.unknown_memory == (
        "--gpu_memory_gib is needed: Slurm does not say how much memory the GPUs of partition gpu have (it calls them "
        f"{named}). Give it, as in --gpu_memory_gib 80, or let finetune doctor --slurm -p gpu measure it"
    )


def test_processes_on_cpus_need_no_size_and_take_none(tmp_path: Path) -> None:
    found = plan(tmp_path, ("",), gpu_request="none")
    assert (found.gpu_memory, found.unknown_memory, found.problems) == (None, None, [])
    found = plan(tmp_path, ("h100",), gpu_request="none", gpu_memory_gib=80.0)
    assert found.problems == ["--gpu_memory_gib has no effect: the processes run on CPUs"]


def test_a_size_that_is_none_is_refused() -> None:
    config = RunConfig(hf_model_id="m", dataset_path="d", executor="slurm", gpu_memory_gib=0.0)
    assert check_settings(config) == ["--gpu_memory_gib 0.0: must be greater than 0"]
    megabytes = dataclasses.replace(config, gpu_memory_gib=81559.0)
    assert check_settings(megabytes) == ["--gpu_memory_gib 81559.0: must be 1024 or less"]


def test_a_damaged_measurement_is_named(tmp_path: Path) -> None:
    (tmp_path / MEASURED_FILE).write_text('{"gpu": {"gib": "many"}}', encoding="utf-8")
    with pytest.raises(InputError, match=r"\.gpu_memory\.json: .* is missing|gib is text, but must be a number"):
        plan(tmp_path, ("h100",))


def plan(folder: Path, types: tuple[str, ...], **changed: Any) -> JobPlan:
    settings = {"partition": "gpu", "executor": "slurm", "container_image": "none", "experiments_dir": str(folder), **changed}
    partition = dataclasses.replace(PARTITION, gpu_types=types)
    cluster = Cluster((partition,), None, {"SelectType": "select/cons_tres"}, has_pyxis=False, apptainer=None)
    return plan_job(RunConfig(hf_model_id="m", dataset_path="d", **settings), cluster)
