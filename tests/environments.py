"""Runs programs in an environment that seems to have only some of the installed packages."""

import functools
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 240

# Python imports a module of this name at its start. Neither modules nor descriptions of hidden packages are found.
SITE = """
import os, re, sys
from importlib.machinery import PathFinder

modules, packages = (set(os.environ[name].split(",")) for name in ("HIDDEN_MODULES", "HIDDEN_PACKAGES"))


class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in modules else super().find_spec(name, path, target)

    @staticmethod
    def find_distributions(*arguments, **named):
        found = PathFinder.find_distributions(*arguments, **named)
        return (item for item in found if re.sub("[-_.]+", "-", item.metadata["Name"]).lower() not in packages)


sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""


def run_without(
    packages: set[str], folder: Path, *arguments: str, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs Python with `arguments` in `folder`, where `packages` (normalized names) cannot be found."""
    hidden = {
        name for name, owners in _owners_of_modules().items() if all(canonicalize_name(owner) in packages for owner in owners)
    }
    site = folder / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(SITE)
    search = [str(item) for item in (path, site, ROOT) if item is not None]
    environment = os.environ | {
        "HIDDEN_MODULES": ",".join(hidden),
        "HIDDEN_PACKAGES": ",".join(packages),
        "PYTHONPATH": os.pathsep.join(search),
        "OMP_NUM_THREADS": "1",
        "LC_ALL": "C.UTF-8",
        "COLUMNS": "200",
    }
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@functools.cache
def _owners_of_modules() -> dict[str, list[str]]:
    """Top-level module -> packages that install it; every installed file is looked at."""
    return dict(metadata.packages_distributions())


def all_but(requirements: list[str]) -> set[str]:
    """Every installed package but those that `requirements` ask for, and what these need."""
    kept = {"llama-finetuning"}
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in kept or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        kept.add(name)
        extras = {f'extra == "{extra}"' for extra in requirement.extras}
        for text in metadata.requires(name) or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}) or _is_of(needed, extras):
                waiting.append(Requirement(re.sub(";.*", "", text)))
    return {canonicalize_name(item.metadata["Name"]) for item in metadata.distributions()} - kept


def _is_of(requirement: Requirement, extras: set[str]) -> bool:
    return str(requirement.marker) in extras
