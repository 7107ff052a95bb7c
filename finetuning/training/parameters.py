"""What a tracker is told about a run besides its numbers: settings, version of the code, fingerprint of the data."""

import dataclasses
import subprocess
from pathlib import Path
from typing import Any

import finetuning
from finetuning.config.run import Run

GIT_TIMEOUT_S = 10.0
# Texts for a shell, in which people write what is not for others to read.
LEFT_OUT = {"environment", "setup", "sbatch_options", "mlflow_tracking_uri", "wandb_project", "lang"}


def parameters_of(run: Run) -> dict[str, str | int | float | bool]:
    """The settings of run.yaml, flat: what the launch has resolved over what the user asked for; None is left out.

    A part of `identity` has its name: `data` is the fingerprint of the data, `base_model` that of the weights.
    """
    values = dataclasses.asdict(run)
    config, identity, strategy = (values.pop(name) for name in ("config", "identity", "strategy"))
    found = {**config, **identity, **strategy, **values, "version": finetuning.__version__, "git_revision": git_revision()}
    return {name: _plain(value) for name, value in found.items() if value is not None and name not in LEFT_OUT}


def git_revision() -> str | None:
    """Commit of the folder this was started in, else of the checkout this package is in; `-dirty` where files differ."""
    package = Path(finetuning.__file__).parent.parent
    for folder in (Path.cwd(), *([package] if (package / ".git").exists() else [])):
        command = ["git", "-C", str(folder), "-c", "core.fsmonitor=false", "describe", "--always", "--dirty", "--abbrev=40"]
        try:
            done = subprocess.run(
                [*command, "--exclude", "*"], capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode == 0:
            return done.stdout.strip()
    return None


def _plain(value: Any) -> str | int | float | bool:
    if isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
