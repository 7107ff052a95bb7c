"""The documents for those who change the code: short, and naming only what is there."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent
LONGEST_ENTRY = 10  # lines


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


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")
