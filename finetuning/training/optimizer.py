"""AdamW over what is trainable, and its state by name."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from finetuning.parallel.weights import local_part
from finetuning.training.split_adamw import SplitAdamW


def build_optimizer(
    model: nn.Module,
    *,
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    fused: bool,
    states: str = "fp32",
) -> torch.optim.Optimizer:
    """AdamW over the trained parameters; matrices decay, vectors (norms) do not.

    Args:
        states: fp32: torch's AdamW over float32 parameters; bf16 or 8bit: `SplitAdamW` over bfloat16 ones.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if states == "fp32":
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=fused)
    return SplitAdamW(groups, lr=learning_rate, betas=betas, eps=eps, weight_decay=weight_decay, eight_bit=states == "8bit")


def gradient_scaler(optimizer: torch.optim.Optimizer) -> Callable[[Tensor], None]:
    """A function that multiplies the gradients of the next step by a number: now, or where the optimizer does it itself.

    The number is a scalar on the device, which nothing waits for.
    """

    @torch.no_grad()
    def scale(factor: Tensor) -> None:
        if isinstance(optimizer, SplitAdamW):
            optimizer.gradient_factor = factor
            return
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [local_part(parameter.grad) for parameter in trained if parameter.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))  # one kernel only for a number of their dtype

    return scale


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """`NAME.exp_avg`, `NAME.exp_avg_sq`, `NAME.step` and what else there is of every trained parameter, sharded like it.

    Entries are created where the optimizer has not stepped yet, so that a checkpoint can be loaded into them.
    """
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    named: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        assert id(parameter) in known, f"{name} is a gathered copy, not the parameter that is trained"
        state = optimizer.state[parameter]
        if not state:
            state.update(_new_state(optimizer, parameter))
        named |= {f"{name}.{key}": value for key, value in state.items()}
    return named


def _new_state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
    if isinstance(optimizer, SplitAdamW):
        return optimizer.new_state(parameter)
    fused = bool(optimizer.param_groups[0]["fused"])
    return {
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device if fused else "cpu"),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }
