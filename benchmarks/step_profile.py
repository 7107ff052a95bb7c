"""Where the time of a training step goes, from the trace that `--profile_steps` leaves: seconds of each group of kernels.

A kernel is told by its name, and a matrix product by the shapes of the operation that launched it, so that the adapters'
thin products are apart from those of the model. On the CPU operations take the place of kernels, without what they call.
"""

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetuning.training.profile import covered

PRODUCTS, THIN, ATTENTION, QUANTIZATION = "matrix products", "adapters' thin products", "attention", "quantization"
OPTIMIZER, MESSAGES, ELEMENT_WISE = "optimizer", "messages", "element-wise passes"
OPTIMIZER_RANGE = "Optimizer.step#"  # torch's own name for the range
# Operation -> which of its operands are multiplied.
MULTIPLIED = {
    "aten::mm": (0, 1),
    "aten::bmm": (0, 1),
    "aten::_scaled_mm": (0, 1),
    "aten::addmm": (1, 2),
    "aten::addmm_": (1, 2),
}
NAMED = (
    (MESSAGES, re.compile("nccl|gloo:")),
    (ATTENTION, re.compile("flash|fmha|attention", re.IGNORECASE)),
    (QUANTIZATION, re.compile("quantize|column_maximum")),
)
FP8_OPERATION = "aten::_scaled_mm"
NAMES_SHOWN = 3


@dataclass
class Operation:
    """An operator or a named range on the CPU."""

    name: str
    begin: float  # microseconds
    end: float
    shapes: list[list[int]]
    parent: "Operation | None" = None
    inner: float = 0.0  # microseconds in operations that it calls

    def path(self) -> Iterator["Operation"]:
        """It and what called it, inside out."""
        operation: Operation | None = self
        while operation is not None:
            yield operation
            operation = operation.parent


@dataclass
class Group:
    seconds: float = 0.0
    calls: int = 0
    names: dict[str, float] = field(default_factory=lambda: defaultdict(float))


def where_the_time_goes(folder: Path, thin: int) -> dict[str, Any]:
    """The last profiled step of rank 0.

    Args:
        folder: `profile` of an experiment.
        thin: a product with a dimension below this is one of the adapters'.
    """
    with gzip.open(folder / "trace_rank_0.json.gz", "rt", encoding="utf-8") as file:
        events = [event for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]
    wall_s = json.loads((folder / "rank_0.json").read_text(encoding="utf-8"))[-1]["seconds"]
    kernels = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    launches = {
        event["args"]["correlation"]: event
        for event in events
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in event["args"]
    }
    operations, launchers = nested(events, launches)
    work: list[tuple[str, float, float, Operation | None]]  # name, microseconds from … to, what launched it
    work = [
        (event["name"], event["ts"], event["ts"] + event["dur"], launchers.get(event["args"].get("correlation")))
        for event in kernels
    ] or [(found.name, found.begin, found.end - found.inner, found) for found in operations if "::" in found.name]
    groups: dict[str, Group] = defaultdict(Group)
    products: dict[int, Operation] = {}
    for name, begin, end, launcher in work:
        group = group_of(name, launcher, thin)
        groups[group].seconds += (end - begin) / 1e6
        groups[group].calls += 1
        groups[group].names[name[:90]] += (end - begin) / 1e6
        product = next((found for found in launcher.path() if found.name in MULTIPLIED), None) if launcher else None
        if product is not None and group == PRODUCTS:
            products[id(product)] = product
    busy_s = covered((begin, end) for _, begin, end, _ in work) / 1e6 if kernels else sum(g.seconds for g in groups.values())
    large, flop = groups[PRODUCTS].seconds, sum(flop_of(product) for product in products.values())
    return {
        "step_s": round(wall_s, 6),
        "kernels_s": round(busy_s, 6),
        "gaps_s": round(max(0.0, wall_s - busy_s), 6),
        "products_tflops": round(flop / large / 1e12, 1) if large else None,
        "groups": {
            name: {
                "s": round(group.seconds, 6),
                "percent": round(100 * group.seconds / wall_s, 1),
                "calls": group.calls,
                "most": {key: round(value, 6) for key, value in sorted(group.names.items(), key=lambda n: -n[1])[:NAMES_SHOWN]},
            }
            for name, group in sorted(groups.items(), key=lambda item: -item[1].seconds)
        },
    }


def nested(
    events: list[dict[str, Any]], launches: dict[int, dict[str, Any]]
) -> tuple[list[Operation], dict[int, Operation | None]]:
    """All operations of the CPU, each with what called it; and of each launch the innermost operation around it."""
    operations: list[Operation] = []
    launchers: dict[int, Operation | None] = {}
    threads: dict[Any, list[tuple[float, float, int, dict[str, Any]]]] = defaultdict(list)
    for event in events:
        if event.get("cat") in ("cpu_op", "user_annotation"):
            threads[event["tid"]].append((event["ts"], -event["dur"], -1, event))
    for number, event in launches.items():
        threads[event["tid"]].append((event["ts"], -event["dur"], number, event))
    for thread in threads.values():
        open_ones: list[Operation] = []
        for begin, minus_duration, number, event in sorted(thread, key=lambda item: item[:3]):
            while open_ones and open_ones[-1].end <= begin:
                open_ones.pop()
            parent = open_ones[-1] if open_ones else None
            if number >= 0:
                launchers[number] = parent
                continue
            shapes = event.get("args", {}).get("Input Dims", [])
            operation = Operation(event["name"], begin, begin - minus_duration, shapes, parent)
            if parent is not None:
                parent.inner += min(operation.end, parent.end) - begin
            operations.append(operation)
            open_ones.append(operation)
    return operations, launchers


def group_of(name: str, launcher: Operation | None, thin: int) -> str:
    if launcher is not None and any(found.name.startswith(OPTIMIZER_RANGE) for found in launcher.path()):
        return OPTIMIZER
    group = next((group for group, pattern in NAMED if pattern.search(name)), None)
    if group is not None:
        return group
    for found in launcher.path() if launcher is not None else ():
        if found.name in MULTIPLIED:
            sides = [side for place in MULTIPLIED[found.name] for side in found.shapes[place][-2:]]
            return THIN if min(sides, default=0) < thin else PRODUCTS
    return ELEMENT_WISE


def flop_of(product: Operation) -> float:
    x, y = (product.shapes[place] for place in MULTIPLIED[product.name])
    total = 2.0 * y[-1]
    for side in x:
        total *= side
    return total


def as_table(found: dict[str, Any]) -> str:
    """For people, as Markdown."""
    lines = ["| group | ms | of the step | calls | most of it |", "| --- " * 5 + "|"]
    for name, group in found["groups"].items():
        most = ", ".join(f"{key.replace('|', '/')[:60]} {1e3 * value:.1f}" for key, value in group["most"].items())
        lines.append(f"| {name} | {1e3 * group['s']:.1f} | {group['percent']:.1f} % | {group['calls']} | {most} |")
    share = 100 * found["gaps_s"] / found["step_s"]
    lines.append(f"| gaps: nothing runs | {1e3 * found['gaps_s']:.1f} | {share:.1f} % | | |")
    lines.append(f"| the profiled step | {1e3 * found['step_s']:.1f} | | | products {found['products_tflops']} TFLOP/s |")
    return "\n".join(lines)
