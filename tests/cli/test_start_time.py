"""What a user waits for at a start: nothing heavy is imported before, or without, a reason."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from finetuning.launch.gpus import AMD_DEVICE

pytestmark = pytest.mark.dist  # each starts a process

ROOT = Path(__file__).parent.parent.parent
HEAVY = {"torch", "transformers", "lightning", "pytorch_lightning", "huggingface_hub", "pyarrow", "peft", "scipy", "matplotlib"}
MARK = "loaded: "
LOADED = "import json, sys; print('\\n' + sys.argv[1] + json.dumps(sorted(set(sys.modules) & set(json.loads(sys.argv[2])))))"


def heavy_modules_after(folder: Path, *parts: str) -> list[list[str]]:
    """Runs the parts one after another in a fresh interpreter; which of HEAVY it has imported after each."""
    code = "\n".join(f"{part}\n{LOADED}" for part in parts)
    command = [sys.executable, "-c", code, MARK, json.dumps(sorted(HEAVY))]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT)})
    return [json.loads(line.removeprefix(MARK)) for line in done.stdout.splitlines() if line.startswith(MARK)]


def test_checking_data_with_a_tokenizer_imports_nothing_heavy(tiny_model: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    code = f"""
from finetuning.cli.data import main
assert main(["check", {str(tiny_dataset)!r}, "--hf_model_id", {str(tiny_model)!r}, "--html", "report.html"]) == 0
assert main(["preview", {str(tiny_dataset)!r}, "--hf_model_id", {str(tiny_model)!r}]) == 0
"""
    assert heavy_modules_after(tmp_path, code) == [[]]


def test_a_plan_is_made_without_torch_and_within_three_seconds(tmp_path: Path) -> None:
    code = """
import time
from finetuning.cli.plan import main
assert main(["--hf_model_id", "meta-llama/Llama-3.1-8B-Instruct", "--gpu", "h200", "-T", "2", "--max_steps", "100"]) == 0
assert time.process_time() < 3
"""
    assert heavy_modules_after(tmp_path, code) == [[]]


@pytest.mark.skipif(AMD_DEVICE.exists(), reason="torch is asked about AMD's GPUs")
def test_a_run_is_prepared_without_torch_or_transformers(tiny_model: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from rich.console import Console
from finetuning.config.settings import RunConfig
from finetuning.cli.train import prepare, write_data_report, show_start
config = RunConfig(hf_model_id={str(tiny_model)!r}, dataset_path={str(tiny_dataset)!r}, num_gpus=2, global_batch_size=8,
                   seq_length=256)
prepared = prepare(config, None, Path("experiments/x"), Path("tokens"), with_weights=True)
write_data_report(prepared, Path("report"))
show_start(Console(), prepared)
"""
    assert heavy_modules_after(tmp_path, code, code) == [[], []], "a first start, and a second"


def test_what_is_no_archive_of_weights_is_refused_without_torch(tmp_path: Path) -> None:
    (tmp_path / "bomb.nemo").write_bytes(gzip.compress(bytes(70 * 2**20)))
    code = """
from finetuning.cli.inspect import main
from finetuning.errors import InputError
from pathlib import Path
try:
    main(["bomb.nemo"])
except InputError as error:
    assert "bomb.nemo: grows from" in str(error), error
"""
    assert heavy_modules_after(tmp_path, code) == [[]]


def test_what_takes_a_model_starts_without_what_spreads_one_and_a_worker_without_what_it_does_not_use(tmp_path: Path) -> None:
    """The first is half of the seconds that a refusal takes; what is not imported can be imported later."""
    spread = "assert not set(sys.modules) & {'torch.distributed.tensor', 'torchmetrics'}"
    verbs = [f"import finetuning.cli.{verb}, sys; {spread}" for verb in ("evaluate", "generate", "chat")]
    *of_verbs, of_worker, later = heavy_modules_after(tmp_path, *verbs, "import finetuning.train", "import scipy")
    assert of_verbs == [["torch"]] * 3
    assert of_worker == ["lightning", "torch"]
    assert "scipy" in later
