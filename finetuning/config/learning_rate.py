"""The peak learning rate of a run whose user gives none: what `--lr auto` becomes. Imports no torch.

The rule is that of tinker-cookbook's sweep of supervised fine-tuning over the Llama and Qwen families (published, 1B to 70B,
steps of 128 samples): 5e-5 x (2000 / hidden size) ** 0.781, ten times that for LoRA with alpha 32, and the square root of the
batch. What of it was measured here, and where it is changed, is in docs/learning.md.
"""

import math
from dataclasses import dataclass

from finetuning.config.llama import LlamaConfig
from finetuning.config.settings import RunConfig
from finetuning.i18n import t

ALL_WEIGHTS, LORA_FACTOR = 5e-5, 10.0
HIDDEN, HIDDEN_POWER = 2000.0, 0.781
BATCH, MAX_BOOST = 128, 2.0
SHORT_STEPS, SHORT_POWER = 300, 0.301  # the boost of short runs is over after ten times as many
OF_SCHEDULE = {"cosine": 1.0, "linear": 1.0, "constant": 0.5, "wsd": 0.5}  # those that fall late have twice the mean
LORA_ALPHA = 32.0
FAR = 10.0  # times the rule, or a part of it: worth a warning
EARLIER = {"lora": 1e-4, "none": 5e-6}  # what no --lr meant in runs of before there was a rule


@dataclass(frozen=True)
class LearningRate:
    """The peak, and where it is from."""

    peak: float
    rule: float  # what the rule gives for this run
    source: str  # in words, for the start screen


def choose_learning_rate(config: RunConfig, model: LlamaConfig, max_steps: int, earlier: float | None) -> LearningRate:
    """A number that was given wins; an experiment that goes on keeps what it had (`earlier`); else the rule."""
    rule = rule_of(
        hidden_size=model.hidden_size,
        alpha=config.standard_alpha if config.peft == "lora" else None,
        batch=config.global_batch_size,
        max_steps=max_steps,
        schedule=config.lr_schedule,
    )
    if config.lr is not None:
        changed = earlier is not None and earlier != config.lr
        given = t("given, {earlier:.3g} before", earlier=earlier) if changed else t("given")
        return LearningRate(config.lr, rule, t("{given}; the rule says {rule:.2g}", given=given, rule=rule))
    if earlier is not None:
        return LearningRate(earlier, rule, t("as the experiment began; the rule says {rule:.2g}", rule=rule))
    return LearningRate(rule, rule, _reason(config, model, max_steps))


def rule_of(*, hidden_size: int, alpha: float | None, batch: int, max_steps: int, schedule: str = "cosine") -> float:
    """
    Args:
        alpha: of LoRA, divided by the rank; None: all weights are trainable.
        batch: samples of an optimizer step.

    Example: hidden size 4096, LoRA with alpha 32, batches of 128: 2.9e-4 in a long run, 5.7e-4 in 300 steps.
    """
    peak = ALL_WEIGHTS * (HIDDEN / hidden_size) ** HIDDEN_POWER * _boost(batch, max_steps) * OF_SCHEDULE[schedule]
    return peak if alpha is None else peak * LORA_FACTOR * LORA_ALPHA / alpha


def _boost(batch: int, max_steps: int) -> float:
    """Large batches and short runs take more, together at most MAX_BOOST; small batches do not take less.

    Measured with batches of 2 to 32 and 10 to 300 steps: the best rate is the same, twice to two and a half times the
    published one. Between 300 steps and the long runs of the published sweep nobody has measured.
    """
    short = max(1.0, MAX_BOOST * (SHORT_STEPS / max(max_steps, SHORT_STEPS)) ** SHORT_POWER)
    return min(short * max(1.0, math.sqrt(batch / BATCH)), MAX_BOOST)


def _reason(config: RunConfig, model: LlamaConfig, max_steps: int) -> str:
    lora = t(
        " × {factor:g} for LoRA, alpha {alpha:g}", factor=LORA_FACTOR * LORA_ALPHA / config.standard_alpha, alpha=config.alpha
    )
    factor = OF_SCHEDULE[config.lr_schedule]
    schedule = t(" × {factor:g} for {schedule}", factor=factor, schedule=config.lr_schedule)
    return t(
        "{base:g}{lora} × ({width:g}/{hidden} hidden size)^{power} × {boost:.2g} for {steps} step{steps:s} of {batch} "
        "sample{batch:s}{schedule}; a rule, see docs/learning.md",
        base=ALL_WEIGHTS,
        lora=lora if config.peft == "lora" else "",
        width=HIDDEN,
        hidden=model.hidden_size,
        power=HIDDEN_POWER,
        boost=_boost(config.global_batch_size, max_steps),
        steps=max_steps,
        batch=config.global_batch_size,
        schedule="" if factor == 1 else schedule,
    )
