"""The documents for those who change the code: short, and naming only what is there."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent
LONGEST_ENTRY = 10  # lines
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))


def test_entries_of_the_log_are_short_dated_and_say_what_came_out() -> None:
    _, *entries = re.split(r"^## ", read("docs/log.md"), flags=re.MULTILINE)
    assert entries
    for entry in entries:
        heading, *lines = filter(None, entry.splitlines())
        assert re.fullmatch(r"\d{4}-\d\d-\d\d · [^:]+: .+", heading), heading
        assert len(lines) <= LONGEST_ENTRY, heading


def test_the_table_of_benchmarks_names_every_script_and_only_results_that_are_there() -> None:
    text = read("benchmarks/README.md")
    rows = [line for line in text.splitlines() if line.count(" | ") == 4]
    assert len(rows) > 30
    figures = [row for row in rows[2:] if not row.startswith("| **") or "| |" not in row]
    for row in figures:
        _, figure, script, machine, result = (cell.strip() for cell in row.strip("|").split(" | "))
        assert re.search(r"\d|equal", figure), row
        assert (ROOT / "benchmarks" / script.strip("`").split()[0]).is_file() or (ROOT / script.strip("`")).is_file(), row
        assert re.search(r"(H200|VM), \d{4}-\d\d-\d\d$", machine), row
        files = re.findall(r"`([^`]+)`", result)
        assert files or result == "the same" or "](" in result, row
        assert all((ROOT / "benchmarks" / "results" / file).is_file() for file in files), row
    parts = {"step_profile.py", "counted_run.py", "gpu.py", "peers_sites.py", "compilations.py"}
    scripts = {file.name for file in (ROOT / "benchmarks").glob("*.py") if not file.name.startswith("peer_")}
    assert {script for script in scripts - parts if f"`{script}" not in text} == set()


def test_the_architecture_begins_with_its_principle_and_names_only_what_is_there() -> None:
    text = read("docs/architecture.md")
    assert text.startswith("A question about a run or about a path is answered in one place; the answer is a value with a name")
    paths = re.findall(r"`((?:finetuning|tests|benchmarks|examples)/[\w./-]*|finetune\.py)`", text)
    assert len(paths) > 60
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_folder_has_its_line_in_the_architecture() -> None:
    listed = re.findall(r"^\| `(finetuning/[\w/]+/)` \|", read("docs/architecture.md"), re.MULTILINE)
    folders = {f"{file.parent.relative_to(ROOT)}/" for file in (ROOT / "finetuning").rglob("*/__init__.py")}
    assert sorted(listed) == sorted(folders - {"finetuning/"})


def test_the_layers_of_the_architecture_are_those_of_the_import_contract() -> None:
    contracts = tomllib.loads(read("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["name"] == "A folder imports only what is below it")
    assert f"```text\n{chr(10).join(layers)}\n```" in read("docs/architecture.md")


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", *(f"docs/decisions/{file.name}" for file in DECISIONS)])
def test_every_path_in_a_document_for_contributors_is_there(name: str) -> None:
    paths = re.findall(r"`((?:finetuning|tests|benchmarks)/[\w./-]*)`", read(name))
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_decision_is_in_the_index_and_says_what_was_turned_down() -> None:
    listed = re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", read("docs/decisions/README.md"))
    assert listed == [file.name for file in DECISIONS if file.name != "README.md"]
    for number, name in enumerate(listed, start=1):
        text = read(f"docs/decisions/{name}")
        assert name.startswith(f"{number:04d}-") and text.startswith(f"# {number}. "), name
        assert re.search(r"^\d{4}-\d\d-\d\d · .+\?$", text, re.MULTILINE), name
        assert all(f"**{heading}" in text for heading in ("Decided.", "Because", "Turned down")), name


@pytest.mark.parametrize("name", ["SECURITY.md", "docs/reliability.md", "docs/reliability.zh-TW.md"])
def test_every_promise_names_tests_that_are_there(name: str) -> None:
    text = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    there = set(re.findall(r"^ *def (test_\w+)", text, re.MULTILINE))
    named = set(re.findall(r"`(test_\w+)`", read(name)))
    assert named and named - there == set()
    assert [path for path in re.findall(r"`(tests/[\w./]+)`", read(name)) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", ["SECURITY.md"])
def test_every_claim_names_a_test(name: str) -> None:
    rows = [line for line in read(name).splitlines() if line.startswith("| ") and not line.startswith(("| --- ", "| what "))]
    assert len(rows) > 20
    assert [row for row in rows if "`test_" not in row] == []


def test_hooks_before_a_commit_are_the_project_s_own_tools() -> None:
    hooks = yaml.safe_load(read(".pre-commit-config.yaml"))
    assert [repository["repo"] for repository in hooks["repos"]] == ["local"], "nothing is fetched"
    commands = [hook["entry"].split()[0] for repository in hooks["repos"] for hook in repository["hooks"]]
    used = set(re.findall(r"\$\(BIN\)/([\w-]+)", read("Makefile").split("\ncheck:")[1].split("\n\n")[0]))
    assert {Path(command).name for command in commands} == used - {"mypy"}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")
