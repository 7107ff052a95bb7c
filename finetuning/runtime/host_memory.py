"""How much host memory a process may still take (Linux): what the machine has available, and what its control group allows.

Pages of files that the system would give back count as available, in both.
"""

import sys
from pathlib import Path


def available_bytes(root: Path = Path("/")) -> int:
    """The lesser of the two; where the system tells neither, no limit is known.

    `root` is the folder that /proc and /sys are in.
    """
    return min(_of_machine(root), *_of_groups(root))


def _of_machine(root: Path) -> int:
    fields = dict(line.split(":", 1) for line in _lines(root / "proc/meminfo"))
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else sys.maxsize


def _of_groups(root: Path) -> list[int]:
    """Of the control group of this process and all above it: version 2, and the memory controller of version 1."""
    found = [sys.maxsize]
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = root / "sys/fs/cgroup" / controllers
        names = ("memory.max", "memory.current", "inactive_file")
        if controllers:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        group = top / path.lstrip("/")
        # In a container the path may be one outside of it; then its own group is at the top.
        groups = [group, *group.parents] if group.is_dir() else [top]
        found += [_of_group(each, *names) for each in groups if each == top or top in each.parents]
    return found


def _of_group(group: Path, limit_name: str, used_name: str, cache_name: str) -> int:
    limit, used = _lines(group / limit_name), _lines(group / used_name)
    if not (limit and used) or limit[0] == "max":
        return sys.maxsize
    statistics = dict(line.split() for line in _lines(group / "memory.stat"))
    return int(limit[0]) - int(used[0]) + int(statistics.get(cache_name, 0))


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
