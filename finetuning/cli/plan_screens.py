"""What `finetune plan` prints: on the terminal, and for programs."""

import dataclasses
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from finetuning.config.memory import MemoryPlan, trainable_parameters
from finetuning.config.resolve import USABLE
from finetuning.config.run import Run
from finetuning.i18n import t
from finetuning.launch.expected import Expected, Outlook, Used
from finetuning.plan.layouts import Planned, changes_between, flags_of

if TYPE_CHECKING:
    from finetuning.cli.plan import Plan
    from finetuning.training.simulate import Simulation

LABEL_WIDTH = 12
GIB = 2**30
MAX_LAYOUTS = 12
MINUTE, HOUR, DAY = 60, 3600, 86400


def show_plan(console: Console, plan: "Plan", simulation: "Simulation | None") -> None:
    """The asked layout by parts, then all layouts."""
    for label, value in plan_lines(plan):
        line(console, label, value)
    if simulation is not None:
        for label, value in simulation_lines(plan, simulation):
            line(console, label, value)
    console.print()
    _show_ranking(console, plan)


def line(console: Console, label: str, value: str) -> None:
    head = Text(label, style="cyan")
    head.align("left", LABEL_WIDTH)  # by display width: a Chinese character takes two columns
    console.print(head + Text(value), highlight=False, soft_wrap=True)


def plan_lines(plan: "Plan") -> list[tuple[str, str]]:
    model, config, chosen, cost = plan.where.model, plan.config, plan.chosen, plan.forecast
    trainable = trainable_parameters(chosen.strategy, model)
    lines = [
        (
            t("model"),
            t(
                "{name} · {layers} layer{layers:s} · {total:.2f} B parameters, {trainable:.2f} B trainable",
                name=config.hf_model_id,
                layers=model.num_hidden_layers,
                total=model.num_parameters / 1e9,
                trainable=trainable / 1e9,
            ),
        ),
        (t("GPUs"), gpu_words(plan)),
        (t("samples"), _samples(plan)),
        (t("layout"), f"{chosen.strategy.degrees} · {ways_of(chosen)}"),
        (t("memory"), memory_words(chosen.memory, plan.where.memory_gib)),
        (t("host"), t("{gib:.1f} GiB of each machine, besides the processes themselves", gib=cost.host_gib)),
        (t("speed"), speed_words(chosen)),
        (t("job"), _job(plan)),
        (
            t("disk"),
            t(
                "a checkpoint {checkpoint:.1f} GiB (up to {kept} at once), the result {export:.1f} GiB, tokens {tokens}",
                checkpoint=cost.checkpoint_bytes / GIB,
                kept=config.keep_last + 2,
                export=cost.export_bytes / GIB,
                tokens=t("not known") if cost.tokens_bytes is None else f"{cost.tokens_bytes / GIB:.2f} GiB",
            ),
        ),
    ]
    if plan.faster is not None:
        lines.append((t("faster"), faster_words(config, chosen, plan.faster)))
    if not chosen.fits:
        lines.append((t("it fits"), _changes(plan)))
    return lines


def gpu_words(plan: "Plan") -> str:
    rates, where = plan.where.rates, plan.where
    if rates is None:
        return t(
            "{count} of {gib:.0f} GiB; how fast they are is not known (--gpu)",
            count=plan.config.world_size,
            gib=where.memory_gib,
        )
    how = (
        t("rates measured on one") if rates.measured else t("rates from data sheets, scaled by what an H200 reaches of its own")
    )
    return t(
        "{count} × {name}, {gib:.0f} GiB · {how}", count=plan.config.world_size, name=rates.name, gib=where.memory_gib, how=how
    )


def _samples(plan: "Plan") -> str:
    samples, work = plan.samples, plan.samples.work
    text = t(
        "{count} a step, {tokens:,.0f} token{tokens:s} each, {share:.0%} of them targets",
        count=work.samples,
        tokens=work.tokens,
        share=work.target_share,
    )
    if not samples.measured:
        return text + t(" (assumed; give --dataset_path or --tokens_per_sample)")
    return text + t(" · {count:,} training sample{count:s}", count=samples.count)


def memory_words(memory: MemoryPlan, there_gib: float) -> str:
    parts = [
        (t("states"), memory.states),
        (t("gathered"), memory.gathered),
        (t("activations"), memory.activations),
        (t("head or block at work"), memory.work),
        (t("rounding"), memory.rounding),
        (t("allowance"), memory.allowance),
    ]
    words = " + ".join(f"{name} {size / GIB:.1f}" for name, size in parts if size >= 0.05 * GIB)
    fits = memory.total_gib <= there_gib * USABLE
    verdict = t("fits") if fits else t("does not fit: {most:.1f} GiB may be filled", most=there_gib * USABLE)
    return t(
        "{total:.1f} GiB of {there:.1f} GiB: {words} · {verdict}",
        total=memory.total_gib,
        there=there_gib,
        words=words,
        verdict=verdict,
    )


def ways_of(planned: Planned) -> str:
    """What every `auto` became."""
    strategy = planned.strategy
    texts = [
        t("{blocks} blocks", blocks=strategy.blocks.replace("_", "-")),
        "fp8" if strategy.fp8 else "",
        t("sharding {sharding}", sharding=strategy.sharding) if strategy.degrees.world_size > 1 else "",
        t("recomputation {mode}", mode=strategy.activation_checkpointing),
        t("optimizer states {states}", states=strategy.optimizer_states) if strategy.trains_all else "",
        t("packs of {tokens:,}", tokens=strategy.packs.capacity),
    ]
    return " · ".join(filter(None, texts))


def speed_words(planned: Planned) -> str:
    time = planned.time
    if time is None:
        return t("not known")
    parts = [
        (t("products"), time.products),
        (t("attention"), time.attention),
        (t("passes"), time.passes),
        (t("optimizer"), time.optimizer),
        (t("messages"), time.messages),
        (t("pipeline"), time.waits),
    ]
    words = ", ".join(f"{name} {seconds / time.seconds:.0%}" for name, seconds in parts if seconds >= 0.005 * time.seconds)
    return t(
        "{tokens:,.0f} token{tokens:s}/s of each GPU · {seconds:.2f} s a step: {words}",
        tokens=planned.tokens_per_gpu,
        seconds=time.seconds,
        words=words,
    )


def _job(plan: "Plan") -> str:
    cost = plan.forecast
    if cost.step_s is None or cost.warm_start_s is None or cost.cold_start_s is None:
        return t("not known")
    text = t("first step done after {warm:.0f} to {cold:.0f} s", warm=cost.warm_start_s, cold=cost.cold_start_s)
    if cost.job_s is None:
        return text + t(" · the whole job: give --max_steps, --num_samples or data")
    text += t(" · {steps:,} step{steps:s} in {duration}", steps=cost.max_steps, duration=duration(cost.job_s))
    if cost.energy_kwh is not None:
        text += t(" · {energy:,.1f} kWh by the GPUs", energy=cost.energy_kwh)
    return text


def faster_words(config: Any, chosen: Planned, faster: Planned) -> str:
    """One line for this screen and the start screen."""
    assert chosen.time is not None and faster.time is not None
    return t(
        "{flags}: {tokens:,.0f} token{tokens:s}/s of each GPU expected, {times:.2f} × as fast; {gib:.0f} GiB",
        flags=flags_of(changes_between(config, faster.config)),
        tokens=faster.tokens_per_gpu,
        times=chosen.time.seconds / faster.time.seconds,
        gib=faster.memory.total_gib,
    )


def _changes(plan: "Plan") -> str:
    if not plan.changes:
        return t("with no single change of layout, precision, recomputation, length or number of GPUs")
    words = [f"{flags_of(changes)} ({planned.memory.total_gib:.0f} GiB)" for changes, planned in plan.changes[:4]]
    return t("with {ways}", ways=t(" or ").join(words))


def _show_ranking(console: Console, plan: "Plan") -> None:
    console.print(t("Layouts of {count} GPU{count:s}:", count=plan.config.world_size))
    for planned in plan.ranking[:MAX_LAYOUTS]:
        console.print("  " + ranking_words(planned, plan.where.memory_gib))
    if len(plan.ranking) > MAX_LAYOUTS:
        console.print(t("  and {count} more, see --json", count=len(plan.ranking) - MAX_LAYOUTS))
    if plan.others:
        console.print(t("The same layout otherwise:"))
    for changes, planned in plan.others:
        console.print("  " + ranking_words(planned, plan.where.memory_gib, flags_of(changes)))


def ranking_words(planned: Planned, there_gib: float, flags: str | None = None) -> str:
    """`flags`: what leads to it, where that is not the layout."""
    cost = t("not known") if planned.time is None else f"{planned.tokens_per_gpu:,.0f} tok/s"
    verdict = (
        "" if planned.fits else " · " + t("does not fit by {gib:.1f} GiB", gib=planned.memory.total_gib - there_gib * USABLE)
    )
    name = flags or str(planned.strategy.degrees)
    return f"{name:<38}{planned.memory.total_gib:7.1f} GiB  {cost:>13}  {ways_of(planned)}{verdict}"


def simulation_lines(plan: "Plan", found: "Simulation") -> list[tuple[str, str]]:
    planned = plan.chosen.memory.tensors_gib
    text = t(
        "tensors {found:.1f} GiB in the real code, {planned:.1f} GiB by the arithmetic ({off:+.1%}) · rank {rank}, "
        "{blocks} blocks",
        found=found.peak_bytes / GIB,
        planned=planned,
        off=planned * GIB / found.peak_bytes - 1,
        rank=found.rank,
        blocks=found.blocks,
    )
    lines = [(t("simulated"), text)]
    for collective in found.collectives:
        words = t(
            "{count} × {name} among {ranks}, {size:.2f} GB in all",
            count=collective.count,
            name=collective.name,
            ranks=collective.group_size,
            size=collective.num_bytes / 1e9,
        )
        lines.append(("", words))
    return lines


def outlook_lines(outlook: Outlook | None, run: Run) -> list[tuple[str, str]]:
    """How fast a run is expected to be, where that is known, and which layout would be faster; of its first screen."""
    if outlook is None or outlook.expected.step_s is None:
        return []
    text = t(
        "about {tokens:,.0f} token{tokens:s}/s of each GPU, {seconds:.2f} s a step, all {steps:,} step{steps:s} in {duration}",
        tokens=outlook.chosen.tokens_per_gpu,
        seconds=outlook.expected.step_s,
        steps=run.max_steps,
        duration=duration(run.max_steps * outlook.expected.step_s),
    )
    lines = [(t("speed"), text if outlook.expected.measured_rates else text + t(" (rates from data sheets)"))]
    if outlook.faster is not None:
        lines.append((t("faster"), faster_words(run.config, outlook.chosen, outlook.faster)))
    return lines


def beside_words(expected: Expected, used: Used) -> str:
    """Plan and reality of a run, side by side."""
    unknown = t("not known")
    return t(
        "memory {used:.1f} GiB, {planned:.1f} planned · {seconds:.2f} s a step, {planned_s} planned · {tokens:,.0f} "
        "token{tokens:s}/s, {planned_tokens} planned",
        used=used.memory_gib,
        planned=expected.memory_gib,
        seconds=used.step_s,
        planned_s=unknown if expected.step_s is None else f"{expected.step_s:.2f}",
        tokens=used.tokens_per_second,
        planned_tokens=unknown if expected.tokens_per_second is None else f"{expected.tokens_per_second:,.0f}",
    )


def duration(seconds: float) -> str:
    if seconds < 2 * MINUTE:
        return t("{seconds:.0f} s", seconds=seconds)
    if seconds < 2 * HOUR:
        return t("{minutes:.0f} min", minutes=seconds / MINUTE)
    if seconds < 3 * DAY:
        return t("{hours:.1f} h", hours=seconds / HOUR)
    return t("{days:.1f} days", days=seconds / DAY)


def as_json(plan: "Plan", simulation: "Simulation | None") -> dict[str, Any]:
    rates = plan.where.rates
    return {
        "fits": plan.chosen.fits,
        "gpu": None if rates is None else {"kind": rates.kind, "name": rates.name, "measured": rates.measured},
        "gpu_memory_gib": plan.where.memory_gib,
        "samples": dataclasses.asdict(plan.samples),
        "chosen": _planned_json(plan.config, plan.chosen),
        "forecast": dataclasses.asdict(plan.forecast),
        "faster": None if plan.faster is None else _planned_json(plan.config, plan.faster),
        "would_fit_with": [
            {"flags": flags_of(changes)} | _planned_json(plan.config, planned) for changes, planned in plan.changes
        ],
        "layouts": [_planned_json(plan.config, planned) for planned in plan.ranking],
        "otherwise": [{"flags": flags_of(changes)} | _planned_json(plan.config, planned) for changes, planned in plan.others],
        "simulation": None if simulation is None else dataclasses.asdict(simulation),
    }


def _planned_json(config: Any, planned: Planned) -> dict[str, Any]:
    time = planned.time
    return {
        "flags": flags_of(changes_between(config, planned.config)),
        "layout": str(planned.strategy.degrees),
        "strategy": dataclasses.asdict(planned.strategy),
        "fits": planned.fits,
        "memory_gib": {name: size / GIB for name, size in dataclasses.asdict(planned.memory).items()}
        | {"tensors": planned.memory.tensors_gib, "total": planned.memory.total_gib},
        "step_s": None if time is None else time.seconds,
        "tokens_per_second_of_each_gpu": planned.tokens_per_gpu,
        "time": None if time is None else dataclasses.asdict(time),
        "limited_by": None if time is None else time.limit,
    }
