"""What files of others are told by before they are opened; imports no torch."""

import tarfile
from pathlib import Path

METADATA_FILE = ".metadata"  # the table of contents of what torch.distributed.checkpoint wrote
GZIP = b"\x1f\x8b"


def is_archive(file: Path) -> bool:
    """A tar, compressed by gzip or not."""
    with file.open("rb") as stream:
        if stream.read(2) == GZIP:
            return True
    return tarfile.is_tarfile(file)
