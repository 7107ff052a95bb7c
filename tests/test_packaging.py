"""What pyproject.toml asks for, and the versions that constraints.txt gives."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
NOT_PINNED = {"fa4"}  # no machine without a Hopper GPU could try the versions


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, version in pairs}


@pytest.mark.parametrize("extra", [None, *sorted(EXTRAS.keys() - NOT_PINNED)])
def test_everything_that_is_asked_for_has_a_version_that_fits(extra: str | None) -> None:
    found = pins()
    for requirement in map(Requirement, EXTRAS[extra] if extra else PROJECT["dependencies"]):
        version = found.get(canonicalize_name(requirement.name))
        assert version is not None, f"constraints.txt has no {requirement.name}"
        assert version in requirement.specifier, f"{requirement} is not {version}"


def test_all_extras_are_resolved_together() -> None:
    (asked,) = re.findall(r"pip install --quiet --dry-run .*'\.\[(.*)\]'", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert set(asked.split(",")) == EXTRAS.keys()


def test_constraints_are_sorted_and_name_each_package_once() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    names = [line.split("==")[0].lower() for line in lines if not line.startswith("#")]
    assert len(names) == len(set(names)) and names == sorted(names)
