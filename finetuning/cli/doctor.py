"""`finetune doctor`: what would stop a run here, each with what to do; with --slurm also on nodes of the cluster."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from finetuning.cli.common_flags import verb_parser
from finetuning.config.settings import RunConfig
from finetuning.errors import EXIT_FAILED, EXIT_FINISHED
from finetuning.i18n import t
from finetuning.launch.doctor import BAD, GOOD, NOTE, Finding, examine_all
from finetuning.launch.experiments import DEFAULT_FOLDER
from finetuning.launch.slurm.container import package_folder
from finetuning.launch.slurm.gpu_memory import record_measured
from finetuning.launch.slurm.job import job_environment
from finetuning.launch.slurm.submit import plan_for
from finetuning.terminal import open_console

SUBJECT_WIDTH = 14
COLOURS = {GOOD: "green", NOTE: "yellow", BAD: "bold red"}
ALLOCATION_MINUTES = 5


def main(argv: Sequence[str]) -> int:
    parser = verb_parser("doctor", t("What would stop a run here, and what to do about it."))
    parser.add_argument(
        "--slurm", action="store_true", help=t("look at nodes of the cluster too, in an allocation of five minutes")
    )
    parser.add_argument("-a", "--account", default=RunConfig.account, help=t("Slurm account"))
    parser.add_argument("-p", "--partition", default=RunConfig.partition, help=t("Slurm partition"))
    parser.add_argument("-N", "--num_nodes", type=int, default=2, help=t("nodes to look at (default: 2)"))
    parser.add_argument("--experiments_dir", default=DEFAULT_FOLDER, type=Path, help=t("folder that holds the experiments"))
    given = parser.parse_args(argv)
    console = open_console()
    worst = _show(console, examine_all(given.experiments_dir))
    if given.slurm:
        worst |= _show(console, examine_nodes(given.experiments_dir, given.account, given.partition, given.num_nodes))
    if BAD in worst:
        console.print(t("a run would fail here; see the red lines"))
        return EXIT_FAILED
    console.print(t("nothing here would stop a run"))
    return EXIT_FINISHED


def examine_nodes(experiments_dir: Path, account: str, partition: str, num_nodes: int) -> Iterator[Finding]:
    """Runs the node part in a small allocation and yields what the nodes found, those that answered and those that did not."""
    config = RunConfig(
        hf_model_id="",
        dataset_path="",
        executor="slurm",
        account=account,
        partition=partition,
        num_nodes=num_nodes,
        num_gpus=1,
        container_image="none",
        save_time_s=30,
    )
    plan = plan_for(config)
    for problem in plan.problems:
        yield Finding(BAD, t("allocation"), problem)
    if plan.problems:
        return
    gpus = []
    experiments_dir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".doctor-", dir=experiments_dir)).resolve()
    try:
        options = [word for word in plan.options if not word.startswith(("--signal", "--requeue", "--open-mode", "--mem=0"))]
        inside = [
            "env",
            f"PYTHONPATH={package_folder().parent}",
            sys.executable,
            "-m",
            "finetuning.launch.doctor_node",
            str(folder),
        ]
        command = ["srun", "--mpi=none", "--input=none", f"--time={ALLOCATION_MINUTES}", *options, *inside]
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=job_environment())
        for node in range(num_nodes):
            file = folder / f"node_{node}.json"
            if not file.is_file():
                last = (result.stderr.strip().splitlines() or [t("exit code {code}", code=result.returncode)])[-1]
                yield Finding(
                    BAD,
                    t("node {node}", node=node),
                    t("left no answer in {folder}: {reason}", folder=folder, reason=last),
                    t("all nodes must share --experiments_dir and this Python environment"),
                )
                continue
            record = json.loads(file.read_text(encoding="utf-8"))
            gpus += [record["gpu"]] if record["gpu"] is not None else []
            for found in record["findings"]:
                yield Finding(found["level"], record["host"], f"{found['subject']} {found['text']}", found["advice"])
        if gpus:
            least = min(gpus, key=lambda gpu: gpu["gib"])
            record_measured(experiments_dir, plan.partition, least["gib"], least["name"])
            text = t(
                "{gib:.0f} GiB each; jobs of partition {partition} are planned with it",
                gib=least["gib"],
                partition=plan.partition,
            )
            yield Finding(GOOD, "GPU", text)
    finally:
        shutil.rmtree(folder)


def _show(console: Console, findings: Iterable[Finding]) -> set[str]:
    """Prints them as they come, and returns the levels that occurred."""
    levels = set()
    for finding in findings:
        levels.add(finding.level)
        console.print(f"{finding.level:<5}", style=COLOURS[finding.level], end="")
        console.print(f"{finding.subject:<{SUBJECT_WIDTH}}{finding.text}")
        if finding.advice:
            console.print(" " * (5 + SUBJECT_WIDTH) + "→ " + finding.advice)
    return levels
