"""The part of `finetune doctor --slurm` that runs on each node of a small allocation.

Every node looks at itself and at the folder, and all of them meet: the same rendezvous as a run's, and one sum over the
network. Writes `node_N.json` beside the others in the folder given.
"""

import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from finetuning.errors import RunError
from finetuning.i18n import t
from finetuning.launch.doctor import BAD, GOOD, Finding, check_gpus, check_limits, check_versions
from finetuning.runtime.network import choose_interface, port_of_job, rendezvous_address

MEETING_S = 60
SUM_BYTES = 64 * 2**20


def main(argv: Sequence[str]) -> int:
    folder, node = Path(argv[0]), int(os.environ["SLURM_NODEID"])
    if not folder.is_dir():
        print(
            t("{host} cannot see {folder}; the nodes must share it", host=os.uname().nodename, folder=folder), file=sys.stderr
        )
        return 1
    findings = [*check_versions(), *check_gpus(), *check_limits(), *check_meeting(node)]
    record = {
        "host": os.environ.get("SLURMD_NODENAME", os.uname().nodename),
        "gpu": _gpu(),
        "findings": [vars(finding) for finding in findings],
    }
    (folder / f"node_{node}.json").write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
    return 0


def _gpu() -> dict[str, Any] | None:
    """Name and memory of the first GPU."""
    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    return {"name": found.name, "gib": round(found.total_memory / 2**30, 1)}


def check_meeting(node: int) -> Iterator[Finding]:
    """All nodes join one process group and add up a tensor, over gloo and, with GPUs, over NCCL."""
    subject = t("meeting")
    addresses = _addresses()
    try:
        address = rendezvous_address(addresses[0], node == 0)
    except RunError as error:
        yield Finding(BAD, subject, str(error), t("see docs/slurm.md, rendezvous"))
        return
    choose_interface(os.environ, peer=addresses[0] if node else addresses[-1])
    port = port_of_job(int(os.environ["SLURM_JOB_ID"]), 0)
    on_gpu = torch.cuda.is_available()
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            init_method=f"tcp://{address}:{port}",
            rank=node,
            world_size=len(addresses),
            timeout=datetime.timedelta(seconds=MEETING_S),
        )
        for device in ["cpu"] + ["cuda"] * on_gpu:
            yield _measure_sum(subject, device, f"{address}:{port}")
        dist.destroy_process_group()
    except dist.DistError as error:
        yield Finding(
            BAD,
            subject,
            t("cannot meet at {address}:{port}: {reason}", address=address, port=port, reason=str(error).splitlines()[0]),
            t('a firewall, or the wrong interface: --environment "NCCL_SOCKET_IFNAME=… GLOO_SOCKET_IFNAME=…"'),
        )


def _measure_sum(subject: str, device: str, place: str) -> Finding:
    tensor = torch.ones(SUM_BYTES // 4, device=device)
    dist.all_reduce(tensor)  # the first one also opens connections
    started = time.monotonic()
    dist.all_reduce(tensor)
    tensor[0].item()  # waits for the GPU
    speed = SUM_BYTES / 2**20 / (time.monotonic() - started)
    via = "NCCL" if device == "cuda" else "gloo"
    return Finding(
        GOOD,
        subject,
        t(
            "{nodes} node{nodes:s} at {place} · {via} adds up {speed:.0f} MiB/s",
            nodes=dist.get_world_size(),
            place=place,
            via=via,
            speed=speed,
        ),
    )


def _addresses() -> list[str]:
    """Slurm's own addresses of the nodes of this allocation, the first node's first."""
    names = subprocess.run(
        ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]], capture_output=True, text=True, check=True
    ).stdout.split()
    addresses = []
    for name in names:
        shown = subprocess.run(
            ["scontrol", "show", "node", "--oneliner", name], capture_output=True, text=True, check=True
        ).stdout
        addresses.append(next(word.partition("=")[2] for word in shown.split() if word.startswith("NodeAddr=")))
    return addresses


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
