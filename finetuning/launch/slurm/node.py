"""The part of a Slurm job that runs on each node: `srun … python -m finetuning.launch.slurm experiments/NAME/run.yaml`.

Starts torchrun for the workers of this node, passes Slurm's signals on to them and, on the first node, writes how it ended:
into `status.json`, and in one word for the job script. Works in and outside a container, where there may be no Slurm command.
"""

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from finetuning.config.run import Run, read_run
from finetuning.errors import EXIT_FAILED, EXIT_FINISHED, RunError
from finetuning.i18n import set_language, t
from finetuning.launch.outcome import Outcome, decide_outcome, record_outcome, saved_step
from finetuning.launch.stop_requests import StopRequests
from finetuning.launch.torchrun import torchrun_command_of_node, worker_environment
from finetuning.launch.workers import Workers
from finetuning.runtime.failures import clear_failures
from finetuning.runtime.network import choose_interface, port_of_job, rendezvous_address
from finetuning.runtime.status import FAILED, FINISHED, QUEUED, STARTING, write_status

FILE_WAIT_S = 120  # network file systems show a new file to other nodes after up to a minute
STARTS_WITHOUT_PROGRESS = 3
# SIGUSR1 is the warning before the time limit, SIGTERM comes from scancel and preemption, SIGINT from `finetune cancel`.
STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


def main(argv: Sequence[str]) -> int:
    """Runs this node's part of the job and returns its exit code, 0 also when it was stopped."""
    run_file = Path(argv[0])
    node = int(os.environ["SLURM_NODEID"])
    try:
        wait_for_file(run_file, node)
        run = read_run(run_file)
        set_language(run.config.lang)
        return Node(run, run_file, node).work()
    except RunError as error:
        print(t("node {node}: {reason}", node=node, reason=error), file=sys.stderr)
        return EXIT_FAILED


def wait_for_file(path: Path, node: int, wait_s: float = FILE_WAIT_S) -> None:
    """Waits until a file that the launching machine wrote can be read here.

    Raises:
        RunError: it does not appear.
    """
    deadline = time.monotonic() + wait_s
    while not path.is_file():
        if time.monotonic() > deadline:
            raise RunError(
                t(
                    "{path} cannot be seen on {host} after {seconds:.0f} s; the experiment folder must be on a file system "
                    "that all nodes share (--experiments_dir)",
                    path=path,
                    host=os.uname().nodename,
                    seconds=wait_s,
                )
            )
        if path.parent.is_dir():
            list(path.parent.iterdir())  # makes NFS look again
        time.sleep(min(1.0, wait_s / 10))


class Node:
    """One node of the job; the first one keeps the books."""

    def __init__(self, run: Run, run_file: Path, node: int):
        self.run, self.run_file, self.node = run, run_file, node
        self.folder = Path(run.experiment_dir)
        self.logs = self.folder / "logs"
        self.job_id = os.environ["SLURM_JOB_ID"]
        self.restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        self.addresses = os.environ["FINETUNE_NODES"].split()
        self.log_name = f"torchrun_node{node}.log"

    def work(self) -> int:
        first_step = saved_step(self.folder)
        if self.node == 0:
            self._begin(first_step)
        environment = worker_environment(self.run.config.num_gpus)
        # Gloo would take the address that this machine's name has in /etc/hosts; NCCL looks for itself.
        choose_interface(environment, peer=self.addresses[0] if self.node else self.addresses[-1])
        config = self.run.config
        with StopRequests(STOP_SIGNALS, can_kill=False) as stop:
            first_rank = self.node * config.num_gpus
            workers = Workers(
                config.num_gpus,
                self.logs,
                self.log_name,
                stop,
                config.stall_timeout_s,
                first_rank=first_rank,
                num_nodes=config.num_nodes,
            )
            ended = workers.run(self._command(), environment)
            if self.node > 0:
                return EXIT_FINISHED if ended.code == 0 or stop.received else EXIT_FAILED
            outcome = decide_outcome(
                self.folder, log=self.logs / self.log_name, stop_asked=bool(stop.received), nothing_lost=ended.nothing_lost
            )
            # Whoever cancels a job that is saving because of its time limit does not want it to go on.
            by_weight = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
            asked = next((number for number in by_weight if number in stop.received), None)
            return self._end(outcome, asked, first_step)

    def _begin(self, first_step: int) -> None:
        """Clears what an earlier start of the experiment has left, and refuses to start over and over at the same step.

        Raises:
            RunError: the last starts of this job all began here.
        """
        clear_failures(self.logs)
        self._outcome_file().unlink(missing_ok=True)
        starts_file = self.logs / f"job-{self.job_id}.starts"
        starts = [*(starts_file.read_text().split() if starts_file.is_file() else []), str(first_step)]
        starts_file.write_text("\n".join(starts) + "\n")
        if starts[-STARTS_WITHOUT_PROGRESS:] == [str(first_step)] * STARTS_WITHOUT_PROGRESS:
            reason = t(
                "the job was started {count} time{count:s} at step {step} without getting to a checkpoint; it is not "
                "started again. "
                "Lower --save_every_n_steps, or see what ended it in {log}",
                count=STARTS_WITHOUT_PROGRESS,
                step=first_step,
                log=self.logs / f"slurm-{self.job_id}.out",
            )
            self._write_outcome("failed")
            record_outcome(self.folder, Outcome(FAILED, EXIT_FAILED, reason))
            raise RunError(reason)
        write_status(
            self.folder,
            STARTING,
            step=first_step,
            max_steps=self.run.max_steps,
            reason=None,
            exit_code=None,
            job_id=self.job_id,
            restarts=self.restarts,
            saved=None,
            launcher_pid=None,
        )

    def _command(self) -> list[str]:
        return torchrun_command_of_node(
            self.run_file,
            self.run.config.num_gpus,
            num_nodes=len(self.addresses),
            node=str(self.node),
            first_node=rendezvous_address(self.addresses[0], self.node == 0),
            port=port_of_job(int(self.job_id), self.restarts),
        )

    def _end(self, outcome: Outcome, asked: int | None, first_step: int) -> int:
        """Writes how it ended and whether the job is to go on by itself."""
        record_outcome(self.folder, outcome)
        if outcome.state in (FINISHED, FAILED):
            self._write_outcome(outcome.state)
            return outcome.exit_code
        if asked == signal.SIGTERM:
            write_status(
                self.folder, QUEUED, exit_code=None, reason=t("ended by Slurm; goes on by itself if it was not cancelled")
            )
            self._write_outcome("terminated")
            return EXIT_FINISHED
        if asked != signal.SIGUSR1:
            self._write_outcome("stopped")
            return EXIT_FINISHED
        step = saved_step(self.folder)
        if step > first_step:
            reason = t(
                "time limit: saved at step {step} of {max_steps}; the job goes on by itself",
                step=step,
                max_steps=self.run.max_steps,
            )
            write_status(self.folder, QUEUED, reason=reason, exit_code=None)
            self._write_outcome("requeue")
        else:
            reason = t(
                "time limit: nothing new was saved since step {step}, so the job does not go on by itself; give more --time, "
                "or a shorter --save_time_s",
                step=first_step,
            )
            record_outcome(self.folder, Outcome(FAILED, EXIT_FAILED, reason))
            self._write_outcome("failed")
        print(reason, flush=True)
        return EXIT_FINISHED

    def _write_outcome(self, word: str) -> None:
        self._outcome_file().write_text(word + "\n")

    def _outcome_file(self) -> Path:
        return self.logs / f"job-{self.job_id}.outcome"
