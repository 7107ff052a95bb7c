"""Paths that nobody can use are named in one sentence: too long, links in a circle, folders of somebody else."""

import errno
import os
import sys
from pathlib import Path

import pytest

from finetuning.cli import main
from finetuning.errors import EXIT_BAD_INPUT, EXIT_FAILED

pytestmark = pytest.mark.unit

LONG = "a" * 300


def console(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> object:
    """What `finetune` ends with."""
    monkeypatch.setattr(sys, "argv", ["finetune", *arguments])
    monkeypatch.setattr(main, "_prepare_process", lambda: None)
    with pytest.raises(SystemExit) as ended:
        main.console()
    return ended.value.code


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", LONG),
        ("data", "check", LONG),
        ("data", "check", f"data/{LONG}"),
        ("data", "prepare", "data", LONG),
        ("export", LONG),
        ("export", "MODEL", LONG),
        ("generate", LONG, "hi"),
        ("evaluate", "MODEL", LONG),
        ("merge", LONG, "out"),
        ("train", "--hf_model_id", "MODEL", "--dataset_path", LONG),
        ("train", "--hf_model_id", LONG, "--dataset_path", "data"),
        ("train", "--hf_model_id", "MODEL", "--dataset_path", "data", "--restore_config", LONG),
        ("train", "--hf_model_id", "MODEL", "--dataset_path", "data", "--restore_config", LONG, "--peft", "lora"),
        ("train", "--nemo_model", LONG, "--dataset_path", "data"),
        ("train", "--hf_model_id", "MODEL", "--dataset_path", "data", "--experiment", LONG),
        ("train", "--hf_model_id", "MODEL", "--dataset_path", "data", "--experiments_dir", LONG),
        ("train", "--hf_model_id", "MODEL", "--dataset_path", "data", "--experiments_dir", "circle"),
    ],
    ids=lambda arguments: " ".join(arguments).replace(LONG, "LONG"),
)
def test_a_name_that_no_folder_can_have(
    arguments: tuple[str, ...],
    tiny_model: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").symlink_to(tiny_dataset)
    Path("circle").symlink_to("circle")
    given = [str(tiny_model) if argument == "MODEL" else argument for argument in arguments]
    flags = ["--num_gpus", "1", "--global_batch_size", "8", "--seq_length", "256"] if arguments[0] == "train" else []
    assert console(*given, *flags, monkeypatch=monkeypatch) == EXIT_BAD_INPUT
    said = capsys.readouterr().err
    assert said.startswith("Nothing was started. ")
    assert "File name too long" in said or "a name of more than 200 bytes, which folders cannot have" in said or "loop" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circle", "data"]


def test_what_the_system_says_of_a_path_is_told_and_any_other_error_is_ours(capsys: pytest.CaptureFixture[str]) -> None:
    for number in (errno.EACCES, errno.EROFS, errno.ELOOP, errno.EIO, errno.ESTALE):
        assert main._say_why_it_ended(OSError(number, os.strerror(number), "/a/b")) == EXIT_FAILED
        assert capsys.readouterr().err == f"/a/b: cannot be read or written: {os.strerror(number)}\n"
    assert main._say_why_it_ended(OSError(errno.EACCES, "x", "/" + "a" * 5000)) == EXIT_FAILED
    assert capsys.readouterr().err == "/" + "a" * 299 + "…: cannot be read or written: x\n"
    for fault in (FileNotFoundError(errno.ENOENT, "x", "/a"), OSError(errno.EACCES, "x")):
        with pytest.raises(type(fault)):
            main._say_why_it_ended(fault)
