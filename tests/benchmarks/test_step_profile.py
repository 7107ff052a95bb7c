"""benchmarks/step_profile.py: what a trace of a GPU is made of."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.step_profile import as_table, where_the_time_goes

pytestmark = pytest.mark.unit

TOKENS, WIDTH, RANK = 8192, 4096, 16


def operation(name: str, begin: float, length: float, *shapes: list[int], kind: str = "cpu_op") -> dict[str, Any]:
    return {"ph": "X", "cat": kind, "name": name, "ts": begin, "dur": length, "tid": 1, "args": {"Input Dims": list(shapes)}}


def kernel(name: str, launched: float, begin: float, length: float) -> list[dict[str, Any]]:
    """A kernel, launched 0.1 µs long from the CPU at another time."""
    number = {"correlation": int(10 * launched)}
    return [
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": launched, "dur": 0.1, "tid": 1, "args": number},
        {"ph": "X", "cat": "kernel", "name": name, "ts": begin, "dur": length, "tid": 7, "args": number},
    ]


def test_kernels_are_grouped_by_name_and_by_the_shapes_of_what_launched_them(tmp_path: Path) -> None:
    events = [
        operation("aten::linear", 0, 10),
        operation("aten::mm", 1, 3, [TOKENS, WIDTH], [WIDTH, WIDTH]),
        *kernel("nvjet_sm90", 2, 100, 400),
        operation("aten::mm", 5, 3, [TOKENS, WIDTH], [WIDTH, RANK]),
        *kernel("nvjet_sm90", 6, 500, 20),
        *kernel("_apply_rotary_to_heads", 11, 520, 30),
        *kernel("kernel_cutlass_flash_attncuteflash_fwd", 12, 560, 90),
        operation("aten::_scaled_mm", 13, 3, [TOKENS, WIDTH], [WIDTH, WIDTH], [TOKENS, 1], [1, WIDTH]),
        *kernel("cutlass_gemm_fp8", 14, 650, 200),
        *kernel("_quantize_columns", 17, 850, 10),
        operation("Optimizer.step#AdamW.step", 20, 10, kind="user_annotation"),
        operation("aten::mm", 21, 3, [WIDTH, WIDTH], [WIDTH, WIDTH]),
        *kernel("nvjet_sm90", 22, 860, 5),
    ]
    with gzip.open(tmp_path / "trace_rank_0.json.gz", "wt") as file:
        json.dump({"traceEvents": [*events, {"ph": "s", "cat": "ac2g"}]}, file)
    (tmp_path / "rank_0.json").write_text(json.dumps([{"seconds": 9.0}, {"seconds": 1e-3}]))
    found = where_the_time_goes(tmp_path, thin=1024)
    microseconds = {name: round(1e6 * group["s"]) for name, group in found["groups"].items()}
    assert microseconds == {
        "matrix products": 600,
        "attention": 90,
        "element-wise passes": 30,
        "adapters' thin products": 20,
        "quantization": 10,
        "optimizer": 5,
    }
    assert found["gaps_s"] == pytest.approx(1e-3 - 755e-6)
    assert found["products_tflops"] == pytest.approx(2 * 2 * TOKENS * WIDTH * WIDTH / 600e-6 / 1e12, rel=1e-3)
    assert "| attention |" in as_table(found)
