"""Runs jobs of tests/formats/nemo/megatron_script.py with the real megatron-core, which is no dependency of this project."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent / "megatron_script.py"
FOLDER = Path(__file__).parent.parent.parent.parent / ".venv" / "megatron"  # made by `make megatron`
TIMEOUT_S = 400


def megatron_core() -> Path:
    """The folder with the package; without it the test is skipped, in CI it fails."""
    folder = Path(os.environ.get("MEGATRON_CORE", FOLDER))
    if not (folder / "megatron" / "core").is_dir():
        message = "these tests compare with megatron-core; `make megatron` installs it beside the environment"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


def run_megatron(jobs: list[dict[str, Any]], folder: Path) -> None:
    """Runs the jobs one after the other in `folder`."""
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs, default=str), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(megatron_core()), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, SCRIPT, file], env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    for store in folder.glob("jobs.json.*"):
        store.unlink()
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
