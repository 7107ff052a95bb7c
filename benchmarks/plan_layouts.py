"""Layouts on 8 to 1 024 GPUs that nobody can try here: memory by arithmetic, beside a step of the real code; expected speed.

Each layout is simulated in a process of its own (`finetuning.training.simulate`), half a minute for the 8B, two minutes for the
70B; rows of the table in docs/parallelism.md are printed as they come. Packs are full, 8192 tokens or as named, two a step for
each data-parallel rank (four for each process of a pipeline); H200s, eight in a machine, 400 Gb/s each between machines.

    python benchmarks/plan_layouts.py --out layouts.json
    python benchmarks/plan_layouts.py --only 8b-8-tp2 8b-64
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from finetuning.config.memory import plan_memory  # noqa: E402
from finetuning.config.resolve import resolve  # noqa: E402
from finetuning.config.settings import RunConfig  # noqa: E402
from finetuning.plan.known_models import known_model  # noqa: E402
from finetuning.plan.rates import GIGA, rates_of  # noqa: E402
from finetuning.plan.step_time import Place, step_time  # noqa: E402
from finetuning.plan.workload import Workload  # noqa: E402

MODELS = {"8b": "meta-llama/Llama-3.1-8B", "70b": "meta-llama/Llama-3.1-70B"}
AXES = {"t": "tensor_model_parallel_size", "p": "pipeline_model_parallel_size", "c": "context_parallel_size"}
NETWORK = 400 / 8 * GIGA  # bytes a second
LONG = 131072


@dataclass(frozen=True)
class Layout:
    model: str
    gpus: int
    degrees: dict[str, int] = field(default_factory=dict)  # t, p, c
    flags: dict[str, Any] = field(default_factory=dict)
    tokens: int = 8192

    def config(self) -> RunConfig:
        axes = {AXES[axis]: degree for axis, degree in self.degrees.items()}
        config = RunConfig(
            hf_model_id=MODELS[self.model],
            dataset_path="none",
            num_nodes=max(1, self.gpus // 8),
            num_gpus=min(self.gpus, 8),
            seq_length=self.tokens,
            row_length=self.tokens,
            **axes,
            **self.flags,
        )
        packs = 4 * self.degrees["p"] if "p" in self.degrees else 2
        return dataclasses.replace(config, global_batch_size=packs * config.data_parallel_size)

    @property
    def name(self) -> str:
        parts = [f"{axis}{degree}" for axis, degree in self.degrees.items()]
        parts += [str(value).lower() for name, value in self.flags.items() if name != "data_parallel_replicate_size"]
        copies = self.flags.get("data_parallel_replicate_size")
        parts += [f"copies{copies}"] if copies else []
        return "-".join([self.model, str(self.gpus), *parts, *(["131072"] if self.tokens == LONG else [])])


def copies(number: int) -> dict[str, Any]:
    return {"data_parallel_replicate_size": number}


LORA, RECOMPUTED = {"peft": "lora"}, {"activation_checkpointing": "full"}
LAYOUTS = [
    Layout("8b", 8),
    Layout("8b", 8, {"t": 2}),
    Layout("8b", 8, {"p": 2}),
    Layout("8b", 8, {"c": 2}),
    Layout("8b", 8, {"t": 2, "p": 2}),
    Layout("8b", 8, {"t": 2, "c": 2}),
    Layout("8b", 8, {}, {"sharding": "full"}),
    Layout("8b", 8, {}, LORA),
    Layout("8b", 8, {"p": 2}, LORA),
    Layout("8b", 8, {"c": 8}, RECOMPUTED, LONG),
    Layout("8b", 64),
    Layout("8b", 64, {}, copies(8)),
    Layout("8b", 64, {"t": 2}),
    Layout("8b", 64, {"p": 4}),
    Layout("8b", 64, {"t": 2, "p": 2}),
    Layout("8b", 64, {"c": 8}, RECOMPUTED, LONG),
    Layout("8b", 256),
    Layout("8b", 256, {}, copies(32)),
    Layout("8b", 256, {"t": 4}),
    Layout("8b", 256, {"t": 2, "p": 4}),
    Layout("8b", 1024, {}, copies(128)),
    Layout("8b", 1024, {"t": 2, "p": 4}),
    Layout("8b", 1024, {"t": 4, "p": 4, "c": 2}),
    Layout("70b", 8, {"t": 8}, RECOMPUTED),
    Layout("70b", 64, {"t": 8}),
    Layout("70b", 64, {}, {"sharding": "full"} | RECOMPUTED),
    Layout("70b", 64, {"t": 8, "p": 2}),
    Layout("70b", 256, {"t": 8, "p": 4}),
    Layout("70b", 256, {"t": 8}, copies(4)),
    Layout("70b", 1024, {"t": 8, "p": 4}),
    Layout("70b", 1024, {"t": 8, "p": 8}),
    Layout("70b", 1024, {"t": 8}),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", help="names of layouts, or their beginnings")
    parser.add_argument("--out", type=Path, help="where to keep the results as JSON; what is there is not done again")
    parser.add_argument("--one", help="internal: simulate this layout here")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(simulated(next(layout for layout in LAYOUTS if layout.name == given.one))))
        return
    results = json.loads(given.out.read_text(encoding="utf-8"))["results"] if given.out and given.out.is_file() else []
    done = {row["layout"] for row in results}
    for layout in LAYOUTS:
        if layout.name in done or (given.only and not layout.name.startswith(tuple(given.only))):
            continue
        row = {"layout": layout.name} | expected(layout) | in_process(layout.name)
        row["off"] = round(row["planned_gib"] / row["simulated_gib"] - 1, 4) if "simulated_gib" in row else None
        results.append(row)
        print(as_row(row), flush=True)
        if given.out:
            head = {"date": time.strftime("%Y-%m-%d"), "how": "one CPU process for each layout, torch's fake backend"}
            given.out.write_text(json.dumps({"machine": head, "results": results}, indent=1) + "\n", encoding="utf-8")


def expected(layout: Layout) -> dict[str, Any]:
    config, model = layout.config(), known_model(MODELS[layout.model])
    assert model is not None
    rates = rates_of("h200")
    strategy = resolve(config, model, rates.memory_gib, on_gpu=True)
    work = Workload(config.global_batch_size, layout.tokens, layout.tokens, 1.0)
    step = step_time(strategy, model, rates, work, Place(8, NETWORK, flash_4=True))
    assert step is not None
    return {
        "strategy": f"{strategy.degrees}, {strategy.sharding}, {strategy.activation_checkpointing}, {strategy.blocks}",
        "planned_gib": plan_memory(strategy, model).tensors_gib,
        "tokens_per_second_of_each": round(step.tokens / step.seconds / config.world_size),
        "limit": step.limit,
        "share_of_limit": round(getattr(step, step.limit) / step.seconds, 3),
    }


def in_process(name: str) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__)), "--one", name]
    began_s = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return {"error": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1]) | {"seconds": round(time.monotonic() - began_s, 1)}


def simulated(layout: Layout) -> dict[str, Any]:
    from finetuning.training.simulate import simulate_plan

    config, model = layout.config(), known_model(MODELS[layout.model])
    assert model is not None
    strategy = resolve(config, model, rates_of("h200").memory_gib, on_gpu=True)
    found = simulate_plan(strategy, model)
    collectives = [dataclasses.asdict(collective) for collective in found.collectives]
    return {"simulated_gib": found.peak_bytes / 2**30, "rank": found.rank, "collectives": collectives}


def as_row(row: dict[str, Any]) -> str:
    memory = "–" if row["off"] is None else f"{row['simulated_gib']:.1f} GiB | {row['off']:+.1%}"
    speed = f"{row['tokens_per_second_of_each']:,}".replace(",", " ")
    limit = f"{row['limit']} {row['share_of_limit']:.0%}"
    return f"| {row['layout']} | {row['strategy']} | {row['planned_gib']:.1f} GiB | {memory} | {speed} | {limit} |"


if __name__ == "__main__":
    main()
