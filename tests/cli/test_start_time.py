"""What a user waits for at a start: nothing heavy is imported before, or without, a reason."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from finetuning.launch.gpus import AMD_DEVICE

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent.parent
HEAVY = {"torch", "transformers", "lightning", "pytorch_lightning", "huggingface_hub", "pyarrow", "peft", "scipy", "matplotlib"}
LOADED = "import json, sys; print('\\n' + json.dumps(sorted(set(sys.modules) & set(json.loads(sys.argv[1])))))"


def heavy_modules_after(code: str, folder: Path) -> list[str]:
    """Runs the code in a fresh interpreter; which of HEAVY it has imported when it is done."""
    command = [sys.executable, "-c", f"{code}\n{LOADED}", json.dumps(sorted(HEAVY))]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT)})
    return json.loads(done.stdout.splitlines()[-1])


def test_checking_data_with_a_tokenizer_imports_nothing_heavy(tiny_model: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    code = f"""
from finetuning.cli.data import main
assert main(["check", {str(tiny_dataset)!r}, "--hf_model_id", {str(tiny_model)!r}, "--html", "report.html"]) == 0
assert main(["preview", {str(tiny_dataset)!r}, "--hf_model_id", {str(tiny_model)!r}]) == 0
"""
    assert heavy_modules_after(code, tmp_path) == []


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
    for start in ("first", "second"):
        assert heavy_modules_after(code, tmp_path) == [], start


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
    assert heavy_modules_after(code, tmp_path) == []


def test_a_worker_starts_without_what_it_does_not_use_which_can_be_imported_later(tmp_path: Path) -> None:
    assert heavy_modules_after("import finetuning.train", tmp_path) == ["lightning", "torch"]
    assert "scipy" in heavy_modules_after("import finetuning.train, scipy", tmp_path)


@pytest.mark.parametrize("verb", ["evaluate", "generate", "chat"])
def test_what_takes_a_model_starts_without_what_spreads_one(verb: str, tmp_path: Path) -> None:
    """It is half of the seconds that a refusal takes."""
    code = f"import finetuning.cli.{verb}, sys; assert not set(sys.modules) & {{'torch.distributed.tensor', 'torchmetrics'}}"
    assert heavy_modules_after(code, tmp_path) == ["torch"]
