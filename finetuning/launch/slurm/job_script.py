"""The job script: which options sbatch gets, and the file that is submitted.

`plan_job` decides with the cluster at hand and finds what it would refuse; `render_job` fills the template, ours
(`job.sbatch.jinja`) or the user's. Imports no torch.
"""

import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from finetuning.config.run import Run
from finetuning.config.secrets import find_secret, refusal
from finetuning.config.settings import RunConfig
from finetuning.errors import EXIT_FAILED, EXIT_FINISHED, EXIT_STOPPED, InputError
from finetuning.files.documents import read_text
from finetuning.i18n import t
from finetuning.launch.gpus import GpuMemory
from finetuning.launch.slurm.cluster import Cluster, Partition
from finetuning.launch.slurm.container import Container, choose_container, container_command, folders_of, package_folder
from finetuning.launch.slurm.gpu_memory import find_gpu_memory, unknown_gpu_memory
from finetuning.launch.slurm.shell import is_one_line, is_shell, shell_problem

TEMPLATE = Path(__file__).parent / "job.sbatch.jinja"
TIME_LIMIT = re.compile(r"(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d{1,2}){0,2})")
GPU_OPTION = re.compile(r"--(gres|gpus|gpus-per-node|gpus-per-task)(=|$)|-G")
MAX_TEMPLATE_BYTES = 2**20
VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
GPU_REQUESTS = {"gpus-per-node": "--gpus-per-node={count}", "gres": "--gres=gpu:{count}"}


@dataclass(frozen=True)
class JobPlan:
    """What the cluster decides about the job."""

    options: list[str] = field(default_factory=list)  # of sbatch, one for each #SBATCH line; not quoted
    partition: str = ""  # that the job goes to
    gpus_per_node: int = 0  # of the nodes that are asked for; 0: processes run on their CPUs
    gpu_memory: GpuMemory | None = None  # of each; None: processes run on CPUs, or `unknown_memory` says what to do
    unknown_memory: str | None = None  # a problem of a run, not of the doctor that is to find it out
    container: Container = field(default_factory=lambda: Container("none", ""))
    problems: list[str] = field(default_factory=list)  # what Slurm would refuse
    notes: list[str] = field(default_factory=list)  # what was found out and decided


def plan_job(config: RunConfig, cluster: Cluster) -> JobPlan:
    """Decides about the job on this cluster; what cannot work is in the plan's `problems`."""
    plan = JobPlan()
    options = [f"--job-name={config.experiment}", f"--nodes={config.num_nodes}", "--ntasks-per-node=1"]
    partition = _partition(config, cluster, plan)
    if partition is not None and cluster.find_partition(config.partition) is partition:
        options.append(f"--partition={partition.name}")
    options += _account(config, cluster, plan)
    extra = _words("sbatch_options", config.sbatch_options, plan)
    node_gpus = partition.gpus_per_node if partition else 0
    gpus = _gpu_options(config, cluster, partition, extra, plan)
    options += gpus
    on_gpu = bool(gpus) or any(GPU_OPTION.match(word) for word in extra)
    cpus = config.cpus_per_task or _cpus(config, partition, on_gpu)
    options.append(f"--cpus-per-task={cpus}")
    if partition is not None and cpus > partition.cpus_per_node:
        plan.problems.append(
            t(
                "--cpus_per_task {asked}: the nodes of partition {partition} have {found} CPU{found:s}",
                asked=cpus,
                partition=partition.name,
                found=partition.cpus_per_node,
            )
        )
    mem = config.mem if config.mem is not None else ("0" if on_gpu and node_gpus == config.num_gpus else None)
    named = {
        "mem": mem,
        "time": config.time,
        "qos": config.qos,
        "constraint": config.constraint,
        "nodelist": config.nodelist,
        "exclude": config.exclude,
        "dependency": config.dependency,
    }
    options += [f"--{name}={value}" for name, value in named.items() if value is not None]
    if config.exclusive:
        options.append("--exclusive")
    options += ["--requeue", "--open-mode=append", f"--signal=USR1@{config.save_time_s}"]
    _check_time(config, plan)
    _check_environment(config, plan)
    if config.setup is not None and (problem := shell_problem(config.setup)) is not None:
        plan.problems.append(t("--setup: bash cannot read it: {problem}", problem=problem))
    container = choose_container(config, cluster, plan.problems, plan.notes)
    if not on_gpu:
        plan.notes.append(_cpu_note(config, partition))
        if config.gpu_memory_gib is not None:
            plan.problems.append(t("--gpu_memory_gib has no effect: the processes run on CPUs"))
    options += extra
    memory = find_gpu_memory(config, partition, options) if on_gpu else None
    return JobPlan(
        options,
        partition=partition.name if partition else config.partition,
        gpus_per_node=(node_gpus or config.num_gpus) if on_gpu else 0,
        gpu_memory=memory,
        unknown_memory=unknown_gpu_memory(partition, config.partition) if on_gpu and memory is None else None,
        container=container,
        problems=plan.problems,
        notes=plan.notes,
    )


def render_job(run: Run, plan: JobPlan) -> str:
    """The job script, which bash has read, but not run.

    Raises:
        InputError: the user's own template cannot be read or filled, or holds a secret; what comes out is no shell script; or
            the name of a folder would break a line of it.
    """
    config, folder = run.config, Path(run.experiment_dir)
    template = Path(config.slurm_template) if config.slurm_template else TEMPLATE
    logs = folder / "logs"
    own = [f"--chdir={folder}", f"--output={str(logs).replace('%', '%%')}/slurm-%j.out"]
    values = {
        "experiment": config.experiment,
        "script": str(script_of(folder)),
        "options": [shlex.quote(option) for option in [*own, *plan.options]],
        "setup": config.setup,
        "exports": dict(_assignments(config.environment)),
        "step_command": " \\\n  ".join(_step_command(run, plan)),
        "logs": str(logs),
        "run_file": str(folder / "run.yaml"),
        "exit_finished": EXIT_FINISHED,
        "exit_stopped": EXIT_STOPPED,
        "exit_failed": EXIT_FAILED,
    }
    for line in (str(folder), *plan.options):
        if not is_one_line(line):
            raise InputError(t("{text!r} would be more than one line of the job script", text=line))
    script = _fill(template, values)
    if is_shell(script) and (problem := shell_problem(script)) is not None:
        raise InputError(t("the job script of {template}: bash cannot read it: {problem}", template=template, problem=problem))
    return script


def _fill(template: Path, values: dict[str, Any]) -> str:
    # A shell script is no HTML; values are quoted where they stand.
    environment = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False
    )
    environment.filters["quote"] = shlex.quote
    given = f"--slurm_template {template}"
    try:
        text = read_text(template, MAX_TEMPLATE_BYTES)
        if template != TEMPLATE and (what := find_secret(text)) is not None:
            raise InputError(refusal(given, what, "slurm_template"))
        return environment.from_string(text).render(values)
    except FileNotFoundError:
        raise InputError(t("{given}: there is no such file", given=given)) from None
    except jinja2.TemplateError as error:
        raise InputError(
            t("{given}: {reason}; known variables: {known}", given=given, reason=error, known=", ".join(values))
        ) from None


def script_of(experiment_dir: Path) -> Path:
    return experiment_dir / "job.sbatch"


def seconds_of(time_limit: str) -> int | None:
    """Seconds of Slurm's `minutes`, `minutes:seconds`, `h:mm:ss`, `d-h`, `d-h:mm` or `d-h:mm:ss`; None: not such a text."""
    match = TIME_LIMIT.fullmatch(time_limit)
    if match is None:
        return None
    parts = [int(part) for part in match["clock"].split(":")]
    if match["days"] is not None:
        hours, minutes, seconds = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, [*parts, 0][:2]
    return ((int(match["days"] or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _partition(config: RunConfig, cluster: Cluster, plan: JobPlan) -> Partition | None:
    asked, default = cluster.find_partition(config.partition), cluster.default_partition
    names = ", ".join(partition.name for partition in cluster.partitions)
    if asked is None and config.partition == RunConfig.partition and default is not None:
        plan.notes.append(
            t(
                "the cluster has no partition {asked}; the job goes to its default one, {default} (all: {names})",
                asked=config.partition,
                default=default.name,
                names=names,
            )
        )
        asked = default
    if asked is None:
        plan.problems.append(
            t("--partition {asked}: the cluster has no such partition; it has {names}", asked=config.partition, names=names)
        )
        return None
    if not asked.is_up:
        plan.problems.append(t("--partition {asked}: is down; the cluster has {names}", asked=asked.name, names=names))
    if config.num_nodes > asked.num_nodes:
        plan.problems.append(
            t(
                "--num_nodes {asked}: partition {partition} has {found} node{found:s}",
                asked=config.num_nodes,
                partition=asked.name,
                found=asked.num_nodes,
            )
        )
    return asked


def _account(config: RunConfig, cluster: Cluster, plan: JobPlan) -> list[str]:
    if cluster.accounts is None:
        plan.notes.append(t("the cluster keeps no accounts; --account {asked} is left out", asked=config.account))
        return []
    if config.account in cluster.accounts:
        return [f"--account={config.account}"]
    names = ", ".join(cluster.accounts) or t("none")
    if config.account == RunConfig.account:
        plan.notes.append(
            t(
                "you have no account {asked} here; the job gets your default one (yours: {names})",
                asked=config.account,
                names=names,
            )
        )
    else:
        plan.problems.append(t("--account {asked}: not one of yours; you have {names}", asked=config.account, names=names))
    return []


def _gpu_options(
    config: RunConfig, cluster: Cluster, partition: Partition | None, extra: list[str], plan: JobPlan
) -> list[str]:
    found = partition.gpus_per_node if partition else 0
    asked = config.gpu_request
    if any(GPU_OPTION.match(word) for word in extra):
        if asked not in ("auto", "none"):
            plan.problems.append(t("--gpu_request {asked}: --sbatch_options asks for GPUs already", asked=asked))
        return []
    if asked == "none" or (asked == "auto" and found == 0):
        return []
    if found and config.num_gpus > found and partition is not None:
        plan.problems.append(
            t(
                "--num_gpus {asked}: the nodes of partition {partition} have {found} GPU{found:s}; give --num_gpus "
                "{found} and more "
                "--num_nodes",
                asked=config.num_gpus,
                partition=partition.name,
                found=found,
            )
        )
    if asked == "auto":  # only this plugin of Slurm counts GPUs by itself
        asked = "gpus-per-node" if "cons_tres" in cluster.config.get("SelectType", "") else "gres"
    return [GPU_REQUESTS[asked].format(count=config.num_gpus)]


def _cpus(config: RunConfig, partition: Partition | None, on_gpu: bool) -> int:
    """The GPUs' share of the node's CPUs; without GPUs one CPU for each process."""
    if not on_gpu or partition is None or partition.gpus_per_node == 0:
        return config.num_gpus
    return max(1, partition.cpus_per_node * config.num_gpus // partition.gpus_per_node)


def _cpu_note(config: RunConfig, partition: Partition | None) -> str:
    if config.gpu_request == "none":
        return t(
            "--gpu_request none: --num_gpus {count} means {count} CPU process{count:es} on each node", count=config.num_gpus
        )
    return t(
        "Slurm knows no GPU in partition {partition}: --num_gpus {count} means {count} CPU process{count:es} on each "
        "node (GPUs that "
        "Slurm does not list: --gpu_request gres)",
        partition=partition.name if partition else config.partition,
        count=config.num_gpus,
    )


def _check_time(config: RunConfig, plan: JobPlan) -> None:
    if config.time is None:
        return
    limit = seconds_of(config.time)
    if limit is None:
        plan.problems.append(
            t(
                "--time {given}: not a time limit of Slurm; write minutes, hours:minutes:seconds or days-hours",
                given=config.time,
            )
        )
    elif limit and limit <= config.save_time_s:
        plan.problems.append(
            t(
                "--time {given}: the job would be told to save at once, because --save_time_s is {seconds}; give more time, or "
                "fewer seconds",
                given=config.time,
                seconds=config.save_time_s,
            )
        )


def _check_environment(config: RunConfig, plan: JobPlan) -> None:
    try:
        assignments = _assignments(config.environment)
    except ValueError as error:
        plan.problems.append(t("--{name} {text!r}: {reason}", name="environment", text=config.environment, reason=error))
        return
    wrong = [name for name, value in assignments if value is None]
    plan.problems.extend(t("--environment: {word!r} is not NAME=VALUE", word=name) for name in wrong)


def _assignments(text: str | None) -> list[tuple[str, str | None]]:
    pairs = [word.partition("=") for word in shlex.split(text or "")]
    return [(name, value if equals and VARIABLE_NAME.fullmatch(name) else None) for name, equals, value in pairs]


def _words(name: str, text: str | None, plan: JobPlan) -> list[str]:
    """Options in one text, one for each line of the script: `--mail-type END -x node1` is `--mail-type=END` and `-xnode1`."""
    try:
        words = shlex.split(text or "")
    except ValueError as error:
        plan.problems.append(t("--{name} {text!r}: {reason}", name=name, text=text, reason=error))
        return []
    options: list[str] = []
    waits = False  # for the value of the option before
    for word in words:
        if word.startswith("-"):
            options.append(word)
            waits = "=" not in word and (word.startswith("--") or len(word) == 2)
        elif waits:
            options[-1] += f"={word}" if options[-1].startswith("--") else word
            waits = False
        else:
            plan.problems.append(t("--{name} {text!r}: {word!r} belongs to no option", name=name, text=text, word=word))
    return options


def _step_command(run: Run, plan: JobPlan) -> list[str]:
    """The step's command in pieces, each for a line of the script."""
    for_srun, around = container_command(plan.container, run, folders_of(run))
    python = run.config.python or (sys.executable if plan.container.runtime == "none" else "python3")
    # An image may set PYTHONPATH itself, so it is given inside the container.
    inside = ["env", f"PYTHONPATH={code_folder(Path(run.experiment_dir))}", "PYTHONUNBUFFERED=1"]
    if plan.container.runtime != "none":
        inside.append("PYTHONNOUSERSITE=1")  # packages of the home folder would hide the image's
    node = [python, "-m", "finetuning.launch.slurm", str(Path(run.experiment_dir) / "run.yaml")]
    # srun does not take the CPUs over from sbatch since Slurm 22.05.
    srun = ["srun", "--kill-on-bad-exit=1", "--mpi=none", "--input=none", '--cpus-per-task="$SLURM_CPUS_PER_TASK"']
    pieces = [" ".join(srun), *map(shlex.quote, for_srun)]
    return [*pieces, *([shlex.join(around)] if around else []), shlex.join(inside), shlex.join(node)]


def code_folder(experiment_dir: Path) -> Path:
    """The folder to import this package from: where it lies, or, for an installed one, a folder with a link to it alone,
    because its neighbors there are packages for this Python and not for a container's."""
    folder = package_folder().parent
    return experiment_dir / ".code" if folder.name in ("site-packages", "dist-packages") else folder
