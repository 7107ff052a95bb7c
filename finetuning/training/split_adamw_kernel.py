"""The Triton kernel behind `finetuning.training.split_adamw`, which says what it computes."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048  # weights of a program


def update(
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
    grouped = "exp_avg_factor" in state
    group = weight.shape[-1] // state["exp_avg_factor"].shape[-1] if grouped else 1
    unused = state["rest"]
    first = state["exp_avg"]
    assert all(tensor.is_contiguous() for tensor in (weight, gradient, *state.values()))
    _update[(triton.cdiv(weight.numel(), BLOCK),)](
        weight.view(torch.int16),
        state["rest"],
        gradient,
        first.view(torch.uint8) if grouped else first,  # GPUs before Ada know no fp8; its bits are written out below
        state["exp_avg_sq"],
        state["exp_avg_factor"] if grouped else unused,
        state["exp_avg_sq_factor"] if grouped else unused,
        weight.numel(),
        factor,
        beta1,
        beta2,
        eps,
        decay,
        step_size,
        root_correction,
        seed,
        GROUPED=grouped,
        GROUP=group,
        BLOCK=BLOCK,
        num_warps=8,
    )


@triton.jit(do_not_specialize=["seed"])
def _update(
    weight,
    rest,
    gradient,
    first,
    second,
    first_factor,
    second_factor,
    count,
    gradient_factor,
    beta1,
    beta2,
    eps,
    decay,
    step_size,
    root_correction,
    seed,
    GROUPED: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    places = start + tl.arange(0, BLOCK)
    inside = places < count
    g = tl.load(gradient + places, mask=inside, other=0.0).to(tl.float32) * gradient_factor
    m = tl.load(first + places, mask=inside, other=0)
    m = _from_e4m3(m) if GROUPED else m.to(tl.float32)
    v = tl.load(second + places, mask=inside, other=0).to(tl.float32)
    if GROUPED:
        groups = start // GROUP + tl.arange(0, BLOCK // GROUP)
        here = groups < count // GROUP
        m *= _per_weight(tl.load(first_factor + groups, mask=here, other=0.0), GROUP, BLOCK)
        root = tl.exp2((v - 255.0) / 16.0) * _per_weight(tl.load(second_factor + groups, mask=here, other=0.0), GROUP, BLOCK)
        v = root * root
    m = g + beta1 * (m - g)
    v = g * g + beta2 * (v - g * g)

    high = tl.load(weight + places, mask=inside, other=0).to(tl.int32)
    low = tl.load(rest + places, mask=inside, other=0).to(tl.int32)
    master = ((high << 16) + low).to(tl.float32, bitcast=True) * decay
    master -= step_size * m / (tl.sqrt(v) / root_correction + eps)
    bits = master.to(tl.int32, bitcast=True)
    high = (bits.to(tl.int64) + 0x8000) >> 16
    tl.store(weight + places, high.to(tl.int16), mask=inside)
    tl.store(rest + places, (bits.to(tl.int64) - (high << 16)).to(tl.int16), mask=inside)

    mixed = (places + seed.to(tl.int64) * 0x9E3779B9).to(tl.uint32)
    mixed = (mixed ^ (mixed >> 16)) * 0x7FEB352D
    mixed = (mixed ^ (mixed >> 15)) * 0x846CA68B
    mixed = mixed ^ (mixed >> 16)
    chance1, chance2 = (mixed & 0xFFFF).to(tl.int32), (mixed >> 16).to(tl.int32)
    if GROUPED:
        factor = tl.maximum(tl.max(tl.reshape(tl.abs(m), (BLOCK // GROUP, GROUP)), 1) / 448.0, 1e-30)
        tl.store(first_factor + groups, factor, mask=here)
        scaled = m / _per_weight(factor, GROUP, BLOCK)
        exponent = ((scaled.to(tl.int32, bitcast=True) >> 23) & 0xFF) - 127
        step = tl.exp2(tl.maximum(exponent, -6).to(tl.float32) - 3.0)
        rounded = tl.floor(scaled / step + chance1.to(tl.float32) / 65536.0) * step
        rounded = tl.minimum(tl.maximum(rounded, -448.0), 448.0)
        tl.store(first + places, _to_e4m3(rounded), mask=inside)
        root = tl.sqrt(v)
        factor = tl.maximum(tl.max(tl.reshape(root, (BLOCK // GROUP, GROUP)), 1), 1e-30)
        tl.store(second_factor + groups, factor, mask=here)
        share = root / _per_weight(factor, GROUP, BLOCK)
        code = tl.floor(255.0 + 16.0 * tl.log2(tl.maximum(share, 1e-30)))
        code = tl.minimum(tl.maximum(code, 0.0), 254.0)
        below, above = tl.exp2((code - 255.0) / 16.0), tl.exp2((code - 254.0) / 16.0)
        code += ((share - below) / (above - below) > chance2.to(tl.float32) / 65536.0).to(tl.float32)
        tl.store(second + places, code.to(tl.uint8), mask=inside)
    else:
        tl.store(first + places, _to_bfloat16(m, chance1), mask=inside)
        tl.store(second + places, _to_bfloat16(v, chance2), mask=inside)


@triton.jit
def _per_weight(factor, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    return tl.reshape(tl.broadcast_to(factor[:, None], (BLOCK // GROUP, GROUP)), (BLOCK,))


@triton.jit
def _from_e4m3(code):
    """float32 of float8_e4m3fn: a sign, 4 bits of exponent biased by 7, 3 of fraction; exponent 0: multiples of 2^-9."""
    bits = code.to(tl.int32)
    normal = (((bits & 0x7F) << 20) + ((127 - 7) << 23)).to(tl.float32, bitcast=True)
    magnitude = tl.where((bits & 0x78) == 0, (bits & 7).to(tl.float32) * 0.001953125, normal)
    return tl.where(bits >= 0x80, -magnitude, magnitude)


@triton.jit
def _to_e4m3(value):
    """The code of a float32 that float8_e4m3fn has."""
    bits = value.to(tl.int32, bitcast=True)
    magnitude = tl.abs(value)
    normal = ((bits >> 20) & 0x7FF) - ((127 - 7) << 3)
    code = tl.where(magnitude < 0.015625, (magnitude * 512.0).to(tl.int32), normal)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def _to_bfloat16(value, chance):
    bits = (value.to(tl.int32, bitcast=True).to(tl.int64) + chance) >> 16
    return bits.to(tl.int16).to(tl.bfloat16, bitcast=True)
