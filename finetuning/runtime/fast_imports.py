"""Imports torchmetrics without transformers; to be imported before Lightning, which imports torchmetrics.

torchmetrics 1.9 imports transformers wherever it is installed, for scores that no worker computes: two of the eight seconds of
CPU in which a worker starts.
"""

from importlib import metadata

_version = metadata.version


def _version_without_transformers(distribution_name: str) -> str:
    if distribution_name == "transformers":
        raise metadata.PackageNotFoundError(distribution_name)
    return _version(distribution_name)


metadata.version = _version_without_transformers
try:
    import torchmetrics  # noqa: F401
finally:
    metadata.version = _version
