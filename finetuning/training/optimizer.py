"""AdamW and the learning rate of each step."""

import math

import torch

from finetuning.parallel.apply import ParallelLlama, trained_parameters


def build_optimizer(
    model: ParallelLlama, *, learning_rate: float, betas: tuple[float, float], eps: float, weight_decay: float, fused: bool
) -> torch.optim.AdamW:
    """AdamW over the trained parameters; matrices decay, vectors (norms) do not."""
    trained = list(trained_parameters(model).values())
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=fused)


def learning_rate_at(step: int, *, peak: float, minimum: float, warmup_steps: int, max_steps: int) -> float:
    """Learning rate of step `step` (from 0): linear warm-up over `warmup_steps`, then half a cosine to `minimum`.

    A pure function of the step: there is no scheduler state to restore. Example: peak 1, 2 warm-up steps of 6 ->
    0.5, 1.0, 1.0, 0.854, 0.5, 0.146.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    return minimum + (peak - minimum) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def optimizer_state(model: ParallelLlama, optimizer: torch.optim.AdamW) -> dict[str, torch.Tensor]:
    """`NAME.exp_avg`, `NAME.exp_avg_sq` and `NAME.step` of every trained parameter of this process's stages.

    The moments are whole tensors spread like the parameter; writing into them changes the optimizer.

    Entries are created where the optimizer has not stepped yet, so that a checkpoint can be loaded into them.
    """
    fused = bool(optimizer.param_groups[0]["fused"])
    named: dict[str, torch.Tensor] = {}
    for name, parameter in trained_parameters(model).items():
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device if fused else "cpu")
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        named[f"{name}.step"] = state["step"]
        named |= {f"{name}.{key}": model.view(name, state[key]) for key in ("exp_avg", "exp_avg_sq")}
    return named
