"""The peers' packages for a machine without a network: wheels unpacked into a folder for each peer, trimmed, as archives.

    python benchmarks/peers_sites.py --work /tmp/peers --out /tmp/peers_archives
    # on the machine, for each letter, whose archive may be in parts:
    mkdir -p /tmp/sites && cat peers_a.tar.xz* | tar -xJ -C /tmp/sites

peers_requirements.txt says what goes where. Wheels are for Python 3.12, Linux x86-64, CUDA 13; nothing is compiled.
"""

import argparse
import lzma
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("peers_requirements.txt")
PLATFORMS = (
    "manylinux_2_34_x86_64",
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_24_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
)
ARCHIVES = {"a": ("transformers", "automodel"), "b": ("unsloth", "xformers"), "c": ("fa4",)}
PART_BYTES = 40 * 2**20
# What a training step does not need and what is large: a web interface, libraries for other GPUs and other versions, tests.
UNNEEDED = (
    "studio",
    "**/tests",
    "torchao/_C_mxfp8*",
    "bitsandbytes/libbitsandbytes_[!c]*",
    "bitsandbytes/libbitsandbytes_cuda1[!3]*",
    "bitsandbytes/libbitsandbytes_cuda132*",
    "torch_c_dlpack_ext/*torch2[!9]*",
    "torch_c_dlpack_ext/*torch210*",
    "nvidia_cutlass_dsl/dsl_packages/iket/profiler/libsmodel_injection.so",
    "unsloth_cli",
    "mistral_common/data",
    "**/__pycache__",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for wheels and unpacked sites")
    parser.add_argument("--out", type=Path, required=True, help="folder for the archives")
    parser.add_argument("--archives", nargs="+", choices=ARCHIVES, default=list(ARCHIVES))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    sites = read_requirements(REQUIREMENTS.read_text(encoding="utf-8"))
    for letter in arguments.archives:
        for site in ARCHIVES[letter]:
            make_site(site, sites[site], arguments.work)
        archive = arguments.out / f"peers_{letter}.tar.xz"
        write_archive(archive, arguments.work / "sites", ARCHIVES[letter])
        for part in cut(archive):
            print(f"{part}: {part.stat().st_size / 2**20:.1f} MiB", flush=True)


def read_requirements(text: str) -> dict[str, list[str]]:
    """Site -> requirements, in the order of the file."""
    sites: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("# site "):
            sites[line.removeprefix("# site ")] = current = []
        elif line and not line.startswith("#"):
            current.append(line)
    return sites


def make_site(site: str, requirements: list[str], work: Path) -> None:
    wheels, folder = work / "wheels" / site, work / "sites" / site
    wheels.mkdir(parents=True, exist_ok=True)
    platforms = [argument for platform in PLATFORMS for argument in ("--platform", platform)]
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--python-version",
            "3.12",
            "--implementation",
            "cp",
            *platforms,
            "--dest",
            str(wheels),
            *requirements,
        ],
        check=True,
    )
    shutil.rmtree(folder, ignore_errors=True)
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as content:
            content.extractall(folder)
    for pattern in UNNEEDED:
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_archive(archive: Path, root: Path, sites: tuple[str, ...]) -> None:
    with lzma.open(archive, "wb", preset=6) as packed, tarfile.open(fileobj=packed, mode="w") as content:
        for site in sites:
            content.add(root / site, arcname=site)


def cut(archive: Path) -> list[Path]:
    """The archive, or, where it is larger than PART_BYTES, its parts in its place."""
    for old in archive.parent.glob(f"{archive.name}.*"):
        old.unlink()
    if archive.stat().st_size <= PART_BYTES:
        return [archive]
    parts = []
    with archive.open("rb") as whole:
        while content := whole.read(PART_BYTES):
            parts.append(archive.with_name(f"{archive.name}.{len(parts)}"))
            parts[-1].write_bytes(content)
    archive.unlink()
    return parts


if __name__ == "__main__":
    main()
