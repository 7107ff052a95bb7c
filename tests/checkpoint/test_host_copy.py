"""A copy of a state in host memory. (On a GPU it is queued beside the next step: not shown here.)"""

import pytest
import torch

from finetuning.checkpoint import host_copy
from finetuning.checkpoint.host_copy import ALIGNMENT, HostCopy, bytes_of

pytestmark = pytest.mark.unit

STATE = {
    "weight": torch.arange(600.0).view(20, 30),
    "half": torch.arange(77, dtype=torch.bfloat16),
    "low": torch.arange(-50, 50, dtype=torch.int16),
    "scale": torch.full((9,), 2.0).to(torch.float8_e4m3fn),
    "step": torch.tensor(3.0),
    "nothing": torch.zeros(0, 4),
}


@pytest.mark.parametrize("bytes_at_once", [host_copy.BYTES_AT_ONCE, 1000])
def test_a_copy_is_equal_keeps_its_memory_and_writes_nothing_else(bytes_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_copy, "BYTES_AT_ONCE", bytes_at_once)
    copy = HostCopy(torch.device("cpu"))
    state = {name: tensor.clone() for name, tensor in STATE.items()}
    copy.take(state)
    places = {name: tensor.data_ptr() for name, tensor in copy.tensors.items()}
    for tensor in state.values():
        tensor.zero_()
    for name, tensor in copy.tensors.items():
        assert tensor.dtype == STATE[name].dtype and torch.equal(tensor.float(), STATE[name].float()), name
        assert tensor.untyped_storage().size() == tensor.nbytes, name  # or torch would copy it again to write it
        assert tensor.data_ptr() % 8 == 0
    copy.take(state)
    assert {name: tensor.data_ptr() for name, tensor in copy.tensors.items()} == places
    assert all(not tensor.float().any() for tensor in copy.tensors.values())


def test_the_memory_of_a_copy_is_known_before(monkeypatch: pytest.MonkeyPatch) -> None:
    large = {name: torch.empty(100 * ALIGNMENT, dtype=torch.uint8, device="meta") for name in "abcdefg"}
    assert bytes_of(large) == 1024 * ALIGNMENT  # 700 in one piece
    monkeypatch.setattr(host_copy, "BYTES_AT_ONCE", 200 * ALIGNMENT)
    assert bytes_of(large) == (3 * 256 + 128) * ALIGNMENT
    assert bytes_of({}) == 0
