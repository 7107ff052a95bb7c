"""`finetune train`: prepare, show, start, wait, report."""

import dataclasses
import fcntl
import os
import shlex
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from finetuning.cli.train_screens import show_end, show_start
from finetuning.config.rules import check_settings
from finetuning.config.run import Run, write_run
from finetuning.config.secrets import refuse_secrets
from finetuning.config.settings import RunConfig
from finetuning.data.sample_texts import first_samples, write_samples
from finetuning.data.tokens.prune import TOKENS_FOLDER
from finetuning.errors import EXIT_FINISHED, EXIT_INTERRUPTED, InputError
from finetuning.files.atomic import remove_incomplete, temporary_folder
from finetuning.files.reserve import reserve_room
from finetuning.i18n import t
from finetuning.launch.data_report import write_data_report
from finetuning.launch.expected import write_expected
from finetuning.launch.outcome import Outcome, decide_outcome, newest_checkpoint, record_outcome, show_failure
from finetuning.launch.prepare import Prepared, prepare
from finetuning.launch.slurm.container import package_folder
from finetuning.launch.slurm.job_script import JobPlan, render_job, script_of
from finetuning.launch.slurm.submit import follow_to_the_end, plan_for, refuse_live_job, submit_job
from finetuning.launch.stop_requests import StopRequests
from finetuning.launch.torchrun import STOP_SIGNALS, run_workers, torchrun_command, torchrun_command_of_node
from finetuning.runtime.failures import clear_failures
from finetuning.runtime.network import own_address
from finetuning.runtime.status import FINISHED, QUEUED, STARTING, STOPPED, read_status, write_status
from finetuning.terminal import open_console
from finetuning.training.delivery import deliver_rest

LOCK_FILE = ".lock"
PORT_BY_HAND = 29500  # torchrun's own


def launch(config: RunConfig, token: str | None, *, dryrun: bool, detach: bool = False) -> int:
    """Carries the command out and returns its exit code; with `detach`, a Slurm job is submitted and not followed.

    Raises:
        InputError: nothing was started.
    """
    console = open_console()
    config = _with_home_folder(config)
    refuse_secrets(dataclasses.asdict(config), token)
    if detach and config.executor != "slurm":
        raise InputError(t("--detach has no effect without --executor slurm"))
    try:
        experiment_dir = (Path(config.experiments_dir) / config.experiment).resolve()
    except RuntimeError as error:  # as Python 3.11 and 3.12 say that links lead in a circle
        raise InputError(t("cannot write to {folder}: {reason}", folder=config.experiments_dir, reason=error)) from None
    # With a wrong setting, a name that is no folder's among them, everything else is checked as well, but nothing written.
    job = plan_for(config) if config.executor == "slurm" else None
    if dryrun or check_settings(config) or (job is not None and (job.problems or job.unknown_memory)):
        return _show_only(config, token, experiment_dir, console, job)
    try:
        new = [folder for folder in (experiment_dir, experiment_dir.parent) if not folder.exists()]
        experiment_dir.mkdir(parents=True, exist_ok=True)
        lock = (experiment_dir / LOCK_FILE).open("a")
    except OSError as error:
        raise InputError(
            t("cannot write to {folder}: {reason}", folder=experiment_dir, reason=error.strerror or error)
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                t(
                    "experiment {name} is running already (see {folder}); wait for it, or give another --experiment name",
                    name=config.experiment,
                    folder=experiment_dir,
                )
            ) from None
        try:
            refuse_live_job(experiment_dir, config.experiment)
            return _run(config, token, experiment_dir, console, lock.fileno(), job, detach)
        except BaseException:  # a signal as well
            _remove_empty(new)
            raise


def _run(
    config: RunConfig,
    token: str | None,
    experiment_dir: Path,
    console: Console,
    lock_descriptor: int,
    job: JobPlan | None,
    detach: bool,
) -> int:
    _clear_leftovers(experiment_dir)  # first: what a full disk has left half-written may be all that fills it
    prepared = prepare(config, token, experiment_dir, experiment_dir.parent / TOKENS_FOLDER, with_weights=True, job=job)
    run = prepared.run
    if prepared.start.finished_at is not None:
        _say_finished(console, prepared)
        deliver_rest(run, prepared.start.finished_at, console.print)
        return EXIT_FINISHED
    job_script = render_job(run, job) if job is not None else None
    logs = experiment_dir / "logs"
    logs.mkdir(exist_ok=True)
    checkpoints = experiment_dir / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    reserve_room(experiment_dir)
    clear_failures(logs)
    write_data_report(prepared, experiment_dir / "data")
    write_samples(experiment_dir / "data", first_samples(prepared.dataset.splits, run))
    show_start(console, prepared)
    run_file = experiment_dir / "run.yaml"
    write_run(run, run_file)
    write_expected(experiment_dir, prepared.outlook)
    step = prepared.start.checkpoint.step if prepared.start.checkpoint else 0
    if job_script is not None:
        job_id = submit_job(run, job_script, step, console)
        if detach:
            _say_commands(console, config.experiment)
            return EXIT_FINISHED
        followed = follow_to_the_end(run, job_id, console)
        return EXIT_INTERRUPTED if followed is None else _report(run, followed, console)
    facts: dict[str, Any] = {
        "step": step,
        "max_steps": run.max_steps,
        "exit_code": None,
        "job_id": None,
        "saved": None,
        "spent": None,
    }
    facts["host"] = os.uname().nodename
    if config.num_nodes > 1:
        write_status(experiment_dir, QUEUED, reason=t("to be started by hand on each machine"), launcher_pid=None, **facts)
        _print_lines_for_machines(console, run_file, config)
        return EXIT_FINISHED
    with StopRequests(STOP_SIGNALS, can_kill=True) as stop:
        write_status(experiment_dir, STARTING, reason=None, launcher_pid=os.getpid(), **facts)
        console.print(t("starting {count} process{count:es} …", count=config.num_gpus))
        ended = run_workers(run_file, config.num_gpus, logs, lock_descriptor, stop, config.stall_timeout_s)
        outcome = decide_outcome(
            experiment_dir,
            log=logs / "torchrun.log",
            stop_asked=bool(stop.received),
            nothing_lost=ended.nothing_lost,
            killed=stop.kill,
        )
        record_outcome(experiment_dir, outcome)
        return _report(run, outcome, console)


def _report(run: Run, outcome: Outcome, console: Console) -> int:
    """Says how it ended and returns the exit code."""
    if outcome.state == FINISHED:
        show_end(console, run)
    elif outcome.state == STOPPED:
        if outcome.exit_code == EXIT_INTERRUPTED:
            console.print(outcome.reason)
        if read_status(Path(run.experiment_dir)).get("saved") is None:  # else the worker has said what it saved
            console.print(t("stopped; run the same command to go on"))
    else:
        show_failure(outcome)
        if Path(run.experiment_dir).is_dir():
            console.print(newest_checkpoint(Path(run.experiment_dir)))
    return outcome.exit_code


def _show_only(config: RunConfig, token: str | None, experiment_dir: Path, console: Console, job: JobPlan | None) -> int:
    """The resolved run and the command that would start it; nothing is started and no folder is made."""
    with tempfile.TemporaryDirectory(dir=temporary_folder()) as scratch:
        with_weights = Path(config.hf_model_id).is_dir() or config.nemo_model is not None
        prepared = prepare(config, token, experiment_dir, Path(scratch), with_weights=with_weights, job=job)
        show_start(console, prepared)
        if prepared.start.finished_at is not None:
            _say_finished(console, prepared)
        run_file = Path(scratch) / "run.yaml"
        tokens_dir = experiment_dir.parent / TOKENS_FOLDER / Path(prepared.run.tokens_dir).name
        run = dataclasses.replace(prepared.run, tokens_dir=str(tokens_dir))
        write_run(run, run_file)
        console.print("\n# run.yaml")
        console.print(run_file.read_text(encoding="utf-8"))
    if job is not None:
        console.print(f"# {script_of(experiment_dir).name}")
        console.print(render_job(run, job))
    elif config.num_nodes > 1:
        _print_lines_for_machines(console, experiment_dir / "run.yaml", config)
    else:
        command = torchrun_command(experiment_dir / "run.yaml", config.num_gpus)
        console.print(shlex.join(["torchrun", *command[3:]]))
    return EXIT_FINISHED


def _print_lines_for_machines(console: Console, run_file: Path, config: RunConfig) -> None:
    """One line for each machine, to be pasted there."""
    address = own_address()
    console.print(
        t(
            "# One line for each machine; this one, {address}, is the first. All of them see {folder} and have this Python "
            "environment. The command without --dryrun writes run.yaml and the data.",
            address=address,
            folder=run_file.parent,
        )
    )
    for node in range(config.num_nodes):
        command = torchrun_command_of_node(
            run_file, config.num_gpus, num_nodes=config.num_nodes, node=str(node), first_node=address, port=PORT_BY_HAND
        )
        console.print(shlex.join(["env", f"PYTHONPATH={package_folder().parent}", *command]))


def _say_commands(console: Console, name: str) -> None:
    console.print(
        t("status: finetune status {name} · its log: finetune logs {name} · end it: finetune cancel {name}", name=name)
    )


def _say_finished(console: Console, prepared: Prepared) -> None:
    config, folder = prepared.run.config, Path(prepared.run.experiment_dir)
    early = (prepared.start.finished_at or 0) < prepared.run.max_steps
    console.print(
        t(
            "experiment {name} has finished: {done} of {max_steps} step{max_steps:s}; its result is in {export}. To "
            "train on, give a "
            "larger {flag}; to train again, another --experiment name.",
            name=config.experiment,
            done=prepared.start.finished_at,
            max_steps=prepared.run.max_steps,
            export=folder / "export",
            flag="--early_stopping" if early else "--max_steps",
        )
    )


def _with_home_folder(config: RunConfig) -> RunConfig:
    """A shell leaves the ~ in `--flag=~/folder` and in a file of settings as it is."""
    named = ("hf_model_id", "nemo_model", "dataset_path", "experiments_dir", "restore_config")
    given = {name: getattr(config, name) for name in named}
    return dataclasses.replace(config, **{name: os.path.expanduser(path) for name, path in given.items() if path})  # noqa: PTH111


def _clear_leftovers(experiment_dir: Path) -> None:
    """Of processes that were killed, of this version and of those before 0.2."""
    remove_incomplete(experiment_dir, ".status.json-*", "metrics.tmp")
    remove_incomplete(experiment_dir / "checkpoints", ".latest-*", ".best-*")
    remove_incomplete(experiment_dir / "logs", ".rank_*.error-*")
    for folder in (experiment_dir / "results", experiment_dir / "data"):
        remove_incomplete(folder)


def _remove_empty(folders: list[Path]) -> None:
    """Takes new folders away again, the innermost first, where nothing but the lock has come into them."""
    for folder in folders:
        if {path.name for path in folder.iterdir()} <= {LOCK_FILE}:
            (folder / LOCK_FILE).unlink(missing_ok=True)
            folder.rmdir()
