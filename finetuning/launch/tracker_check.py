"""Whether the trackers of a run answer, asked with their own clients on the launching machine, before anything is started.

The clients are large, so they run in a process of their own: `python -m finetuning.launch.tracker_check mlflow ADDRESS NAME`
or `… wandb` prints what is wrong, if anything.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import finetuning
from finetuning.config.settings import RunConfig
from finetuning.i18n import set_language, t
from finetuning.runtime.network import no_answer
from finetuning.training.trackers import mlflow_client, one_line

CHECK_TIMEOUT_S = 30.0  # of one tracker; most of it is for importing a client from a slow disk
REQUEST_TIMEOUT_S = 5  # of one request, once something answers at the address
ASKED_MODES = ("online", "shared")  # of W&B
DATABRICKS = ("databricks", "databricks-uc", "uc")  # servers that MLflow finds by its own settings
LANGUAGE = "FINETUNE_LANG"  # environment variable of the process that asks
KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")


def check_trackers(config: RunConfig) -> list[str]:
    """What keeps the trackers of a run from taking its records; a few seconds, for all at once."""
    checks = []
    if config.mlflow_tracking_uri and importlib.util.find_spec("mlflow") is not None:
        checks.append(partial(_check_mlflow, config.mlflow_tracking_uri, config))
    if config.wandb_project and importlib.util.find_spec("wandb") is not None:
        checks.append(partial(_check_wandb, config.wandb_project, config))
    with ThreadPoolExecutor(max(1, len(checks))) as pool:
        return [problem for problems in pool.map(lambda check: check(), checks) for problem in problems]


def _check_wandb(project: str, config: RunConfig) -> list[str]:
    # A job does not get secrets from the environment, see docs/slurm.md.
    hidden = KEYS if config.executor == "slurm" else ()
    server = _named_server(os.environ)
    problem = _silence_of_wandb(server) if server else None
    problem = problem or _ask(["wandb"], config, {name: value for name, value in os.environ.items() if name not in hidden})
    return [f"--wandb_project {project}: {problem}"] if problem else []


def _named_server(environment: Mapping[str, str]) -> str | None:
    """W&B's server, where the environment names it and nothing else can say that it is not asked.

    It can be asked before W&B's client is imported, which takes seconds from a slow disk.
    """
    home = Path(environment.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb")
    own = any((folder / "settings").exists() for folder in (home, Path("wandb"), Path(".wandb")))
    mode = environment.get("WANDB_MODE") or (None if own or "WANDB_DISABLED" in environment else "online")
    return environment.get("WANDB_BASE_URL") if mode in ASKED_MODES else None


def _silence_of_wandb(server: str) -> str | None:
    if reason := no_answer(server):
        return t(
            "{server} does not answer ({reason}); WANDB_MODE=offline keeps the records here for `wandb sync`",
            server=server,
            reason=reason,
        )
    return None


def _check_mlflow(address: str, config: RunConfig) -> list[str]:
    scheme = urlsplit(address).scheme
    if scheme in ("http", "https") and (reason := no_answer(address)):
        return [
            t(
                "--mlflow_tracking_uri {address}: nothing answers there ({reason}); start the server, correct the address, or "
                "leave the flag out",
                address=address,
                reason=reason,
            )
        ]
    if address not in DATABRICKS and scheme in ("sqlite", "file", ""):  # would be made by asking
        folder = Path(address.removeprefix("sqlite:///").removeprefix("file://").removeprefix("file:")).parent
        if folder.is_dir() and os.access(folder, os.W_OK):
            return []
        return [t("--mlflow_tracking_uri {address}: cannot write to {folder}", address=address, folder=folder)]
    bounds = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(REQUEST_TIMEOUT_S)}
    problem = _ask(["mlflow", address, config.experiment], config, os.environ | bounds)
    return [f"--mlflow_tracking_uri {address}: {problem}"] if problem else []


def _ask(arguments: list[str], config: RunConfig, environment: dict[str, str]) -> str:
    """What the process says is wrong; empty where nothing is."""
    environment = environment | {LANGUAGE: config.lang, "PYTHONPATH": str(Path(finetuning.__file__).parent.parent)}
    command = [sys.executable, "-m", "finetuning.launch.tracker_check", *arguments]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environment,
            timeout=CHECK_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return t("no answer in {seconds:.0f} s", seconds=CHECK_TIMEOUT_S)
    if done.returncode != 0:
        return one_line((done.stderr.strip().splitlines() or [str(done.returncode)])[-1])
    return done.stdout.strip().rpartition("\n")[2]


def ask_mlflow(address: str, experiment: str) -> str:
    found = mlflow_client(address).get_experiment_by_name(experiment)
    if found is not None and found.lifecycle_stage != "active":
        return t("the MLflow experiment {name} was deleted there; restore it, or give another --experiment", name=experiment)
    return ""


def ask_wandb() -> str:
    import wandb

    settings = wandb.setup().settings
    if settings.mode == "disabled":
        return t("has no effect, as W&B is disabled (WANDB_MODE)")
    if settings.mode not in ASKED_MODES:
        return ""
    if silence := _silence_of_wandb(settings.base_url):
        return silence
    try:
        _ = wandb.Api(timeout=REQUEST_TIMEOUT_S).viewer
    except wandb.errors.Error as error:
        return t(
            "{server} does not let you in ({reason}); log in with `wandb login`, or set WANDB_MODE=offline",
            server=settings.base_url,
            reason=one_line(error),
        )
    return ""


if __name__ == "__main__":
    set_language(os.environ[LANGUAGE])
    print(ask_mlflow(*sys.argv[2:]) if sys.argv[1] == "mlflow" else ask_wandb())
