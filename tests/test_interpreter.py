"""What happens where this Python cannot run the package: one sentence with two ways out, before anything else."""

import ast
import shutil
import subprocess
from pathlib import Path

import pytest

from finetuning import interpreter
from finetuning.errors import EXIT_BAD_INPUT
from finetuning.i18n import set_language
from tests.environments import ROOT, run_without

pytestmark = pytest.mark.unit

ENTRIES = [["finetune.py"], ["finetuning/finetuning.py"], ["-m", "finetuning"], ["-m", "finetuning.launch.slurm"]]
READ_BY_OLD_PYTHONS = [
    "finetune.py",
    *(
        f"finetuning/{name}.py"
        for name in ("__init__", "__main__", "errors", "finetuning", "i18n", "interpreter", "launch/slurm/__main__")
    ),
]
# With Python 3.8 itself, where a machine has it, test_old_pythons_say_so_themselves looks as well.
IN_PYTHON_3_8 = {
    "__future__.annotations",
    "collections.abc.Sequence",
    "functools.lru_cache",
    "importlib.util",
    "json",
    "os",
    "pathlib.Path",
    "re",
    "string",
    "sys",
    "typing.Any",
}


def whole(entry: list[str]) -> list[str]:
    return [str(ROOT / part) if part.endswith(".py") else part for part in entry]


@pytest.mark.dist  # starts processes
@pytest.mark.parametrize("entry", ENTRIES, ids=" ".join)
def test_missing_packages_are_named_with_two_ways_to_get_them(entry: list[str], tmp_path: Path) -> None:
    done = run_without({"pyyaml", "msgspec"}, tmp_path, *whole(entry), "--num_gpus", "1")
    assert (done.returncode, done.stdout) == (EXIT_BAD_INPUT, "")
    (line,) = done.stderr.splitlines()
    assert "lacks PyYAML, msgspec: run `make venv`" in line and "-m pip install .`" in line


@pytest.mark.dist  # starts processes
@pytest.mark.parametrize("entry", ENTRIES[:3], ids=" ".join)
def test_a_torch_that_is_too_old_is_named_with_two_ways_to_a_newer_one(entry: list[str], tmp_path: Path) -> None:
    described = tmp_path / "old" / "torch-2.10.1+cpu.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.10.1+cpu\n")
    done = run_without(set(), tmp_path, *whole(entry), "--num_gpus", "1", path=tmp_path / "old")
    assert (done.returncode, done.stdout) == (EXIT_BAD_INPUT, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("torch 2.11 or newer is needed, and ") and "has 2.10: run `make venv`" in line


def test_a_python_that_is_too_old_is_named_with_two_ways_to_a_newer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "OLDEST_PYTHON", (4, 0))
    problem = interpreter.find_problem()
    assert problem.startswith("Python 4.0 or newer is needed, and ")
    assert "make venv PYTHON=python3.12" in problem and "pip install ." in problem
    set_language("zh-TW")
    assert interpreter.find_problem().startswith("需要 Python 4.0 以上")


def test_here_nothing_is_missing() -> None:
    assert interpreter.find_problem() == ""


@pytest.mark.parametrize("file", READ_BY_OLD_PYTHONS)
def test_python_3_8_can_read_what_is_read_before_its_version_is_looked_at(file: str) -> None:
    ast.parse((ROOT / file).read_text(encoding="utf-8"), feature_version=(3, 8))


@pytest.mark.parametrize("file", READ_BY_OLD_PYTHONS)
def test_nothing_is_imported_that_python_3_8_lacks(file: str) -> None:
    imported = set()
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.module.startswith("finetuning"):
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert imported <= IN_PYTHON_3_8


@pytest.mark.dist  # starts processes
def test_old_pythons_say_so_themselves() -> None:
    found = [python for python in map(shutil.which, ("python3.8", "python3.9", "python3.10")) if python and runs(python)]
    if not found:
        pytest.skip("there is no Python 3.8, 3.9 or 3.10 here")
    for command in ([python, *entry] for python in found for entry in ENTRIES):
        done = subprocess.run(command, cwd=ROOT, env={"LC_ALL": "C"}, capture_output=True, text=True, check=False)
        (line,) = done.stderr.splitlines()
        assert done.returncode == EXIT_BAD_INPUT and line.startswith("Python 3.11 or newer is needed"), command


def runs(python: str) -> bool:
    return subprocess.run([python, "--version"], capture_output=True, check=False).returncode == 0
