"""Packages that only some inputs need: without them everything else works, and what needs them says so."""

import gzip
import json
from pathlib import Path

import pytest

from finetuning.errors import EXIT_BAD_INPUT, InputError
from finetuning.on_demand import needed_for
from tests.environments import run_without

pytestmark = pytest.mark.dist  # each starts a process


def test_what_is_missing_is_named_with_the_line_that_installs_it() -> None:
    with (
        pytest.raises(
            InputError, match=r"^maps: the package no_such_package is needed, and .*: .* -m pip install no_such_pack"
        ),
        needed_for("maps"),
    ):
        import no_such_package.inner  # noqa: F401


def test_only_data_of_its_kind_need_a_package(tmp_path: Path) -> None:
    data, needed = tmp_path / "data", {"zstandard": "jsonl.zst", "pyarrow": "parquet"}
    data.mkdir()
    line = json.dumps({"input": "a", "output": "b"}) + "\n"
    (data / "training.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    check = ("-m", "finetuning", "data", "check", str(data))
    done = run_without(set(needed), tmp_path, *check)
    assert done.returncode == 0, done.stdout + done.stderr
    for package, suffix in needed.items():
        file = data / f"validation.{suffix}"
        file.write_bytes(b"1234")
        done = run_without({package}, tmp_path, *check)
        assert done.returncode == EXIT_BAD_INPUT, done.stdout + done.stderr
        assert f"the package {package} is needed" in done.stderr and f"-m pip install {package}" in done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        file.unlink()


def test_scores_are_missed_before_any_answer_is_computed(tmp_path: Path, tiny_model: Path, tiny_dataset: Path) -> None:
    evaluate = ("-m", "finetuning", "evaluate", str(tiny_model), str(tiny_dataset), "--out", str(tmp_path / "out"))
    done = run_without({"sacrebleu"}, tmp_path, *evaluate)
    assert done.returncode == EXIT_BAD_INPUT, done.stdout + done.stderr
    assert "scores of answers: the package sacrebleu is needed" in done.stderr
    done = run_without({"sacrebleu"}, tmp_path, *evaluate, "--no_answers", "--limit", "1")
    assert done.returncode == 0, done.stdout + done.stderr
