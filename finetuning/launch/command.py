"""`finetune train`: prepare, show, start, wait, report."""

import dataclasses
import fcntl
import os
import shlex
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console

from finetuning.checkpoint.store import remove_incomplete
from finetuning.config import Run, RunConfig, write_run
from finetuning.errors import EXIT_FAILED, EXIT_FINISHED, EXIT_STOPPED, InputError
from finetuning.failures import clear_failures, first_failure
from finetuning.i18n import t
from finetuning.launch.check import check_settings
from finetuning.launch.data_report import write_data_report
from finetuning.launch.local import run_workers, torchrun_command
from finetuning.launch.prepare import Prepared, prepare
from finetuning.launch.screens import show_end, show_start
from finetuning.status import FAILED, FINISHED, STARTING, STOPPED, read_status, write_status

LOG_LINES_SHOWN = 20
LOCK_FILE = ".lock"
TOKENS_FOLDER = ".tokens"  # of all experiments beside it: tokens are named by what they were made from


def launch(config: RunConfig, token: str | None, *, dryrun: bool) -> int:
    """Carries the command out and returns its exit code.

    Raises:
        InputError: nothing was started.
    """
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    config = _with_home_folder(config)
    experiment_dir = (Path(config.experiments_dir) / config.experiment).resolve()
    # With a wrong setting, a name that is no folder's among them, everything else is checked as well, but nothing written.
    if dryrun or check_settings(config):
        return _show_only(config, token, experiment_dir, console)
    is_new = not experiment_dir.exists()
    try:
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
                t("experiment {name} is running already (see {folder}); wait for it, or give another --experiment name",
                  name=config.experiment, folder=experiment_dir)
            ) from None  # fmt: skip
        try:
            return _run(config, token, experiment_dir, console, lock.fileno())
        except InputError:
            if is_new:
                _remove_empty(experiment_dir)
            raise


def _run(config: RunConfig, token: str | None, experiment_dir: Path, console: Console, lock_descriptor: int) -> int:
    prepared = prepare(config, token, experiment_dir, experiment_dir.parent / TOKENS_FOLDER, with_weights=True)
    run = prepared.run
    if prepared.start.finished_at is not None:
        _say_finished(console, prepared)
        return EXIT_FINISHED
    logs = experiment_dir / "logs"
    logs.mkdir(exist_ok=True)
    checkpoints = experiment_dir / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    remove_incomplete(checkpoints)
    clear_failures(logs)
    write_data_report(prepared, experiment_dir / "data")
    show_start(console, prepared, _gpu_memory_gib(run))
    run_file = experiment_dir / "run.yaml"
    write_run(run, run_file)
    step = prepared.start.checkpoint.step if prepared.start.checkpoint else 0
    write_status(
        experiment_dir,
        STARTING,
        step=step,
        max_steps=run.max_steps,
        reason=None,
        exit_code=None,
        saved=None,
        launcher_pid=os.getpid(),
    )
    console.print(t("starting {count} processes …", count=config.num_gpus))
    _, stop_asked = run_workers(run_file, config.num_gpus, logs, lock_descriptor)
    return _report(run, experiment_dir, console, stop_asked)


def _report(run: Run, experiment_dir: Path, console: Console, stop_asked: bool) -> int:
    """Says how it ended, from what the workers left behind; returns the exit code."""
    logs = experiment_dir / "logs"
    failure = first_failure(logs)
    state = read_status(experiment_dir).get("state")
    if failure is None and state == FINISHED:
        show_end(console, run)
        return EXIT_FINISHED
    if failure is None and (state == STOPPED or (stop_asked and state == STARTING)):  # STARTING: they could not listen yet
        status = read_status(experiment_dir)
        write_status(experiment_dir, STOPPED, exit_code=EXIT_STOPPED)
        if status.get("saved") is None:  # else the worker has said what it saved
            console.print(t("stopped; run the same command to go on"))
        return EXIT_STOPPED
    if failure is not None:
        reason, log = failure["message"], logs / f"rank_{failure['rank']}.log"
        head = t("Rank {rank} failed: {reason}", rank=failure["rank"], reason=reason)
    else:
        log = logs / "torchrun.log"
        reason = t("a worker process was killed, or could not start (out of memory? see the last lines of {log})", log=log)
        head = reason
    write_status(experiment_dir, FAILED, reason=reason, exit_code=EXIT_FAILED, ended_at=time.time())
    errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
    errors.print(head, style="bold red")
    if failure is None and log.is_file():
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES_SHOWN:]
        errors.print("\n".join(lines))
    errors.print(t("log: {log}", log=log))
    return EXIT_FAILED


def _show_only(config: RunConfig, token: str | None, experiment_dir: Path, console: Console) -> int:
    """The resolved run and the command that would start it; nothing is started and no folder is made."""
    with tempfile.TemporaryDirectory() as scratch:
        prepared = prepare(config, token, experiment_dir, Path(scratch), with_weights=Path(config.hf_model_id).is_dir())
        show_start(console, prepared, _gpu_memory_gib(prepared.run))
        if prepared.start.finished_at is not None:
            _say_finished(console, prepared)
        run_file = Path(scratch) / "run.yaml"
        tokens_dir = experiment_dir.parent / TOKENS_FOLDER / Path(prepared.run.tokens_dir).name
        write_run(dataclasses.replace(prepared.run, tokens_dir=str(tokens_dir)), run_file)
        console.print("\n# run.yaml")
        console.print(run_file.read_text(encoding="utf-8"))
    command = torchrun_command(experiment_dir / "run.yaml", config.num_gpus)
    console.print(shlex.join(["torchrun", *command[3:]]))
    return EXIT_FINISHED


def _say_finished(console: Console, prepared: Prepared) -> None:
    config, folder = prepared.run.config, Path(prepared.run.experiment_dir)
    console.print(
        t("experiment {name} has finished: {done} of {max_steps} steps; its result is in {export}. To train on, give a "
          "larger --max_steps; to train again, another --experiment name.", name=config.experiment,
          done=prepared.start.finished_at, max_steps=prepared.run.max_steps, export=folder / "export")
    )  # fmt: skip


def _with_home_folder(config: RunConfig) -> RunConfig:
    """A shell leaves the ~ in `--flag=~/folder` and in a file of settings as it is."""
    named = ("hf_model_id", "dataset_path", "experiments_dir", "restore_config")
    given = {name: getattr(config, name) for name in named}
    return dataclasses.replace(config, **{name: os.path.expanduser(path) for name, path in given.items() if path})  # noqa: PTH111


def _remove_empty(experiment_dir: Path) -> None:
    """Takes a new folder away again where nothing but the lock has come into it."""
    if [path.name for path in experiment_dir.iterdir()] == [LOCK_FILE]:
        (experiment_dir / LOCK_FILE).unlink()
        experiment_dir.rmdir()


def _gpu_memory_gib(run: Run) -> float | None:
    return torch.cuda.get_device_properties(0).total_memory / 2**30 if run.device == "cuda" else None
