"""Texts that become part of a job script are read by the real bash first, and never run."""

from pathlib import Path

import pytest

from finetuning.errors import InputError
from finetuning.launch.slurm.shell import is_one_line, is_shell, shell_problem

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "script",
    [
        "",
        "module load cuda\nulimit -l unlimited",
        "for i in 1 2; do\n  echo $i\ndone",
        "cat <<EOF\nx\nEOF",
        "ls !(a)",
        "echo a\\\\",
    ],
)
def test_a_script_that_is_whole_has_no_problem(script: str) -> None:
    assert shell_problem(script) is None


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'a", "unexpected EOF while looking for matching `''"),
        ("if true; then", "syntax error: unexpected end of file"),
        ("echo a; fi", "syntax error near unexpected token `fi'"),
        ("cat <<EOF\nx", "here-document at line 1 delimited by end-of-file (wanted `EOF')"),
        ("module load cuda\\", "it ends in a backslash, which would take the next line of the job script with it"),
    ],
)
def test_a_script_that_would_take_the_rest_of_the_job_with_it_is_refused_in_bash_s_words(script: str, said: str) -> None:
    problem = shell_problem(script)
    assert problem is not None
    assert said in problem


def test_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "env.sh").write_text(f"touch {tmp_path}/run\n")
    monkeypatch.setenv("BASH_ENV", str(tmp_path / "env.sh"))
    assert shell_problem(f"touch {tmp_path}/run\necho $(touch {tmp_path}/run)") is None
    assert not (tmp_path / "run").exists()


def test_a_machine_without_bash_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="there is no bash on this machine, which checks job scripts"):
        shell_problem("true")


def test_only_scripts_that_slurm_gives_to_a_shell_are_read_as_one() -> None:
    assert is_shell("#!/bin/bash\n") and is_shell("#!/usr/bin/env bash\n") and is_shell("#!/bin/sh -e\n")
    assert not is_shell("#!/usr/bin/env python3\n") and not is_shell("bash\n")


def test_a_line_has_no_break_of_any_kind() -> None:
    assert is_one_line("/data/資料 #1")
    assert not any(is_one_line(f"a{mark}b") for mark in "\n\r\v\f\0\x1b\x85\u2028\u2029\t")
