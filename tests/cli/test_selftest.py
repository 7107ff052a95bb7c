"""`finetune selftest`: its table, its verdict, and what it refuses."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from finetuning.cli.selftest import main
from finetuning.errors import InputError
from finetuning.parallel.selftest import Comparison
from tests.commands import ROOT

SAME = Comparison(2.0, 2.0, 1.0, 1.0, {"model.norm.weight": 1e-8, "lm_head.weight": 5e-7}, {})


@pytest.mark.dist
def test_a_layout_is_compared_and_found_equal(tmp_path: Path) -> None:
    program = "import sys; from finetuning.cli.main import console; sys.argv = ['finetune', *sys.argv[1:]]; console()"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            "selftest",
            "--num_gpus",
            "2",
            "-C",
            "2",
            "--peft",
            "lora",
            "--json",
            str(tmp_path / "table.json"),
        ],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CP 2 against one process" in done.stdout
    rows = [line for line in done.stdout.splitlines() if "LoRA, " in line]
    assert [row.split()[2] for row in rows] == ["float64", "float32", "bfloat16"]
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["layout"] == "CP 2"
    assert [(row["trained"], row["equal"], row["limit"]) for row in table["rows"]] == [
        ("LoRA, float64", True, 1e-12),
        ("LoRA, float32", True, 1e-6),
        ("LoRA, bfloat16", True, 5e-2),
    ]
    assert all("equal" in row and "NOT" not in row for row in rows)


@pytest.mark.dist
def test_the_blocks_of_the_training_are_compared(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    arguments = ["selftest", "-T", "2", "--blocks", "fused", "--dtype", "float32", "--json", str(file)]
    program = "import sys; from finetuning.cli.main import console; sys.argv = ['finetune', *sys.argv[1:]]; console()"
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, timeout=500, check=False)
    assert done.returncode == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["trained"] for row in rows] == ["all weights, float32, fused", "LoRA, float32"]  # with LoRA not under -T
    assert all(row["equal"] for row in rows)


@pytest.mark.unit
@pytest.mark.parametrize(
    "other",
    [
        replace(SAME, loss=2.00001),
        replace(SAME, grad_norm=1.00001),
        replace(SAME, differences={**SAME.differences, "lm_head.weight": 2e-6}),
    ],
    ids=["loss", "norm", "gradient"],
)
def test_any_difference_above_the_limit_is_no_equality(other: Comparison) -> None:
    assert SAME.equal()
    assert not other.equal()


@pytest.mark.unit
def test_the_weight_with_the_largest_difference_is_named() -> None:
    assert SAME.worst == ("lm_head.weight", 5e-7)


@pytest.mark.unit
def test_fused_blocks_are_refused_where_there_are_none() -> None:
    with pytest.raises(InputError) as refused:
        main(["--num_gpus", "2", "-T", "2", "--peft", "lora", "--blocks", "fused"])
    (problem,) = refused.value.problems
    assert problem == "--blocks fused: those with LoRA go without -T and with --sharding auto or replicated"


@pytest.mark.unit
def test_a_layout_that_cannot_be_is_refused_before_anything_starts() -> None:
    with pytest.raises(InputError) as refused:
        main(["--num_gpus", "4", "-T", "3", "--pipeline_schedule", "interleaved"])
    assert len(refused.value.problems) == 2
    assert refused.value.problems[0].startswith("--pipeline_schedule interleaved has no effect without")
    assert "4 GPUs cannot be divided by tensor 3" in refused.value.problems[1]
