"""Rates of GPUs: each number has a source and a date; what is not known stays so."""

import datetime

import msgspec
import pytest

from finetuning.errors import InputError
from finetuning.launch.slurm.gpu_memory import MODELS
from finetuning.plan.rates import RATES_FILE, kind_of_name, kinds, rates_of, tables

pytestmark = pytest.mark.unit


def numbers() -> list[tuple[str, object]]:
    """Name -> what stands there, of every rate, share and time in the file."""
    found = tables()
    flat = [(f"{kind}.{name}", value) for kind, gpu in found.gpus.items() for name, value in _flat(msgspec.to_builtins(gpu))]
    for table in ("shares", "step", "start"):
        flat += [(f"{table}.{name}", value) for name, value in msgspec.to_builtins(getattr(found, table)).items()]
    return flat


def _flat(values: dict[str, object]) -> list[tuple[str, object]]:
    result = []
    for name, value in values.items():
        if isinstance(value, dict):
            result += [(f"{name}.{inner}", number) for inner, number in _flat(value)]
        elif isinstance(value, list | tuple):
            result.append((name, value))
    return result


def test_every_number_has_a_source_with_a_date_and_every_source_is_used() -> None:
    sources, used = tables().sources, set()
    assert len(numbers()) > 70
    for name, value in numbers():
        assert len(value) == 2 and value[0] > 0, name
        assert value[1] in sources, f"{name}: {value[1]} is not among the sources"
        used.add(value[1])
    assert used == set(sources)
    for source in sources.values():
        assert source.what
        assert datetime.date(2026, 11, 1) <= datetime.date.fromisoformat(source.date) <= datetime.date(2030, 1, 1)


def test_peaks_are_published_and_what_was_reached_is_measured() -> None:
    for name, value in numbers():
        is_peak = "_peak_" in name
        if is_peak:
            assert tables().sources[value[1]].published, name
        elif name.partition(".")[0] in ("shares", "step", "start"):
            assert not tables().sources[value[1]].published, name


def test_a_gpu_that_was_measured_has_its_own_rates_and_others_the_share_of_their_peak() -> None:
    h200, h100 = rates_of("h200"), rates_of("h100")
    assert h200.measured and not h100.measured
    assert h200.bf16 == 688e12
    assert h100.bf16 == pytest.approx(989e12 * 0.696)
    assert h100.memory == pytest.approx(3350e9 * 0.896)
    assert h100.exchange == pytest.approx(450e9 * 0.353)


def test_what_nobody_has_published_is_not_known() -> None:
    gb10, a100 = rates_of("gb10"), rates_of("a100-80")
    assert gb10.bf16 is None and gb10.exchange is None and gb10.flash2 is None
    assert a100.fp8 is None and a100.flash4 is None
    assert a100.attention(flash_4=True) == a100.flash2


def test_a_kind_that_is_not_in_the_table_is_refused_with_those_that_are() -> None:
    with pytest.raises(InputError) as error:
        rates_of("v100")
    assert str(error.value.problems[0]) == (
        f"--gpu 'v100': not known; choose from {', '.join(kinds())}, or give --gpu_memory_gib"
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", None),  # slower than the one in the table
        ("NVIDIA H100 NVL", None),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L40", None),
        ("NVIDIA RTX 6000 Ada Generation", "rtx6000ada"),
        ("NVIDIA GeForce RTX 4090", "4090"),
        ("NVIDIA GeForce RTX 5090", "5090"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA GB10", "gb10"),
        ("Tesla V100-SXM2-16GB", None),
        ("nvidia_h200", "h200"),
    ],
)
def test_the_driver_s_name_of_a_gpu_tells_its_kind(name: str, kind: str | None) -> None:
    assert kind_of_name(name) == kind


def test_the_file_of_rates_lies_in_the_package() -> None:
    assert RATES_FILE.is_file()


def test_the_memory_of_a_kind_is_that_of_its_name_in_slurm() -> None:
    both = [kind for kind in kinds() if kind in MODELS]
    assert len(both) >= 6
    for kind in both:
        assert int(rates_of(kind).memory_gib) == MODELS[kind], kind
