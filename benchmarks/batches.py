"""How evenly global batches are laid out, and how long that takes: lengths like those of zh-TW Alpaca.

    python benchmarks/batches.py

Log-normal lengths of the median 180 and a spread of 0.8, between 12 and 2 000 tokens; 128 samples a step, 4 ranks, rows of at
most 8 192 positions, attention as costly as in Llama-3.1-8B; 1 000 steps. `fill`: real tokens among the computed positions.
`imbalance`: work of the slowest rank of each micro-batch above the mean. Planning is timed in CPU time of one thread.
"""

import argparse
import time

import numpy as np

from finetuning.config.strategy import PackPlan
from finetuning.data.batches.packing import measure, plan_rows

CAPACITY, ATTENTION_COST = 8192, 1.75e-5


def draw(samples: int, seed: int) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).lognormal(np.log(180), 0.8, samples), 12, 2000).astype(np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    given = parser.parse_args()
    for ranks, samples, granularity in ((4, 128, 128), (4, 128, 8), (4, 128, 1024), (8, 512, 128), (64, 2048, 128)):
        plan = PackPlan(CAPACITY, granularity, ATTENTION_COST)
        packings, times = [], []
        for step in range(given.steps if samples < 512 else given.steps // 10):
            lengths = draw(samples, step)
            started = time.thread_time()
            rows = plan_rows(lengths, ranks, plan)
            times.append(1e3 * (time.thread_time() - started))
            packings.append(measure(lengths, rows, plan))
        fill = sum(packing.tokens for packing in packings) / sum(packing.computed for packing in packings)
        imbalance = [packing.imbalance for packing in packings]
        print(
            f"{samples:>5} samples, {ranks:>2} ranks, row lengths by {granularity:>4}: fill {fill:.2%}, worst step "
            f"{min(packing.fill for packing in packings):.2%}; imbalance {np.mean(imbalance):.2%}, worst {max(imbalance):.2%}; "
            f"planning {np.median(times):.2f} ms, 99th percentile {np.quantile(times, 0.99):.2f} ms"
        )


if __name__ == "__main__":
    main()
