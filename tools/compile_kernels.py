"""Compiles every Triton kernel for GPUs that are not here, and compares the shared memory of each with what a GPU has.

    pip install triton==3.6.0            # a GPU is not needed; torch for CUDA brings it
    python tools/compile_kernels.py      # a line for each kernel, rank and dtype: KiB of shared memory by GPU; about 4 minutes

Exit code 1 when a kernel does not compile for a GPU, or would need more than its multiprocessors have. What was compiled here
has not run there.
"""

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler.errors import CompilationError
from triton.runtime import driver
from triton.runtime.errors import PTXASError
from triton.runtime.jit import JITFunction

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from finetuning.model.kernels import triton_decode, triton_fp8, triton_gate, triton_low_rank, triton_rotary, triton_rows  # noqa: E402
from finetuning.training import split_adamw_kernel  # noqa: E402

# Shared memory that a program may take, bytes: CUDA programming guide, technical specifications per compute capability.
SHARED_MEMORY = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
NAMES = {80: "A100", 86: "A40, 3090", 89: "L40S, 4090", 90: "H100, H200", 100: "B200", 120: "5090"}
FP8_FROM = 89
ROWS, HIDDEN, INTERMEDIATE, HEADS, KEY_VALUE_HEADS, HEAD_DIM, VOCABULARY = 512, 4096, 14336, 32, 8, 128, 128256
RANKS = (8, 16, 64, 128, 256)
FP8_LARGEST, FP8_LEAST = 448.0, 1e-12
Call = Callable[[], object]


class Elsewhere:
    """Triton's driver of a GPU that is not here: names it, launches nothing."""

    def __init__(self, capability: int):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def matrix(rows: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(rows, columns, dtype=dtype)


def halves(columns: int) -> tuple[Tensor, Tensor]:
    """Two matrices side by side in one."""
    first, second = matrix(ROWS, columns).chunk(2, -1)
    return first, second


def update(size: int, rank: int, side_by_side: int = 1) -> tuple[Tensor, Tensor]:
    return matrix(ROWS, side_by_side * rank), matrix(size, rank)


def row_calls() -> Iterator[tuple[str, Call]]:
    x, weight, inverse = matrix(ROWS, HIDDEN), matrix(1, HIDDEN)[0], torch.empty(ROWS)
    logits, labels = matrix(ROWS, VOCABULARY), torch.zeros(ROWS, dtype=torch.int64)
    yield "norm", lambda: triton_rows.norm(x, weight, 1e-5)
    yield "norm backward", lambda: triton_rows.norm_backward(x, x, inverse, weight, x, None)
    yield "norm weight gradient", lambda: triton_rows.norm_weight_gradient(x, x, inverse)
    yield "cross entropy", lambda: triton_rows.cross_entropy(logits, labels)
    yield "gather rows", lambda: triton_rows.gather_rows(x, labels)
    gate, up = halves(2 * INTERMEDIATE)
    yield "gate", lambda: triton_gate.gate(gate, up, None)
    yield "gate backward", lambda: triton_gate.gate_backward(matrix(ROWS, INTERMEDIATE), gate, up, gate, up)


def rank_calls(rank: int) -> Iterator[tuple[str, Call]]:
    x, size = matrix(ROWS, HIDDEN), (HEADS + 2 * KEY_VALUE_HEADS) * HEAD_DIM
    cos = torch.empty(ROWS, HEAD_DIM)
    heads = HEADS, KEY_VALUE_HEADS
    dq, dk = (torch.empty(ROWS, count, HEAD_DIM, dtype=torch.bfloat16) for count in heads)
    low = update(HIDDEN, rank)
    yield "add update", lambda: triton_low_rank.add_low_rank_delta(x, x, low)
    yield "update backward", lambda: triton_low_rank.low_rank_delta_backward(x, low, matrix(ROWS, rank), matrix(HIDDEN, rank))
    of_heads = update(size, rank, 3)
    yield "rotate", lambda: triton_rotary.apply_rotary_to_heads(matrix(ROWS, size), cos, cos, heads, of_heads)
    gradients = matrix(ROWS, 3 * rank), matrix(size, rank)
    backward = triton_rotary.apply_rotary_to_heads_backward
    yield "rotate backward", lambda: backward(dq, dk, dk, cos, cos, matrix(ROWS, size), of_heads, gradients)
    gate, up = halves(2 * INTERMEDIATE)
    t_gate, t_up = halves(2 * rank)
    b, a = matrix(INTERMEDIATE, rank), matrix(rank, INTERMEDIATE)
    updates = (t_gate, b), (t_up, b)
    yield "gate with update", lambda: triton_gate.gate(gate, up, updates)
    through = matrix(ROWS, rank), a
    with_adapters = triton_gate.gate_backward_with_adapters
    yield (
        "gate backward with update",
        lambda: with_adapters(matrix(ROWS, INTERMEDIATE), gate, up, gate, up, updates, through, (b, b, a), 2.0),
    )


def fp8_calls() -> Iterator[tuple[str, Call]]:
    x, weight, limits = matrix(ROWS, HIDDEN), matrix(1, HIDDEN)[0], (FP8_LARGEST, FP8_LEAST)
    yield "norm, quantized", lambda: triton_rows.norm_and_quantize(x, weight, 1e-5, *limits)
    logits, labels = matrix(ROWS, VOCABULARY), torch.zeros(ROWS, dtype=torch.int64)
    yield "cross entropy, quantized", lambda: triton_rows.cross_entropy_and_quantize(logits, labels, *limits)
    out = matrix(ROWS, HIDDEN, torch.float8_e4m3fn)
    yield "rows, quantized", lambda: triton_fp8.quantize_rows(x, None, out, *limits)
    yield "columns, quantized", lambda: triton_fp8.quantize_columns(x, *limits)
    beside = matrix(HIDDEN, 16, torch.float8_e4m3fn)
    yield "A, quantized", lambda: triton_fp8.quantize_beside(matrix(16, HIDDEN), torch.empty(HIDDEN, 1), beside, *limits)
    yield "transposed", lambda: triton_fp8.transpose(out)


def decode_calls(dtype: torch.dtype) -> Iterator[tuple[str, Call]]:
    slots, page, width = 8, 64, (HEADS + 2 * KEY_VALUE_HEADS) * HEAD_DIM
    x, norm = matrix(1, HIDDEN, dtype), (matrix(1, HIDDEN, dtype)[0], 1e-5)
    weight, product = matrix(2 * INTERMEDIATE, HIDDEN, dtype), triton_decode.vector_product
    yield "product of one row", lambda: product(x, weight)
    yield "norm and product of one row", lambda: product(x, weight, norm=norm, gated=True)
    yield "product of one row, added", lambda: product(x, weight, residual_1O=matrix(1, 2 * INTERMEDIATE, dtype))
    keys = torch.empty(slots * 4 + 1, KEY_VALUE_HEADS, page, HEAD_DIM, dtype=dtype)
    pages, position = torch.zeros(slots, 4, dtype=torch.int32), torch.zeros(slots, dtype=torch.int64)
    tables = torch.empty(4 * page, HEAD_DIM // 2), torch.empty(4 * page, HEAD_DIM // 2)
    store = triton_decode.rotate_and_store
    yield "rotate and store", lambda: store(matrix(slots, width, dtype), tables, position, pages, (keys, keys), HEADS)
    q = torch.empty(slots, HEADS, HEAD_DIM, dtype=dtype)
    for splits in (1, 8):
        yield (
            f"attention to pages, {splits} splits",
            partial(triton_decode.paged_attention, q, (keys, keys), pages, position, splits),
        )
    yield "draw", lambda: triton_decode.add_gumbel(torch.empty(slots, VOCABULARY), torch.empty(slots, 2, dtype=torch.int64))


def optimizer_calls() -> Iterator[tuple[str, Call]]:
    numbers = {"factor": 1.0, "beta1": 0.9, "beta2": 0.98, "eps": 1e-8, "decay": 0.1, "step_size": 1e-4, "root_correction": 1.0}
    for eight_bit in (False, True):
        first, second = (torch.float8_e4m3fn, torch.uint8) if eight_bit else (torch.bfloat16, torch.bfloat16)
        state = {"rest": matrix(HIDDEN, HIDDEN, torch.int16)}
        state |= {"exp_avg": matrix(HIDDEN, HIDDEN, first), "exp_avg_sq": matrix(HIDDEN, HIDDEN, second)}
        if eight_bit:
            state |= {f"{name}_factor": torch.empty(HIDDEN, HIDDEN // 128) for name in ("exp_avg", "exp_avg_sq")}
        yield (
            f"optimizer, {8 if eight_bit else 16} bits",
            partial(split_adamw_kernel.update, matrix(HIDDEN, HIDDEN), matrix(HIDDEN, HIDDEN), state, seed=1234, **numbers),
        )


def calls(capability: int) -> Iterator[tuple[str, Call]]:
    yield from row_calls()
    for rank in RANKS:
        for name, call in rank_calls(rank):
            yield f"{name}, rank {rank}", call
    if capability >= FP8_FROM:
        yield from fp8_calls()
    for dtype in (torch.bfloat16, torch.float32):
        for name, call in decode_calls(dtype):
            yield f"{name}, {str(dtype).removeprefix('torch.')}", call
    yield from optimizer_calls()


def compile_for(capability: int) -> dict[str, int | str]:
    """Bytes of shared memory by call, of its largest kernel; or why it does not compile. Once in a process."""
    driver.set_active(Elsewhere(capability))
    torch.cuda.get_device_capability = lambda *_: divmod(capability, 10)
    torch.cuda.is_available = lambda: True
    taken: list[int] = []
    run = JITFunction.run

    def compile_only(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled = run(kernel, *arguments, grid=grid, warmup=True, **options)
        taken.append(compiled.metadata.shared)
        return compiled

    JITFunction.run = compile_only
    found: dict[str, int | str] = {}
    for name, call in calls(capability):
        taken.clear()
        try:
            call()
            found[name] = max(taken)
        except (CompilationError, PTXASError) as error:
            found[name] = f"{type(error).__name__}: {str(error).splitlines()[-1]}"
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capabilities", type=int, nargs="+", choices=SHARED_MEMORY, default=list(SHARED_MEMORY))
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    # A process for each: Triton keeps what it has found out about the first GPU.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, mp_context=spawn, max_tasks_per_child=1) as pool:
        found = dict(zip(arguments.capabilities, pool.map(compile_for, arguments.capabilities), strict=True))
    print(f"triton {triton.__version__}, torch {torch.__version__}\n")
    print("| KiB of shared memory | " + " | ".join(f"sm_{each} ({NAMES[each]})" for each in found) + " |")
    print("| --- |" + " --- |" * len(found))
    fits = True
    for name in dict.fromkeys(name for of_one in found.values() for name in of_one):
        cells = []
        for capability, of_one in found.items():
            size = of_one.get(name)
            good = size is None or (isinstance(size, int) and size <= SHARED_MEMORY[capability])
            fits = fits and good
            shown = "" if size is None else f"{size / 1024:.0f}" if isinstance(size, int) else size
            cells.append(shown if good else f"**{shown}**")
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("| has | " + " | ".join(f"{SHARED_MEMORY[each] / 1024:.0f}" for each in found) + " |")
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
