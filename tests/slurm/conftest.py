"""A real Slurm of two nodes on this machine, for the time of the tests."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "cluster.sh"
NEEDED = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge"}
NUM_PORTS = 10


@pytest.fixture(scope="session")
def slurm() -> Iterator[Path]:
    """The folder of the running cluster; its commands work in this process and what it starts."""
    os.environ["PATH"] += os.pathsep + "/usr/sbin"
    packages = [package for command, package in NEEDED.items() if shutil.which(command) is None]
    if packages or os.geteuid() != 0:
        message = "the tests of Slurm jobs need a real Slurm, started as root"
        if packages:
            message += "; on Debian: apt-get install --no-install-recommends " + " ".join(packages)
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)  # munged has a user of its own
    try:
        subprocess.run([SCRIPT, "up", folder, str(_free_ports())], check=True, stdout=subprocess.DEVNULL)
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
        yield folder
    finally:
        subprocess.run([SCRIPT, "down", folder], check=True)
        os.environ.pop("SLURM_CONF", None)
        shutil.rmtree(folder)


def _free_ports() -> int:
    """The first of ten neighboring ports that nobody uses; another process starts its search elsewhere."""
    first = 15_000 + os.getpid() % 400 * NUM_PORTS
    while not all(_is_free(first + i) for i in range(NUM_PORTS)):
        first += NUM_PORTS
    return first


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
