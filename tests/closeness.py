"""How near a result in float32 has to be to an exact one.

Rounding is a matter of the machine: other instructions and other numbers of threads add the same terms in another order. So
a result is compared with one in float64, not with another draw of the same rounding, and by the norm of the difference: a
single entry that nearly cancels says nothing, and an entry that is wrong by its own size still moves the norm of a
thousand entries by three percent.
"""

from collections.abc import Mapping

from torch import Tensor

# float32 rounds by 6e-8. Through the layers of the tests' models this has grown to at most 2e-6 of the norm on AMD and Intel
# processors, whichever instructions were allowed.
ROUNDING = 1e-5


def relative_distance(found: Tensor, exact: Tensor) -> float:
    """Norm of the difference by the norm of `exact`; both must have the same shape."""
    assert found.shape == exact.shape
    found, exact = found.detach().double(), exact.detach().double()
    return ((found - exact).norm() / exact.norm()).item()


def assert_near(found: Tensor, exact: Tensor, name: str = "", limit: float = ROUNDING) -> None:
    distance = relative_distance(found, exact)
    assert distance <= limit, f"{name}: {distance:.1e} of the norm away, more than {limit:.0e}"


def assert_all_near(found: Mapping[str, Tensor], exact: Mapping[str, Tensor], limit: float = ROUNDING) -> None:
    assert found.keys() == exact.keys()
    for name, value in exact.items():
        assert_near(found[name], value, name, limit)
