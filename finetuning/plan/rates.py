"""How fast a kind of GPU is, and its links: measured, or published and scaled by what was reached elsewhere, or not known.

Read from `rates.yaml`, where each number has its source and date. Imports no torch.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import msgspec

from finetuning.errors import InputError
from finetuning.files.documents import read_yaml
from finetuning.i18n import t

RATES_FILE = Path(__file__).with_name("rates.yaml")
GIGA, TERA = 1e9, 1e12

Number = tuple[float, str]  # value, name of its source


class Flash(msgspec.Struct, forbid_unknown_fields=True):
    """Attention: tflops of a document without end; one of `half_length` tokens reaches half of it."""

    tflops: Number
    half_length: Number


class Gpu(msgspec.Struct, forbid_unknown_fields=True):
    """One kind, as the file has it. Rates of links are of each GPU and direction."""

    name: str
    memory_gib: Number
    power_w: Number
    bf16_tflops: Number | None = None
    fp8_tflops: Number | None = None
    memory_gb_s: Number | None = None
    host_gb_s: Number | None = None
    weights_gb_s: Number | None = None
    exchange_gb_s: Number | None = None
    heads_gb_s: Number | None = None
    flash2: Flash | None = None
    flash4: Flash | None = None
    runs_flash4: bool = False  # where it was not measured: Hopper and newer, of data centers
    bf16_peak_tflops: Number | None = None
    fp8_peak_tflops: Number | None = None
    memory_peak_gb_s: Number | None = None
    link_peak_gb_s: Number | None = None


class Source(msgspec.Struct, forbid_unknown_fields=True):
    what: str
    date: str
    published: bool = False


class Tables(msgspec.Struct, forbid_unknown_fields=True):
    gpus: dict[str, Gpu]
    shares: dict[str, Number]
    step: dict[str, Number]
    start: dict[str, Number]
    sources: dict[str, Source]


@dataclass(frozen=True)
class Attention:
    """See `Flash`, in operations a second."""

    flop_s: float
    half_length: float


@dataclass(frozen=True)
class Rates:
    """Of one kind of GPU, a second; None: not known. Bytes of links are of each GPU and direction."""

    kind: str
    name: str
    memory_gib: float
    power_w: float
    bf16: float | None
    fp8: float | None
    memory: float | None
    weights: float | None  # gathering weights and summing gradients, inside a machine
    exchange: float | None  # of activations, inside a machine
    heads: float | None  # of tokens for heads, inside a machine
    flash2: Attention | None
    flash4: Attention | None
    measured: bool  # on this kind; else published peaks, scaled

    def attention(self, flash_4: bool) -> Attention | None:
        return self.flash4 if flash_4 and self.flash4 is not None else self.flash2


@lru_cache(maxsize=1)
def tables() -> Tables:
    return read_yaml(RATES_FILE, Tables)


def kinds() -> list[str]:
    return list(tables().gpus)


def rates_of(kind: str) -> Rates:
    """
    Raises:
        InputError: no such kind is known.
    """
    gpus = tables().gpus
    if kind not in gpus:
        raise InputError(
            t("--gpu {kind!r}: not known; choose from {known}, or give --gpu_memory_gib", kind=kind, known=", ".join(gpus))
        )
    gpu = gpus[kind]
    flash2, flash4 = _attention(gpu.flash2), _attention(gpu.flash4)
    if gpu.bf16_peak_tflops is not None:
        flash2 = flash2 or _scaled_attention(gpu.bf16_peak_tflops, "flash2")
        flash4 = flash4 or (_scaled_attention(gpu.bf16_peak_tflops, "flash4") if gpu.runs_flash4 else None)
    return Rates(
        kind=kind,
        name=gpu.name,
        memory_gib=gpu.memory_gib[0],
        power_w=gpu.power_w[0],
        bf16=_rate(gpu.bf16_tflops, gpu.bf16_peak_tflops, "bf16", TERA),
        fp8=_rate(gpu.fp8_tflops, gpu.fp8_peak_tflops, "fp8", TERA),
        memory=_rate(gpu.memory_gb_s, gpu.memory_peak_gb_s, "memory", GIGA),
        weights=_rate(gpu.weights_gb_s, gpu.link_peak_gb_s, "weights", GIGA),
        exchange=_rate(gpu.exchange_gb_s, gpu.link_peak_gb_s, "exchange", GIGA),
        heads=_rate(gpu.heads_gb_s, gpu.link_peak_gb_s, "heads", GIGA),
        flash2=flash2,
        flash4=flash4,
        measured=gpu.bf16_tflops is not None,
    )


def kind_of_name(name: str) -> str | None:
    """The kind of a GPU by what its driver calls it, as in "NVIDIA H200"; None: not in the table, or not surely."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    if "a100" in words:
        return "a100-40" if any("40gb" in word for word in words) else "a100-80"
    if "ada" in words and "6000" in words:
        return "rtx6000ada"
    found = [kind for kind in kinds() if kind in words]
    pcie = {"pcie", "nvl"} & set(words)  # slower cards of the same name
    return found[0] if len(found) == 1 and not pcie else None


def step_number(name: str) -> float:
    return tables().step[name][0]


def start_number(name: str) -> float:
    return tables().start[name][0]


def _rate(measured: Number | None, peak: Number | None, share: str, unit: float) -> float | None:
    if measured is not None:
        return measured[0] * unit
    return None if peak is None else peak[0] * unit * tables().shares[share][0]


def _attention(found: Flash | None) -> Attention | None:
    return None if found is None else Attention(found.tflops[0] * TERA, found.half_length[0])


def _scaled_attention(peak: Number, kernel: str) -> Attention:
    measured = tables().gpus["h200"]
    like = measured.flash4 if kernel == "flash4" else measured.flash2
    assert like is not None
    return Attention(peak[0] * TERA * tables().shares[kernel][0], like.half_length[0])
