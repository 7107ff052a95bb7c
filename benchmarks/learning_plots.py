"""Draws what `learning.py` has measured: validation loss over the learning rate as a multiple of what the rule gives.

    python benchmarks/learning_plots.py benchmarks/results/*-learning.json --out benchmarks/results/learning.png

Needs matplotlib, which the extra `mlflow` brings.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from finetuning.config.learning_rate import rule_of  # noqa: E402

Run = dict[str, str | float]
HIDDEN_SIZE = 576  # SmolLM2-135M
NAMES = {"extraction": "a form", "knowledge": "content", "style": "both"}
FLOOR = 1e-5  # losses are rounded to four digits; zero has no place on a logarithmic axis


def label_of(run: Run) -> str | None:
    """The curve a run belongs to, within its row of panels; None: it is in no panel."""
    if run["warmup"] != 0.1 or run["weight_decay"] != 0.1:
        return None
    if run["method"] == "all":
        return f"{run['batch']:g} × {run['steps']:g}"
    if run["schedule"] != "cosine":
        return f"{run['schedule']}"
    if run["rank"] == 16:
        return f"{run['batch']:g} × {run['steps']:g}"
    return f"rank {run['rank']:g}, alpha {run['rank'] * run['scale']:g}"


def row_of(run: Run) -> int:
    if run["method"] == "all":
        return 2
    return 1 if run["rank"] != 16 or run["schedule"] != "cosine" else 0


def rule(run: Run) -> float:
    alpha = run["scale"] * run["rank"] if run["method"] == "lora" else None
    return rule_of(
        hidden_size=HIDDEN_SIZE, alpha=alpha, batch=run["batch"], max_steps=run["steps"], schedule=str(run["schedule"])
    )


def draw(axes: Axes, runs: list[Run]) -> None:
    curves: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        curves[str(label_of(run))][run["lr"] / rule(run)].append(max(float(run["val_loss"]), FLOOR))
    for label, points in curves.items():
        multiples = sorted(points)
        axes.plot(multiples, [sum(points[x]) / len(points[x]) for x in multiples], marker=".", linewidth=1, label=label)
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", yscale="log", xlim=(0.015, 6))
    axes.legend(fontsize=6, ncols=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    runs = [run for file in arguments.results for run in json.loads(file.read_text(encoding="utf-8"))["runs"]]
    matplotlib.rcParams["font.size"] = 7
    figure, panels = plt.subplots(3, 3, figsize=(10, 9), sharex=True, layout="constrained")
    rows = ("LoRA, rank 16, alpha 32: samples × steps", "LoRA, 8 × 100: rank, alpha, schedule", "all weights: samples × steps")
    for row, title in enumerate(rows):
        for column, (data, name) in enumerate(NAMES.items()):
            chosen = [run for run in runs if run["data"] == data and row_of(run) == row and label_of(run)]
            draw(panels[row, column], chosen)
            panels[row, column].set_title(f"{name} · {title}", fontsize=7)
    for axes in panels[2]:
        axes.set_xlabel("learning rate / what the rule gives")
    for axes in panels[:, 0]:
        axes.set_ylabel("validation loss")
    figure.savefig(arguments.out, dpi=80)


if __name__ == "__main__":
    main()
