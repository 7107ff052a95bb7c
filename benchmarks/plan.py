"""The plan beside every run on record: memory at most 5 % above what tensors took and never below, time within 10 %.

The runs are in `plan_records` of `results/`, each with the result that it is from: model, settings, what a step trained (and
the longest pack, as not all are full), the peak that torch counted, and tokens per second of each GPU, of one card or several.
All of H200s. Needs no GPU and no torch.

    python benchmarks/plan.py
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from finetuning.config.memory import plan_memory  # noqa: E402
from finetuning.config.resolve import resolve  # noqa: E402
from finetuning.config.settings import RunConfig  # noqa: E402
from finetuning.plan.known_models import known_model  # noqa: E402
from finetuning.plan.rates import rates_of  # noqa: E402
from finetuning.plan.step_time import Place, step_time  # noqa: E402
from finetuning.plan.workload import Workload  # noqa: E402

RECORDS = Path(__file__).parent / "results" / "2026-11-29-plan_records.json"
MODELS = {
    "1b": "meta-llama/Llama-3.2-1B",
    "3b": "meta-llama/Llama-3.2-3B",
    "8b": "meta-llama/Llama-3.1-8B",
    "70b": "meta-llama/Llama-3.1-70B",
}
MOST_ABOVE, TIME_WITHIN = 0.05, 0.10


@dataclass(frozen=True)
class Row:
    run: str
    memory_gib: float
    planned_gib: float
    tokens_per_second: float  # of each GPU; the mean of several cards
    planned_tokens_per_second: float

    @property
    def memory_off(self) -> float:
        return self.planned_gib / self.memory_gib - 1

    @property
    def time_off(self) -> float:
        return self.tokens_per_second / self.planned_tokens_per_second - 1

    @property
    def holds(self) -> bool:
        return 0 <= self.memory_off <= MOST_ABOVE and abs(self.time_off) <= TIME_WITHIN


def main() -> None:
    rows = compare()
    print(
        "| run | used GiB | planned | | tok/s of each GPU | planned | time |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        sep="\n",
    )
    for row in rows:
        memory = f"{row.memory_gib:.1f} | {row.planned_gib:.1f} | {row.memory_off:+.1%}"
        speed = f"{row.tokens_per_second:.0f} | {row.planned_tokens_per_second:.0f} | {row.time_off:+.1%}"
        print(f"| {row.run} | {memory} | {speed}{'' if row.holds else ' **outside**'} |")
    outside = sum(not row.holds for row in rows)
    print(f"\n{len(rows)} runs, {outside} outside")
    sys.exit(outside > 0)


def compare() -> list[Row]:
    return [compared(record) for record in json.loads(RECORDS.read_text(encoding="utf-8"))]


def compared(record: dict[str, Any]) -> Row:
    model = known_model(MODELS[record["model"]])
    assert model is not None
    model = replace(model, num_hidden_layers=record["layers"])
    config = RunConfig(hf_model_id="model", dataset_path="data", num_gpus=record["num_gpus"], **record["flags"])
    rates = rates_of("h200")
    strategy = resolve(config, model, rates.memory_gib, on_gpu=True)
    work = dict(record["work"])
    longest = work.pop("longest_pack")
    place = Place(config.num_gpus, flash_4=record["attention"] == "FlashAttention-4")
    step = step_time(strategy, model, rates, Workload(**work), place)
    assert step is not None
    speeds = record["tokens_per_second_of_each"]
    return Row(
        record["run"],
        record["memory_gib"],
        plan_memory(strategy, model, longest).tensors_gib,
        sum(speeds) / len(speeds),
        step.tokens / step.seconds / config.world_size,
    )


if __name__ == "__main__":
    main()
