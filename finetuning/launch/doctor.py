"""What would stop a run on this machine, found out before a run: each finding with what to do about it.

Every check looks at the real thing (writes a file, opens a connection, asks the driver) and returns what it found.
"""

import importlib.metadata
import ipaddress
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetuning.errors import InputError
from finetuning.i18n import t
from finetuning.launch.disk import bytes_written_per_s
from finetuning.launch.slurm.cluster import Cluster, read_cluster
from finetuning.launch.slurm.gpu_memory import memory_of_type
from finetuning.runtime.network import own_address

GOOD, NOTE, BAD = "ok", "note", "bad"
NEEDED_VERSIONS = {"torch": (2, 11), "lightning": (2, 6), "transformers": (5, 17), "tokenizers": (0, 22), "safetensors": (0, 5)}
SLOW_MIB_PER_S = 50
CHECKPOINT_GIB = 16 + 3 * 16  # an 8B model: the exported weights and one full training state in bfloat16 with moments
HUB = "https://huggingface.co"
HUB_TIMEOUT_S = 5
NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "cephfs", "ceph", "fuse.glusterfs", "wekafs", "panfs", "9p")


@dataclass(frozen=True)
class Finding:
    level: str  # GOOD, NOTE: worth knowing, BAD: a run would fail
    subject: str
    text: str
    advice: str = ""  # what to do about it


def examine_machine(folder: Path) -> Iterator[Finding]:
    """This machine and the folder of the experiments."""
    yield from check_versions()
    yield from check_gpus()
    yield from check_folder(folder)
    yield from check_limits()
    yield from check_network()


def examine_all(folder: Path) -> Iterator[Finding]:
    """What concerns the machine that runs are started on: also the hub and the cluster."""
    yield from examine_machine(folder)
    yield from check_hub()
    yield from check_slurm()


def check_versions() -> Iterator[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding(GOOD, "Python", f"{python} · {sys.executable}")
    for package, least in NEEDED_VERSIONS.items():
        needed = ".".join(map(str, least))
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(
                BAD, package, t("not installed"), t("pip install '{package}>={needed}'", package=package, needed=needed)
            )
            continue
        found = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
        if found < least:
            yield Finding(BAD, package, version, t("pip install '{package}>={needed}'", package=package, needed=needed))
        else:
            yield Finding(GOOD, package, version)


def check_gpus() -> Iterator[Finding]:
    """Driver, CUDA and NCCL, as torch sees them."""
    import torch

    driver = _ask_nvidia_smi()
    if torch.version.cuda is None:
        if driver is None:
            yield Finding(NOTE, "GPU", t("none, and a torch without CUDA: runs here use CPU processes"))
        else:
            yield Finding(
                BAD,
                "GPU",
                t("driver {driver}, but this torch has no CUDA", driver=driver),
                t("install torch from the index of your CUDA version: https://pytorch.org/get-started/locally/"),
            )
        return
    if not torch.cuda.is_available():
        if driver is None:
            yield Finding(NOTE, "GPU", t("none here; on a login node that is as it should be"))
        else:
            yield Finding(
                BAD,
                "GPU",
                t(
                    "torch {torch} for CUDA {cuda} cannot use driver {driver}",
                    torch=torch.__version__,
                    cuda=torch.version.cuda,
                    driver=driver,
                ),
                t(
                    "a newer driver, or a torch for an older CUDA; CUDA_VISIBLE_DEVICES is {visible}",
                    visible=os.environ.get("CUDA_VISIBLE_DEVICES", t("not set")),
                ),
            )
        return
    count = torch.cuda.device_count()
    properties = [torch.cuda.get_device_properties(index) for index in range(count)]
    names = ", ".join(sorted({f"{gpu.name} {gpu.total_memory / 2**30:.0f} GiB" for gpu in properties}))
    yield Finding(GOOD, "GPU", f"{count} x {names} · CUDA {torch.version.cuda} · {t('driver {driver}', driver=driver)}")
    if any(gpu.major < 8 for gpu in properties):
        yield Finding(BAD, "GPU", t("a GPU without bfloat16"), t("Ampere (A100, RTX 30) or newer is needed"))
    if torch.distributed.is_nccl_available():
        yield Finding(GOOD, "NCCL", ".".join(map(str, torch.cuda.nccl.version())))
    else:
        yield Finding(BAD, "NCCL", t("not part of this torch"), t("install torch from https://pytorch.org"))


def check_folder(folder: Path) -> Iterator[Finding]:
    """Space, speed and kind of the file system of the experiments."""
    subject = t("folder")
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free_gib = shutil.disk_usage(existing).free / 2**30
    text = t("{folder}: {free:.0f} GiB free", folder=folder, free=free_gib)
    if free_gib < CHECKPOINT_GIB:
        yield Finding(
            NOTE,
            subject,
            text,
            t(
                "all weights of an 8B model need about {needed} GiB for one checkpoint and the result (LoRA: 1 GiB); give "
                "another --experiments_dir",
                needed=CHECKPOINT_GIB,
            ),
        )
    else:
        yield Finding(GOOD, subject, text)
    try:
        speed = bytes_written_per_s(existing) / 2**20
    except OSError as error:
        yield Finding(
            BAD, subject, t("cannot be written: {reason}", reason=error.strerror), t("give another --experiments_dir")
        )
        return
    text = t("writes {speed:.0f} MiB/s", speed=speed)
    kind = _file_system(existing)
    if kind is not None:
        shared = kind in NETWORK_FILE_SYSTEMS
        text += f" · {kind} · " + (t("a network file system") if shared else t("a file system of this machine"))
    advice = t("checkpoints will take long; keep them few (--save_every_n_steps)") if speed < SLOW_MIB_PER_S else ""
    yield Finding(NOTE if advice else GOOD, subject, text, advice)


def check_limits() -> Iterator[Finding]:
    open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if open_files < 1024:
        yield Finding(BAD, t("limits"), t("{count} open files", count=open_files), "ulimit -n 65536")
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    has_infiniband = any(Path("/sys/class/infiniband").glob("*"))
    if has_infiniband and locked != resource.RLIM_INFINITY:
        yield Finding(
            NOTE,
            t("limits"),
            t("{size} KiB of locked memory, with InfiniBand", size=locked // 1024),
            t("NCCL needs it unlimited: ulimit -l unlimited, in Slurm PropagateResourceLimits"),
        )
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    yield Finding(GOOD, t("machine"), t("{cores} core{cores:s}, {memory:.0f} GiB memory", cores=cores, memory=memory_gib))


def check_network() -> Iterator[Finding]:
    """By which address other machines would reach this one."""
    name = socket.gethostname()
    address = own_address()
    loopback = ipaddress.ip_address(address).is_loopback
    try:
        by_name = socket.gethostbyname(name)
    except OSError:
        yield Finding(NOTE, t("network"), t("the name {name} has no address", name=name), t("add it to /etc/hosts"))
        return
    text = t("{name}, reached at {address}", name=name, address=address)
    if ipaddress.ip_address(by_name).is_loopback and not loopback:
        text += " · " + t("its name means {address} here, which is not used", address=by_name)
    advice = t("it has no address but loopback: runs on several machines cannot start from here") if loopback else ""
    yield Finding(NOTE if loopback else GOOD, t("network"), text, advice)


def check_hub() -> Iterator[Finding]:
    """Whether models can be downloaded; the token itself is not shown."""
    import urllib.error
    import urllib.request

    from huggingface_hub import get_token

    source = "HF_TOKEN" if os.environ.get("HF_TOKEN") else t("the login of `hf auth login`")
    token = t("token from {source}", source=source) if get_token() else t("no token (needed for gated models such as Meta's)")
    try:
        urllib.request.urlopen(urllib.request.Request(HUB, method="HEAD"), timeout=HUB_TIMEOUT_S).close()
    except (urllib.error.URLError, OSError) as error:
        yield Finding(
            NOTE,
            "hub",
            t("{hub} cannot be reached ({reason})", hub=HUB, reason=error) + " · " + token,
            t("give a local folder as --hf_model_id; behind a proxy set HTTPS_PROXY"),
        )
        return
    yield Finding(GOOD, "hub", t("{hub} can be reached", hub=HUB) + " · " + token)


def check_slurm() -> Iterator[Finding]:
    if shutil.which("sbatch") is None:
        yield Finding(NOTE, "Slurm", t("no sbatch here: only --executor local"))
        return
    try:
        cluster = read_cluster()
    except InputError as error:
        yield Finding(
            NOTE,
            "Slurm",
            str(error),
            t("only --executor local; see `scontrol ping`, and `systemctl status munge` on this machine"),
        )
        return
    yield from describe_cluster(cluster)


def describe_cluster(cluster: Cluster) -> Iterator[Finding]:
    """Partitions, accounts, what runs containers, and settings that decide whether a job survives its time limit."""
    version, name = cluster.config.get("SLURM_VERSION", "?"), cluster.config.get("ClusterName", "?")
    yield Finding(GOOD, "Slurm", f"{version} · {name}")
    for partition in cluster.partitions:
        text = t(
            "partition {name}: {nodes} node{nodes:s} x {gpus} GPU{gpus:s}, {cpus} CPU{cpus:s}, time limit {limit}",
            name=partition.name,
            nodes=partition.num_nodes,
            gpus=partition.gpus_per_node,
            cpus=partition.cpus_per_node,
            limit=partition.time_limit,
        )
        text += (" · " + t("the default")) if partition.is_default else ""
        yield Finding(GOOD if partition.is_up else NOTE, "Slurm", text, "" if partition.is_up else t("it is down"))
        if any(memory_of_type(name) is None for name in partition.gpu_types):
            text = t("partition {name}: Slurm does not say how much memory its GPUs have", name=partition.name)
            advice = t("finetune doctor --slurm -p {name} measures it; else give --gpu_memory_gib", name=partition.name)
            yield Finding(NOTE, "Slurm", text, advice)
    if cluster.accounts is None:
        yield Finding(GOOD, "Slurm", t("keeps no accounts: --account is left out"))
    else:
        yield Finding(GOOD, "Slurm", t("your accounts: {names}", names=", ".join(cluster.accounts) or t("none")))
    runtimes = ["Pyxis"] * cluster.has_pyxis + [cluster.apptainer] * (cluster.apptainer is not None)
    yield Finding(
        GOOD if runtimes else NOTE,
        t("containers"),
        ", ".join(map(str, runtimes)) or t("neither Pyxis nor Apptainer here"),
        "" if runtimes else t("jobs run this Python environment, which the nodes must see (--container_image none)"),
    )
    if cluster.config.get("JobRequeue") == "0":
        yield Finding(
            NOTE, "Slurm", "JobRequeue=0", t("jobs ask for --requeue themselves; a node failure is survived all the same")
        )


def _ask_nvidia_smi() -> str | None:
    """The version of the driver; None without one."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.split("\n")[0].strip() or None


def _file_system(folder: Path) -> str | None:
    """The kind of file system that holds a folder; None where the system does not tell."""
    mounts = Path("/proc/mounts")
    if not mounts.is_file():
        return None
    best, kind = Path("/"), None
    for line in mounts.read_text(encoding="utf-8").splitlines():
        place, this_kind = line.split()[1:3]
        path = Path(place.replace("\\040", " "))
        if folder.is_relative_to(path) and len(path.parts) >= len(best.parts):
            best, kind = path, this_kind
    return kind
