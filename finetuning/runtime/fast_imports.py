"""Imports torchmetrics without the libraries that it would use; to be imported before Lightning, which imports torchmetrics.

torchmetrics 1.9 imports transformers, scipy, matplotlib and tabulate wherever they are installed, for scores and plots that no
worker makes: four of the ten seconds of CPU in which a worker starts.
"""

import sys
from importlib import metadata

NOT_NEEDED = ("transformers", "scipy", "matplotlib", "tabulate")
_version = metadata.version


def _version_of_others(distribution_name: str) -> str:
    if distribution_name in NOT_NEEDED:
        raise metadata.PackageNotFoundError(distribution_name)
    return _version(distribution_name)


_hidden = [name for name in NOT_NEEDED if name not in sys.modules]
metadata.version = _version_of_others
sys.modules.update(dict.fromkeys(_hidden))  # type: ignore[arg-type] # None: as if it were not installed
try:
    import torchmetrics  # noqa: F401
finally:
    metadata.version = _version
    for _name in _hidden:
        del sys.modules[_name]
