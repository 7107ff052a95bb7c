"""What files of others are told by before they are opened; imports no torch."""

import tarfile
from pathlib import Path

METADATA_FILE = ".metadata"  # the table of contents of what torch.distributed.checkpoint wrote
GZIP = b"\x1f\x8b"


def is_archive(file: Path) -> bool:
    """A tar, compressed by gzip or not; told by its first bytes, as what they declare may have no end."""
    with file.open("rb") as stream:
        beginning = stream.read(tarfile.BLOCKSIZE)
    if beginning.startswith(GZIP):
        return True
    try:
        tarfile.TarInfo.frombuf(beginning, tarfile.ENCODING, "surrogateescape")
    except tarfile.TarError:
        return False
    return True
