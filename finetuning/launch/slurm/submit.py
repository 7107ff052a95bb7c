"""`--executor slurm`: writes the job script, submits it and follows the job to its end."""

import sys
from pathlib import Path

from rich.console import Console

from finetuning.config.run import Run
from finetuning.config.settings import RunConfig
from finetuning.errors import EXIT_STOPPED, InputError
from finetuning.files.atomic import PRIVATE, write_text
from finetuning.i18n import t
from finetuning.launch.outcome import Outcome, decide_outcome, newest_checkpoint, record_outcome
from finetuning.launch.slurm.cluster import read_cluster
from finetuning.launch.slurm.container import package_folder
from finetuning.launch.slurm.follow import follow
from finetuning.launch.slurm.job import JobState, is_live, secret_variables, submit
from finetuning.launch.slurm.job_script import JobPlan, code_folder, plan_job, script_of
from finetuning.runtime.status import LIVE_STATES, QUEUED, STOPPED, read_status, write_status


def plan_for(config: RunConfig) -> JobPlan:
    """The plan of the job; where no cluster can be asked, that is its problem."""
    try:
        plan = plan_job(config, read_cluster())
    except InputError as error:
        return JobPlan(gpus_per_node=config.num_gpus, problems=error.problems)
    for name in secret_variables():
        plan.notes.append(t("{name} is not passed to the job; log in with the tool that needs it (wandb login)", name=name))
    return plan


def refuse_live_job(experiment_dir: Path, name: str) -> None:
    """
    Raises:
        InputError: a Slurm job of this experiment waits or runs.
    """
    status = read_status(experiment_dir)
    job_id = status.get("job_id")
    if job_id is not None and status["state"] in LIVE_STATES and is_live(job_id):
        raise InputError(
            t(
                "experiment {name} is job {job} already; see it with `finetune logs {name}`, end it with `finetune cancel "
                "{name}`, or give another --experiment name",
                name=name,
                job=job_id,
            )
        )


def submit_job(run: Run, job_script: str, step: int, console: Console) -> str:
    """Writes the script, submits it, and returns the job's id."""
    folder = Path(run.experiment_dir)
    script = script_of(folder)
    write_text(script, job_script, mode=PRIVATE)
    code = code_folder(folder)
    if code.parent == folder:
        code.mkdir(exist_ok=True)
        link = code / package_folder().name
        link.unlink(missing_ok=True)
        link.symlink_to(package_folder())
    job_id = submit(script)
    write_status(
        folder,
        QUEUED,
        step=step,
        max_steps=run.max_steps,
        reason=None,
        exit_code=None,
        job_id=job_id,
        saved=None,
        launcher_pid=None,
        restarts=0,
    )
    console.print(t("submitted job {job} ({script})", job=job_id, script=script))
    return job_id


def follow_to_the_end(run: Run, job_id: str, console: Console) -> Outcome | None:
    """Shows the job's log until its end, and what became of it; None: Ctrl-C ended the watching, not the job."""
    folder, name = Path(run.experiment_dir), run.config.experiment
    console.print(t("following its log; Ctrl-C ends only that, the job goes on"))
    try:
        state = follow(job_id, job_log(folder, job_id), console, sys.stdout)
    except KeyboardInterrupt:
        console.print(
            t(
                "job {job} goes on; `finetune status {name}`, `finetune logs {name}`, `finetune cancel {name}`",
                job=job_id,
                name=name,
            )
        )
        return None
    outcome = outcome_of_job(folder, job_id, state)
    record_outcome(folder, outcome)
    return outcome


def outcome_of_job(experiment_dir: Path, job_id: str, state: JobState) -> Outcome:
    """How a job ended that Slurm says has ended."""
    log = job_log(experiment_dir, job_id)
    status = read_status(experiment_dir)
    if state.name == "CANCELLED" and status.get("state") == QUEUED:
        return Outcome(STOPPED, EXIT_STOPPED, t("job {job} was cancelled", job=job_id))
    unexplained = {
        "CANCELLED": t(
            "job {job} was cancelled before it could save; {checkpoint}",
            job=job_id,
            checkpoint=newest_checkpoint(experiment_dir),
        ),
        "TIMEOUT": t("job {job} reached its time limit before it had saved; give a larger --save_time_s", job=job_id),
        "OUT_OF_MEMORY": t("job {job} used more memory of the node than it had asked for; give more --mem", job=job_id),
        "NODE_FAIL": t("a node of job {job} failed", job=job_id),
        "PREEMPTED": t("job {job} had to give way to another before it had saved", job=job_id),
    }.get(state.name, t("job {job} ended as {state} without saying why", job=job_id, state=state.name))
    return decide_outcome(experiment_dir, log=log, unexplained=unexplained)


def job_log(experiment_dir: Path, job_id: str) -> Path:
    return experiment_dir / "logs" / f"slurm-{job_id}.out"
