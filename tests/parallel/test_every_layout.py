"""Every layout computes what one process computes: the loss, the gradient norm and every gradient, on packed rows.

The rows hold unequal numbers of answer tokens and the last ones none at all. What is compared, how, and why to 1e-6: see
finetuning/parallel/selftest.py.
"""

from dataclasses import replace
from typing import Any

import pytest

from finetuning.config.degrees import Degrees
from finetuning.config.strategy import COMPILED, FUSED, LOW_MEMORY, PLAIN
from finetuning.parallel.selftest import EXACT_TOLERANCE, HALF_TOLERANCE, TOLERANCE, Comparison
from tests.parallel.layouts import FULL, LORA, Case, compare_all
from tests.processes import run_processes

pytestmark = pytest.mark.dist

TP, CP, PP = Degrees(tp=2), Degrees(cp=2), Degrees(pp=2)
SHARDED, COPIED = Degrees(dp_shard=2), Degrees(dp_replicate=2)
AXES = [TP, CP, PP, SHARDED, COPIED]
PAIRS = [
    Degrees(pp=2, tp=2),
    Degrees(cp=2, tp=2),
    Degrees(dp_shard=2, tp=2),
    Degrees(pp=2, cp=2),
    Degrees(pp=2, dp_shard=2),
    Degrees(dp_shard=2, cp=2),
    Degrees(dp_replicate=2, dp_shard=2),
]
TRIPLES = [Degrees(pp=2, dp_shard=2, tp=2), Degrees(pp=2, cp=2, tp=2), Degrees(dp_shard=2, cp=2, tp=2)]
WIDE = [Degrees(tp=4), Degrees(cp=4), Degrees(pp=4), Degrees(dp_shard=4), Degrees(dp_replicate=4)]


def named(case: Case) -> str:
    degrees, strategy, heads = case.degrees, case.strategy, case.heads
    axes = [f"{axis}{degree}" for axis, degree in vars(degrees).items() if degree > 1]
    options = [
        "lora" if strategy.lora_rank else "full",
        *([strategy.sharding] if strategy.sharding != (LORA if strategy.lora_rank else FULL).sharding else []),
        *([strategy.pipeline_schedule] if strategy.pipeline_schedule != "1f1b" else []),
        *([f"recompute-{strategy.activation_checkpointing}"] if strategy.activation_checkpointing != "none" else []),
        *([strategy.compute_dtype] if strategy.compute_dtype != "float32" else []),
        *([strategy.blocks] if strategy.blocks != PLAIN else []),
        *(["split-master"] if strategy.split_master else []),
        *(["tied"] if case.tied else []),
        *([f"heads-{heads[0]}-{heads[1]}"] if heads else []),
    ]
    return "-".join([*axes, *options])


def both(layouts: list[Degrees], **changed: Any) -> list[Case]:
    return [Case(degrees, replace(strategy, **changed)) for degrees in layouts for strategy in (FULL, LORA)]


EXACT: dict[str, Any] = {"compute_dtype": "float64"}
INTERLEAVED = replace(FULL, pipeline_schedule="interleaved")
GROUPS: dict[str, list[Case]] = {
    "one axis": both(AXES),
    "ways of data parallel": [
        Case(SHARDED, replace(FULL, sharding="step")),
        Case(SHARDED, replace(LORA, sharding="full")),
        Case(SHARDED, replace(LORA, sharding="step")),
        Case(COPIED, replace(LORA, sharding="full")),
        Case(TP, replace(LORA, sharding="full")),
    ],
    "pipeline schedules": [
        Case(PP, INTERLEAVED),
        Case(PP, replace(LORA, pipeline_schedule="interleaved")),
    ],
    "tied tables": [
        Case(TP, tied=True),
        Case(PP, tied=True),
        Case(PP, LORA, tied=True),
        Case(PP, INTERLEAVED, tied=True),
        Case(SHARDED, tied=True),
    ],
    "heads that run out": [
        Case(CP, heads=(8, 1)),
        Case(CP, heads=(6, 3)),
        Case(CP, heads=(1, 1)),
        Case(CP, LORA, heads=(3, 3)),
        Case(CP, heads=(9, 3)),
    ],
    "activation checkpointing": [
        Case(degrees, replace(strategy, activation_checkpointing=mode))
        for degrees, strategy in ((TP, FULL), (CP, LORA), (PP, FULL), (SHARDED, LORA))
        for mode in ("selective", "full")
    ],
    "compiled blocks": [
        Case(TP, replace(FULL, blocks=COMPILED)),
        Case(TP, replace(LORA, blocks=COMPILED, activation_checkpointing="selective")),
        Case(CP, replace(FULL, blocks=COMPILED)),
    ],
    "compiled blocks, more": [
        Case(CP, replace(FULL, blocks=COMPILED, activation_checkpointing="full")),
    ],
    "fused blocks": [
        Case(degrees, replace(LORA, blocks=FUSED, activation_checkpointing=mode))
        for degrees, mode in ((SHARDED, "none"), (COPIED, "selective"), (PP, "full"))
    ]
    + [Case(degrees, replace(LORA, blocks=LOW_MEMORY), tied=tied) for degrees, tied in ((SHARDED, False), (COPIED, True))],
    "fused blocks, context parallel": [
        *(
            Case(CP, replace(strategy, blocks=FUSED, activation_checkpointing=mode))
            for strategy, mode in ((FULL, "none"), (FULL, "selective"), (LORA, "none"), (LORA, "full"))
        ),
        *(
            Case(CP, replace(strategy, blocks=FUSED), heads=heads)
            for strategy, heads in ((FULL, (8, 1)), (FULL, (9, 3)), (LORA, (3, 3)))
        ),
        Case(CP, replace(FULL, blocks=FUSED, sharding="step", optimizer_states="bf16"), tied=True),
    ],
    "fused blocks, all weights": [
        *(Case(degrees, replace(FULL, blocks=FUSED)) for degrees in (SHARDED, COPIED, TP, PP)),
        *(Case(degrees, replace(FULL, blocks=FUSED, optimizer_states="bf16")) for degrees in (TP, PP)),  # whole weights
        *(Case(SHARDED, replace(FULL, blocks=FUSED, sharding="step", optimizer_states=states)) for states in ("fp32", "bf16")),
        Case(TP, replace(FULL, blocks=FUSED, activation_checkpointing="selective")),
        Case(SHARDED, replace(FULL, blocks=FUSED, activation_checkpointing="selective"), tied=True),
        Case(PP, replace(INTERLEAVED, blocks=FUSED, optimizer_states="bf16"), tied=True),
    ],
    "bfloat16": [
        Case(degrees, replace(strategy, compute_dtype="bfloat16"))
        for degrees, strategy in ((TP, FULL), (TP, LORA), (CP, LORA), (PP, FULL), (SHARDED, FULL))
    ]
    + [Case(degrees, replace(FULL, compute_dtype="bfloat16", optimizer_states="bf16")) for degrees in (TP, PP, SHARDED)]
    + [
        Case(degrees, replace(FULL, compute_dtype="bfloat16", optimizer_states="bf16", blocks=FUSED))
        for degrees in (TP, SHARDED)
    ],
    "one axis, exact": both(AXES, **EXACT),
    "pairs of axes": both(PAIRS),
    "wide axes": [
        *(Case(degrees) for degrees in WIDE),
        Case(Degrees(cp=4), heads=(2, 1)),
        Case(Degrees(cp=4), heads=(8, 2)),
    ],
    "pairs, other ways": [
        Case(Degrees(pp=2, dp_shard=2), replace(LORA, blocks=FUSED)),
        Case(Degrees(dp_replicate=2, dp_shard=2), replace(LORA, blocks=FUSED)),
        Case(Degrees(pp=2, tp=2), tied=True),
        Case(Degrees(pp=2, dp_shard=2), INTERLEAVED, tied=True),
        Case(Degrees(cp=2, tp=2), heads=(2, 2)),
        Case(Degrees(dp_replicate=2, tp=2), replace(LORA, sharding="full")),
        Case(Degrees(tp=4), FULL),
    ],
    "fused blocks, all weights, pairs": [
        *(
            Case(degrees, replace(FULL, blocks=FUSED))
            for degrees in (Degrees(dp_shard=2, tp=2), Degrees(dp_replicate=2, dp_shard=2), Degrees(pp=2, dp_shard=2))
        ),
        Case(Degrees(pp=2, tp=2), replace(FULL, blocks=FUSED, optimizer_states="bf16", activation_checkpointing="full")),
        Case(
            Degrees(dp_shard=2, tp=2),
            replace(FULL, blocks=FUSED, sharding="step", activation_checkpointing="selective", optimizer_states="bf16"),
        ),
    ],
    "fused blocks, context parallel, pairs": [
        Case(Degrees(cp=2, tp=2), replace(FULL, blocks=FUSED)),
        Case(Degrees(cp=2, dp_shard=2), replace(FULL, blocks=FUSED)),
        Case(Degrees(cp=2, dp_shard=2), replace(LORA, blocks=FUSED)),
        Case(Degrees(cp=2, pp=2), replace(LORA, blocks=FUSED)),
    ],
    "three axes": both(TRIPLES),
    "three axes, exact": both(TRIPLES, **EXACT),
    "eight processes": [Case(Degrees(dp_replicate=2, dp_shard=2, tp=2)), Case(Degrees(tp=8)), Case(Degrees(dp_shard=8), LORA)],
}
# Each layout is in a group that is always run; these are dear and see little that the others do not.
SLOW = {"compiled blocks, more", "three axes, exact"}
EVERY_CASE = [
    pytest.param(group, index, id=named(case), marks=[pytest.mark.slow] if group in SLOW else [])
    for group, cases in GROUPS.items()
    for index, case in enumerate(cases)
]


@pytest.fixture(scope="module")
def compared() -> dict[str, list[list[Comparison | str | None]]]:
    return {}


@pytest.mark.parametrize(("group", "index"), EVERY_CASE)
def test_loss_and_every_gradient_are_those_of_one_process(
    group: str, index: int, compared: dict[str, list[list[Comparison | str | None]]]
) -> None:
    if group not in compared:
        cases = GROUPS[group]
        compared[group] = run_processes(cases[0].degrees.world_size, compare_all, cases)
    ranks = [rank[index] for rank in compared[group]]
    failures = [f"rank {number}: {found}" for number, found in enumerate(ranks) if isinstance(found, str)]
    assert not failures, failures[0]
    found = ranks[0]
    assert isinstance(found, Comparison)
    dtype = GROUPS[group][index].strategy.compute_dtype
    tolerance = {"float64": EXACT_TOLERANCE, "float32": TOLERANCE, "bfloat16": HALF_TOLERANCE}[dtype]
    assert found.equal(tolerance), f"{found.worst}, loss {found.loss} for {found.expected_loss}"
    if dtype == "float64":  # nothing is lost, however small
        assert max(found.of_largest.values()) < EXACT_TOLERANCE
    targets = GROUPS[group][index].strategy.lora_targets
    assert len(found.differences) >= (8 * len(targets) or 38)  # both adapters of the linears of four blocks, or every weight
