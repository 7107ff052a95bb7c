"""A step of the real code as one rank of a layout, on fake tensors: what it counts, beside the arithmetic and by hand."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetuning.config.llama import write_llama_config
from finetuning.plan.known_models import known_model

pytestmark = pytest.mark.dist

ROOT = Path(__file__).parent.parent.parent
LAYERS = 4
LLAMA_8B = known_model("meta-llama/Llama-3.1-8B")
PARAMETERS = LAYERS * 218_112_000 + 2 * 128256 * 4096 + 4096


def simulated(tmp_path: Path, *flags: str) -> dict[str, Any]:
    write_llama_config(dataclasses.replace(LLAMA_8B, num_hidden_layers=LAYERS), tmp_path)
    code = "import sys; from finetuning.cli.plan import main; sys.exit(main(sys.argv[1:]))"
    given = [
        "--hf_model_id",
        str(tmp_path),
        "--gpu",
        "h200",
        "--row_length",
        "8192",
        "-g",
        "64",
        "--simulate",
        "--json",
        *flags,
    ]
    done = subprocess.run([sys.executable, "-c", code, *given], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def counted(found: dict[str, Any], name: str) -> list[tuple[int, int, int]]:
    return [
        (row["group_size"], row["count"], row["num_bytes"]) for row in found["simulation"]["collectives"] if row["name"] == name
    ]


def assert_as_planned(found: dict[str, Any]) -> None:
    simulated_gib = found["simulation"]["peak_bytes"] / 2**30
    assert found["chosen"]["memory_gib"]["tensors"] == pytest.approx(simulated_gib, rel=0.05)


def test_sharded_weights_are_gathered_and_gradients_summed_once_a_step(tmp_path: Path) -> None:
    found = simulated(tmp_path, "-G", "8")
    # Blocks, embedding, head, and the norm that is left: seven units; bfloat16 out, float32 back.
    assert counted(found, "all-gather") == [(8, LAYERS + 3, 2 * PARAMETERS)]
    assert counted(found, "reduce-scatter") == [(8, LAYERS + 3, 4 * PARAMETERS)]
    assert found["simulation"]["states_bytes"] == pytest.approx(8 * PARAMETERS / 8, rel=1e-3)  # without gradients
    assert_as_planned(found)


def test_a_pipeline_of_1024_gpus_sends_each_pack_on_and_its_gradient_back(tmp_path: Path) -> None:
    found = simulated(tmp_path, "-N", "128", "-G", "8", "-P", "2", "-T", "2", "-g", "2048")
    assert found["simulation"]["blocks"] == "fused"
    pack = 8192 // 2 * 4096 * 2  # this rank's tokens, bfloat16
    assert counted(found, "send") == counted(found, "receive") == [(2, 8, 8 * pack)]
    assert {row["group_size"] for row in found["simulation"]["collectives"]} == {2, 256}
    assert_as_planned(found)


def test_what_lies_on_the_host_is_not_simulated(tmp_path: Path) -> None:
    write_llama_config(dataclasses.replace(LLAMA_8B, num_hidden_layers=LAYERS), tmp_path)
    code = "from finetuning.cli.main import console; import sys; sys.argv[:1] = ['finetune', 'plan']; console()"
    given = ["--hf_model_id", str(tmp_path), "--gpu", "h200", "-G", "1", "-g", "8", "--peft", "lora", "--least_memory"]
    done = subprocess.run(
        [sys.executable, "-c", code, *given, "--simulate"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--simulate counts what is on GPUs, and --least_memory moves tensors to the host; leave one out" in done.stderr
