"""What pyproject.toml asks for, and the versions that constraints.txt gives."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from finetuning.interpreter import OLDEST_PYTHON, OLDEST_TORCH, PACKAGES
from tests.environments import all_but, run_without

ROOT = Path(__file__).parents[1]
# What only some inputs need, where data are read and answers are scored; finetuning/on_demand.py says what is missing.
ON_DEMAND = {"pyarrow", "zstandard", "torchmetrics", "sacrebleu"}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, SETUPTOOLS = PYPROJECT["project"], PYPROJECT["tool"]["setuptools"]
EXTRAS = PROJECT["optional-dependencies"]
NOT_PINNED = {"fa4"}  # no machine without a Hopper GPU could try the versions


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, version in pairs}


@pytest.mark.unit
@pytest.mark.parametrize("extra", [None, *sorted(EXTRAS.keys() - NOT_PINNED)])
def test_everything_that_is_asked_for_has_a_version_that_fits(extra: str | None) -> None:
    found = pins()
    for requirement in map(Requirement, EXTRAS[extra] if extra else PROJECT["dependencies"]):
        version = found.get(canonicalize_name(requirement.name))
        assert version is not None, f"constraints.txt has no {requirement.name}"
        assert version in requirement.specifier, f"{requirement} is not {version}"


@pytest.mark.unit
def test_every_file_of_the_package_is_installed() -> None:
    package = ROOT / "finetuning"
    listed = {file for pattern in SETUPTOOLS["package-data"]["finetuning"] for file in package.glob(pattern)}
    there = {file for file in package.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")}
    assert there == listed


@pytest.mark.unit
def test_all_extras_are_resolved_together() -> None:
    (asked,) = re.findall(r"pip install --quiet --dry-run .*'\.\[(.*)\]'", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert set(asked.split(",")) == EXTRAS.keys()


@pytest.mark.unit
def test_constraints_are_sorted_and_name_each_package_once() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    names = [line.split("==")[0].lower() for line in lines if not line.startswith("#")]
    assert len(names) == len(set(names)) and names == sorted(names)


@pytest.mark.unit
def test_the_first_look_asks_for_every_package_that_every_input_needs() -> None:
    needed = {Requirement(text).name for text in PROJECT["dependencies"]}
    assert set(PACKAGES.values()) == needed - ON_DEMAND
    assert Version(".".join(map(str, OLDEST_PYTHON))) in SpecifierSet(PROJECT["requires-python"])
    (torch,) = (Requirement(text) for text in PROJECT["dependencies"] if Requirement(text).name == "torch")
    assert str(torch.specifier) == ">=" + ".".join(map(str, OLDEST_TORCH))


def recipe(document: str) -> list[str]:
    """The packages that the Dockerfile of a document installs upon an image with torch."""
    (block,) = re.findall(r"```dockerfile\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)
    return re.findall(r'"([^"]+)"', block)


@pytest.mark.unit
@pytest.mark.parametrize("document", ["docs/slurm.md", "docs/slurm.zh-TW.md"])
def test_the_recipe_for_a_container_is_what_pyproject_asks_for(document: str) -> None:
    wanted = [text for text in PROJECT["dependencies"] if Requirement(text).name not in {"torch", *ON_DEMAND}]
    assert recipe(document) == wanted


@pytest.mark.dist
def test_with_torch_and_what_the_recipe_installs_a_run_trains_and_exports(
    tiny_model: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    hidden = all_but(["torch", *recipe("docs/slurm.md")])
    assert {"zstandard", "pyarrow", "sacrebleu", "peft", "pytest"} <= hidden
    done = run_without(
        hidden,
        tmp_path,
        str(ROOT / "finetune.py"),
        "--hf_model_id",
        str(tiny_model),
        "--dataset_path",
        str(tiny_dataset),
        "--num_gpus",
        "1",
        "--max_steps",
        "2",
        "--global_batch_size",
        "2",
        "--seq_length",
        "256",
        "--peft",
        "lora",
        "--num_sample_answers",
        "1",
        "--max_new_tokens",
        "2",
        "--experiment",
        "recipe",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "experiments" / "recipe" / "export" / "adapter_model.safetensors").is_file()
