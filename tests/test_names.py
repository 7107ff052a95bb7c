"""What scripts beside the package import from it is there: nothing else runs all of them, and modules move."""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(file for folder in ("benchmarks", "examples", "tools") for file in (ROOT / folder).rglob("*.py"))


@pytest.mark.unit
def test_scripts_import_what_the_package_has() -> None:
    missing = [
        f"{file.relative_to(ROOT)}: {module}.{name}"
        for file in SCRIPTS
        for module, name in imported(file)
        if not is_module(f"{module}.{name}") and not (is_module(module) and name in defined(module))
    ]
    assert missing == []


def imported(file: Path) -> list[tuple[str, str]]:
    """(module of the package, name) of each `from … import …`, wherever it stands."""
    return [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.partition(".")[0] == "finetuning"
        for alias in node.names
    ]


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


@functools.cache
def defined(module: str) -> set[str]:
    """Names that a module has after its import; it is not imported."""
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names
