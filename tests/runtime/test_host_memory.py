"""How much host memory is available: the machine's, a container's, or a job's."""

import sys
from pathlib import Path

import pytest

from finetuning.runtime.host_memory import available_bytes

pytestmark = pytest.mark.unit

GIB = 2**30


def system(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    """A machine with 32 GiB available, and these files of control groups."""
    contents = {"proc/meminfo": f"MemTotal: 1 kB\nMemAvailable: {32 * 2**20} kB\n", "proc/self/cgroup": cgroup}
    for name, text in (contents | {f"sys/fs/cgroup/{name}": text for name, text in files.items()}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_machine_without_limits_has_what_it_says(tmp_path: Path) -> None:
    assert available_bytes(system(tmp_path, "0::/\n", {})) == 32 * GIB
    unlimited = {"a/memory.max": "max\n", "a/memory.current": "5\n", "a/memory.stat": "inactive_file 0\n"}
    assert available_bytes(system(tmp_path, "0::/a\n", unlimited)) == 32 * GIB


def test_the_tightest_group_above_a_process_counts_and_its_cached_files_do_not(tmp_path: Path) -> None:
    files = {
        "job/memory.max": str(8 * GIB),
        "job/memory.current": str(5 * GIB),
        "job/memory.stat": f"anon 1\ninactive_file {2 * GIB}\n",
        "job/step/memory.max": "max",
        "job/step/memory.current": str(5 * GIB),
    }
    assert available_bytes(system(tmp_path, "0::/job/step\n", files)) == 5 * GIB


def test_groups_of_version_1_and_those_seen_from_inside_a_container(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": str(4 * GIB),
        "memory/memory.usage_in_bytes": str(3 * GIB),
        "memory/memory.stat": f"total_inactive_file {GIB}\n",
    }
    assert available_bytes(system(tmp_path, "4:memory:/docker/0123\n0::/\n", files)) == 2 * GIB


def test_a_system_that_tells_nothing_has_no_known_limit(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) == sys.maxsize
