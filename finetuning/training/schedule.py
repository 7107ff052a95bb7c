"""The learning rate of each step: a pure function of the step, so that there is no scheduler state to restore."""

import math

WSD_DECAY = 0.2  # share of the steps after the warm-up in which it falls


def learning_rate_at(
    step: int, *, peak: float, minimum: float, warmup_steps: int, max_steps: int, schedule: str = "cosine"
) -> float:
    """Learning rate of step `step` (from 0): linear warm-up over `warmup_steps`, then from `peak` towards `minimum`.

    The first step of a warm-up is not 0, unlike in transformers: it would be lost. cosine: half a cosine; linear: a line;
    constant: the peak; wsd (warm-up, stable, decay): the peak, and a line in the last fifth.

    Example: peak 1, 2 warm-up steps of 6, cosine -> 0.5, 1.0, 1.0, 0.854, 0.5, 0.146.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min((step - warmup_steps) / max(1, max_steps - warmup_steps), 1.0)
    share = {
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - progress,
        "constant": 1.0,
        "wsd": min(1.0, (1 - progress) / WSD_DECAY),
    }[schedule]
    return minimum + (peak - minimum) * share
