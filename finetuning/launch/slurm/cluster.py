"""What the Slurm cluster offers, asked of its own commands: partitions, GPUs, accounts, container runtimes.

Works without accounting. Nothing is submitted and nothing is written here.
"""

import getpass
import re
import shutil
import subprocess
from dataclasses import dataclass

from finetuning.errors import InputError
from finetuning.i18n import t

COMMAND_TIMEOUT_S = 60
GPU_RESOURCE = r"(?:^|,)gpu(?::([^:(,]+))?:(\d+)"


@dataclass(frozen=True)
class Partition:
    """Nodes of one partition; where they differ, the most GPUs and the fewest CPUs of any node."""

    name: str
    is_default: bool
    is_up: bool
    num_nodes: int
    gpus_per_node: int
    cpus_per_node: int
    time_limit: str
    gpu_types: tuple[str, ...] = ()  # as Slurm names them; "" where it does not


@dataclass(frozen=True)
class Cluster:
    partitions: tuple[Partition, ...]
    accounts: tuple[str, ...] | None  # of this user; None: the cluster keeps no accounts
    config: dict[str, str]  # of `scontrol show config`
    has_pyxis: bool  # srun has the plugin's options
    apptainer: str | None  # the command's name, where this machine has it

    @property
    def default_partition(self) -> Partition | None:
        return next((partition for partition in self.partitions if partition.is_default), None)

    def find_partition(self, name: str) -> Partition | None:
        return next((partition for partition in self.partitions if partition.name == name), None)


def read_cluster() -> Cluster:
    """Asks the cluster that this machine belongs to.

    Raises:
        InputError: this machine has no Slurm commands, or the controller does not answer.
    """
    if shutil.which("sbatch") is None:
        raise InputError(
            t(
                "--executor slurm: there is no sbatch on this machine; run the command on a login node of the cluster, or with "
                "--executor local"
            )
        )
    config = parse_config(ask("scontrol", "show", "config"))
    return Cluster(
        partitions=parse_partitions(ask("sinfo", "--noheader", "--format", "%P|%a|%D|%G|%c|%l")),
        accounts=_accounts(config),
        config=config,
        has_pyxis="--container-image" in ask("srun", "--help"),
        apptainer=next((name for name in ("apptainer", "singularity") if shutil.which(name)), None),
    )


def ask(*command: str) -> str:
    """The answer of a Slurm command.

    Raises:
        InputError: it failed or did not answer in time; with its own words.
    """
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=COMMAND_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            t(
                "Slurm does not answer: {command} took more than {seconds} s",
                command=" ".join(command),
                seconds=COMMAND_TIMEOUT_S,
            )
        ) from None
    except FileNotFoundError:
        raise InputError(t("Slurm's command {command} is not on this machine", command=command[0])) from None
    if result.returncode != 0:
        reason = " ".join(result.stderr.split()) or t("exit code {code}", code=result.returncode)
        raise InputError(t("Slurm: {command}: {reason}", command=command[0], reason=reason))
    return result.stdout


def parse_config(text: str) -> dict[str, str]:
    """`Name = value` lines of `scontrol show config`."""
    return dict(re.findall(r"^(\w+) *= *(.*?) *$", text, re.MULTILINE))


def parse_partitions(text: str) -> tuple[Partition, ...]:
    """Lines `name*|up|nodes|gres|cpus|time limit` of sinfo, one for each kind of node."""
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        name, availability, nodes, gres, cpus, time_limit = line.split("|")
        is_default, name = name.endswith("*"), name.removesuffix("*")
        before = found.get(name)
        gpus, num_cpus, num_nodes = count_gpus(gres), int(cpus.rstrip("+")), int(nodes)
        if before is not None:
            gpus, num_cpus = max(gpus, before.gpus_per_node), min(num_cpus, before.cpus_per_node)
            num_nodes += before.num_nodes
        types = (*(before.gpu_types if before else ()), *gpu_types(gres))
        found[name] = Partition(
            name, is_default, availability == "up", num_nodes, gpus, num_cpus, time_limit, tuple(dict.fromkeys(types))
        )
    return tuple(found.values())


def count_gpus(gres: str) -> int:
    """GPUs in a list of generic resources: `gpu:h100:4(S:0-1),gpu:a100:4,nvme:1` has 8."""
    return sum(int(count) for _, count in re.findall(GPU_RESOURCE, gres))


def gpu_types(gres: str) -> tuple[str, ...]:
    """Their names in such a list: h100 and a100; "" where there is none."""
    return tuple(name for name, _ in re.findall(GPU_RESOURCE, gres))


def _accounts(config: dict[str, str]) -> tuple[str, ...] | None:
    if "slurmdbd" not in config.get("AccountingStorageType", ""):
        return None
    try:
        answer = ask("sacctmgr", "--noheader", "--parsable2", "show", "assoc", f"user={getpass.getuser()}", "format=account")
    except InputError:  # the database may be down while the controller works
        return None
    return tuple(dict.fromkeys(answer.split()))
