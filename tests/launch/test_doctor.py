"""What the doctor finds on this machine; on nodes of a cluster, see tests/slurm."""

import dataclasses
import importlib.metadata
from pathlib import Path

import pytest

from finetuning.cli.doctor import _show as show
from finetuning.launch.doctor import (
    BAD,
    GOOD,
    NOTE,
    check_folder,
    check_limits,
    check_network,
    check_versions,
    describe_cluster,
)
from finetuning.launch.slurm.cluster import Cluster, Partition

pytestmark = pytest.mark.unit

CLUSTER = Cluster(
    (Partition("defq", is_default=True, is_up=True, num_nodes=4, gpus_per_node=8, cpus_per_node=64, time_limit="1-00:00:00"),),
    ("lab",),
    {"SLURM_VERSION": "24.05.1", "ClusterName": "c"},
    has_pyxis=True,
    apptainer="apptainer",
)


def test_the_versions_here_are_good_enough() -> None:
    found = list(check_versions())
    assert {finding.level for finding in found} == {GOOD}
    assert [finding.subject for finding in found] == [
        "Python",
        "torch",
        "lightning",
        "transformers",
        "tokenizers",
        "safetensors",
    ]


def test_an_old_or_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == "lightning":
            raise importlib.metadata.PackageNotFoundError
        return "2.5.1+cu124"

    monkeypatch.setattr(importlib.metadata, "version", version)
    bad = {finding.subject: finding for finding in check_versions() if finding.level == BAD}
    assert (bad["torch"].text, bad["torch"].advice) == ("2.5.1+cu124", "pip install 'torch>=2.11'")
    assert (bad["lightning"].text, bad["lightning"].advice) == ("not installed", "pip install 'lightning>=2.6'")


def test_the_folder_s_space_speed_and_file_system_are_measured_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    space, speed = check_folder(tmp_path / "experiments" / "of a project")
    assert space.text.endswith(" GiB free")
    assert "writes " in speed.text and " MiB/s · " in speed.text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_bad() -> None:
    last = list(check_folder(Path("/proc/experiments")))[-1]
    assert last.level == BAD
    assert last.text.startswith("cannot be written: ")
    assert last.advice == "give another --experiments_dir"


def test_this_machine_and_its_address_are_described() -> None:
    assert any(" cores, " in finding.text for finding in check_limits())
    assert len(list(check_network())) == 1


def test_a_cluster_is_described_with_what_a_job_needs_to_know() -> None:
    texts = [finding.text for finding in describe_cluster(CLUSTER)]
    assert texts == [
        "24.05.1 · c",
        "partition defq: 4 nodes x 8 GPUs, 64 CPUs, time limit 1-00:00:00 · the default",
        "your accounts: lab",
        "Pyxis, apptainer",
    ]
    bare = dataclasses.replace(CLUSTER, accounts=None, has_pyxis=False, apptainer=None)
    found = {finding.text: finding for finding in describe_cluster(bare)}
    assert "keeps no accounts: --account is left out" in found
    assert found["neither Pyxis nor Apptainer here"].level == NOTE


def test_findings_are_one_line_each_with_the_advice_below(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    levels = show(Console(soft_wrap=True, highlight=False), check_folder(Path("/proc/experiments")))
    assert BAD in levels
    assert capsys.readouterr().out.splitlines()[-1] == " " * 19 + "→ give another --experiments_dir"
