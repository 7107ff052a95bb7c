"""What a folder says of its own files, also of large ones, of which only blocks are read."""

from pathlib import Path

import pytest

from finetuning.files import sealed
from finetuning.files.sealed import damage_of, seal

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("whole_bytes", [10**6, 0])
def test_a_change_of_size_or_content_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_bytes: int) -> None:
    monkeypatch.setattr(sealed, "WHOLE_BYTES", whole_bytes)
    monkeypatch.setattr(sealed, "BLOCK_BYTES", 100)
    (tmp_path / "inner").mkdir()
    file = tmp_path / "inner" / "numbers"
    file.write_bytes(bytes(range(250)) * 40)
    seal(tmp_path)
    assert damage_of(tmp_path) is None
    file.write_bytes(bytes(10_000))
    assert damage_of(tmp_path) == "inner/numbers has changed"
    file.write_bytes(b"")
    assert damage_of(tmp_path) == "inner/numbers has 0 bytes instead of 10000"
    file.unlink()
    assert damage_of(tmp_path) == "inner/numbers: cannot be read: No such file or directory"
    (tmp_path / "contents.json").write_text("[]")
    assert damage_of(tmp_path) == f"{tmp_path / 'contents.json'}: holds a list, but must hold a mapping"
