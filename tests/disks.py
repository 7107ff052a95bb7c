"""Disks that are full: a small file system in memory, which the system answers for as it does for a real one."""

import os
import subprocess
from pathlib import Path

import pytest


def mount(folder: Path, size: str) -> None:
    """Skips the test where only root could; `unmount` afterwards."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False).returncode:
        pytest.skip("only root can mount a small file system")


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """A file that takes every byte that is left."""
    file = disk / f"filler-{len(list(disk.iterdir()))}"
    try:
        with file.open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(4096))
    except OSError:
        return file
