"""Addresses of trackers that nobody answers at are refused soon; with servers that do: tests/training/test_trackers.py."""

import socket
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from finetuning.config.settings import RunConfig
from finetuning.launch.tracker_check import check_trackers
from finetuning.runtime import network

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(not (find_spec("wandb") and find_spec("mlflow")), reason="trackers' clients are not installed"),
]


@pytest.fixture
def silent() -> Iterator[str]:
    """An address where something listens and says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A person with no settings of W&B."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_CONFIG_DIR", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def config(**changed: str) -> RunConfig:
    return RunConfig(hf_model_id="m", dataset_path="d", **changed)


def test_silent_addresses_are_waited_for_together_and_no_client_is_imported(
    silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "ANSWER_TIMEOUT_S", 0.2)
    monkeypatch.setenv("WANDB_BASE_URL", silent)
    monkeypatch.setattr("finetuning.launch.tracker_check._ask", lambda *_: pytest.fail("starts a process with the client"))
    began = time.monotonic()
    mlflow, wandb = check_trackers(config(mlflow_tracking_uri=silent, wandb_project="p"))
    assert time.monotonic() - began < 0.4
    assert mlflow.startswith(f"--mlflow_tracking_uri {silent}: nothing answers there (")
    assert wandb.startswith(f"--wandb_project p: {silent} does not answer (")


@pytest.mark.parametrize(
    ("mode", "file"), [("offline", None), ("disabled", None), (None, "wandb/settings"), (None, ".config/wandb/settings")]
)
def test_where_wandb_may_be_offline_its_own_settings_are_asked(
    mode: str | None, file: str | None, silent: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", silent)
    if mode is not None:
        monkeypatch.setenv("WANDB_MODE", mode)
    if file is not None:
        (home / file).parent.mkdir(parents=True)
        (home / file).write_text("[default]\nmode = offline\n")
    monkeypatch.setattr("finetuning.launch.tracker_check._ask", lambda *_: "asked")
    assert check_trackers(config(wandb_project="p")) == ["--wandb_project p: asked"]


def test_what_mlflow_finds_by_its_own_settings_is_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetuning.launch.tracker_check._ask", lambda *_: "asked")
    assert check_trackers(config(mlflow_tracking_uri="databricks")) == ["--mlflow_tracking_uri databricks: asked"]
