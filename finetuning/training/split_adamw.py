"""AdamW for weights that are all trained, in 10 or 8 bytes per weight instead of 16.

A float32 master weight is cut in two halves of 16 bits. The upper one, rounded, is the bfloat16 weight that the model
computes with; the lower one, signed, is kept here: together they are the float32 weight exactly, and there is no second
copy. Gradients are bfloat16, as the matrix products give them. Moments are bfloat16, or 8 bits with a factor for each
group of GROUP weights.

Moments are rounded up or down by chance, in proportion to the distance, so that small changes are not lost on average
(with beta2 0.999, rounding to nearest would freeze the second moment). Chance is a hash of the step and the place of the
weight: the same run gives the same numbers. On CUDA one Triton kernel does all of it in one pass
(`finetuning.training.split_adamw_kernel`); elsewhere the same formulas in plain PyTorch.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from finetuning.parallel.weights import local_part

GROUP = 128  # weights that share a factor
FP8_MAX = 448.0
LEAST = 1e-30  # factor of a group of zeros
CODES_PER_OCTAVE = 16  # of the 8-bit second moment: its root in steps of 2^(1/16), 16 octaves below the group's largest


class SplitAdamW(torch.optim.Optimizer):
    """AdamW (decoupled decay) over bfloat16 parameters; see the module.

    State of a parameter: `rest` (int16), `exp_avg` and `exp_avg_sq`, and with 8 bits `exp_avg_factor` and
    `exp_avg_sq_factor` [..., last / GROUP]. Vectors, and matrices whose last dimension is no multiple of GROUP, keep bfloat16
    moments.
    """

    def __init__(self, params: Any, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float, eight_bit: bool):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.eight_bit = eight_bit
        self.gradient_factor = torch.ones(())  # every gradient of the next step is multiplied by it, on the way in

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """State of a parameter before its first step, on its device and sharded like it."""
        state = {"step": torch.zeros((), dtype=torch.float32), "rest": torch.zeros_like(parameter, dtype=torch.int16)}
        if not (self.eight_bit and parameter.ndim > 1 and parameter.shape[-1] % GROUP == 0):
            return state | {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
        factors = torch.zeros_like(parameter[..., ::GROUP], dtype=torch.float32)
        return state | {
            "exp_avg": torch.zeros_like(parameter, dtype=torch.float8_e4m3fn),
            "exp_avg_sq": torch.zeros_like(parameter, dtype=torch.uint8),
            "exp_avg_factor": factors,
            "exp_avg_sq_factor": torch.zeros_like(factors),
        }

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        factor = self.gradient_factor.item()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for index, parameter in enumerate(group["params"]):
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state.update(self.new_state(parameter))
                state["step"] += 1
                step = int(state["step"])
                update = _kernel() if parameter.is_cuda else update_plain
                update(
                    local_part(parameter),
                    local_part(parameter.grad),
                    {name: local_part(value) for name, value in state.items() if name != "step"},
                    factor=factor,
                    beta1=beta1,
                    beta2=beta2,
                    eps=group["eps"],
                    decay=1 - group["lr"] * group["weight_decay"],
                    step_size=group["lr"] / (1 - beta1**step),
                    root_correction=math.sqrt(1 - beta2**step),
                    seed=(step * 1_000_003 + index) % 2**31,
                )
        return loss


def update_plain(
    weight: Tensor,
    gradient: Tensor,
    state: dict[str, Tensor],
    *,
    factor: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
    step_size: float,
    root_correction: float,
    seed: int,
) -> None:
    """One update in place, of all tensors. `decay` multiplies the weight first, as in torch.optim.AdamW."""
    wide = gradient.float() * factor
    chance = hash_places(weight.numel(), seed, weight.device).view(weight.shape)
    first = wide.lerp(_read_first(state), beta1)
    second = (wide * wide).lerp(_read_second(state), beta2)
    master = join_halves(weight, state["rest"]) * decay
    master -= step_size * first / (second.sqrt() / root_correction + eps)
    high, rest = split_halves(master)
    weight.copy_(high)
    state["rest"].copy_(rest)
    _write_first(state, first, chance & 0xFFFF)
    _write_second(state, second, chance >> 16)


def split_halves(master: Tensor) -> tuple[Tensor, Tensor]:
    """A float32 tensor as its bfloat16 rounding and what is missing from it, in units of float32's last bit (int16)."""
    bits = master.float().view(torch.int32)
    high = (bits.long() + 0x8000) >> 16
    return high.to(torch.int16).view(torch.bfloat16), (bits.long() - (high << 16)).to(torch.int16)


def join_halves(high: Tensor, rest: Tensor) -> Tensor:
    """The float32 tensor that `split_halves` took apart."""
    return ((high.view(torch.int16).int() << 16) + rest.int()).view(torch.float32)


def hash_places(count: int, seed: int, device: torch.device) -> Tensor:
    """32 well-mixed bits for each place 0 … count - 1 (int64)."""
    mask = 0xFFFFFFFF
    x = (torch.arange(count, device=device) + seed * 0x9E3779B9) & mask
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * factor) & mask
    return x ^ (x >> 16)


def _read_first(state: dict[str, Tensor]) -> Tensor:
    moment = state["exp_avg"].float()
    return moment if "exp_avg_factor" not in state else moment * _per_weight(state["exp_avg_factor"])


def _read_second(state: dict[str, Tensor]) -> Tensor:
    moment = state["exp_avg_sq"].float()
    if "exp_avg_sq_factor" not in state:
        return moment
    return (torch.exp2((moment - 255) / CODES_PER_OCTAVE) * _per_weight(state["exp_avg_sq_factor"])) ** 2


def _write_first(state: dict[str, Tensor], value: Tensor, chance: Tensor) -> None:
    if "exp_avg_factor" not in state:
        state["exp_avg"].copy_(_to_bfloat16(value, chance))
        return
    factor = (_grouped(value.abs()).amax(-1) / FP8_MAX).clamp_min(LEAST)
    state["exp_avg_factor"].copy_(factor)
    scaled = value / _per_weight(factor)
    # A step of e4m3 is 2^-3 of a number's power of two, and 2^-9 below the smallest normal number, 2^-6.
    _, exponent = torch.frexp(scaled)
    step = torch.exp2((exponent - 1).clamp_min(-6).float() - 3)
    rounded = torch.floor(scaled / step + chance.float() / 65536) * step
    state["exp_avg"].copy_(rounded.clamp(-FP8_MAX, FP8_MAX))


def _write_second(state: dict[str, Tensor], value: Tensor, chance: Tensor) -> None:
    if "exp_avg_sq_factor" not in state:
        state["exp_avg_sq"].copy_(_to_bfloat16(value, chance))
        return
    root = value.sqrt()
    factor = _grouped(root).amax(-1).clamp_min(LEAST)
    state["exp_avg_sq_factor"].copy_(factor)
    share = root / _per_weight(factor)
    code = torch.floor(255 + CODES_PER_OCTAVE * torch.log2(share)).clamp(0, 254)
    below, above = (torch.exp2((c - 255) / CODES_PER_OCTAVE) for c in (code, code + 1))
    state["exp_avg_sq"].copy_((code + ((share - below) / (above - below) > chance.float() / 65536)).clamp(0, 255))


def _to_bfloat16(value: Tensor, chance: Tensor) -> Tensor:
    bits = value.view(torch.int32).long() + chance
    return (bits >> 16).to(torch.int16).view(torch.bfloat16)


def _grouped(value: Tensor) -> Tensor:
    return value.unflatten(-1, (-1, GROUP))


def _per_weight(factor: Tensor) -> Tensor:
    return factor.repeat_interleave(GROUP, -1)


def _kernel() -> Callable[..., None]:
    """Imported where it is needed: Triton comes with PyTorch for CUDA only."""
    from finetuning.training.split_adamw_kernel import update

    return update
