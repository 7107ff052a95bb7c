"""Verbs that write where there is no room: one sentence, and nothing is left. A limit on files is answered like a full disk."""

import re
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetuning.cli import data, export, main
from finetuning.errors import EXIT_FAILED, NoRoom
from tests.references import write_random_adapter

pytestmark = pytest.mark.unit

SMALL = 600  # bytes, that a file may have


@pytest.fixture(autouse=True)
def small_files(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    request.getfixturevalue("tiny_model"), request.getfixturevalue("tiny_dataset")  # made before
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    write_random_adapter(request.getfixturevalue("tiny_model"), tmp_path / "adapter", 2, 6.0, ("q_proj",))
    resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", ["hf", "nemo", "gguf", "merged adapter"])
def test_an_export(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    flags = ["--base", str(tiny_model), "--merge"] if kind == "merged adapter" else ["--to", kind]
    model = tmp_path / "adapter" if kind == "merged adapter" else tiny_model
    with pytest.raises(NoRoom, match=r"no room left \(File too large"):
        export.main([str(model), str(tmp_path / "out"), *flags])
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("adapter", "cache")] == []


@pytest.mark.parametrize("arguments", [["prepare", "DATA", "OUT"], ["check", "DATA", "--html", "OUT"]])
def test_converted_data_and_a_report(arguments: list[str], tiny_dataset: Path, tmp_path: Path) -> None:
    places = {"DATA": str(tiny_dataset), "OUT": str(tmp_path / "out")}
    where = re.escape(tempfile.gettempdir())  # the first that is too large there
    with pytest.raises(NoRoom, match=rf"^{where}: no room left \(File too large"):
        data.main([places.get(argument, argument) for argument in arguments])
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("adapter", "cache")] == []


def test_no_folder_for_temporary_files_is_said_by_whatever_needs_one(
    tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch asks for one as well, where nobody of ours can say it better."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc"])
    reason = (
        r"no folder takes temporary files, as all are full or closed \(No usable temporary directory found in \['/proc'\]\)"
    )
    with pytest.raises(NoRoom, match=rf"^{reason}\. Make room in one of them, or set TMPDIR to another$"):
        data.main(["check", str(tiny_dataset)])
    with pytest.raises(FileNotFoundError) as raised:
        tempfile.gettempdir()
    assert main._say_why_it_ended(raised.value) == EXIT_FAILED
    assert re.search(reason, capsys.readouterr().err)
