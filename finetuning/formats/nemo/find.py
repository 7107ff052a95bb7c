"""Where checkpoints of NeMo and Megatron lie, told by the names of files; imports no torch."""

from pathlib import Path

from finetuning.checkpoint.files import INFO_FILE
from finetuning.storage.signs import METADATA_FILE, is_archive
from finetuning.storage.tar import archive_parts

BACKEND_FILE = "metadata.json"
TRACKER_FILES = ("latest_checkpointed_iteration.txt", "latest_train_state.pt")


def is_nemo(path: Path) -> bool:
    """Looks like a checkpoint of NeMo or Megatron, or a folder with some; `open_nemo` may still refuse it."""
    if path.is_file():
        return is_archive(path)
    if (path / "run.yaml").is_file():  # an experiment of this command, without a complete checkpoint
        return False
    return path.is_dir() and (
        is_checkpoint(path) or bool(checkpoints_below(path)) or any((path / name).exists() for name in TRACKER_FILES)
    )


def check_archive(path: Path, scratch: Path) -> None:
    """Refuses a file that is no archive of weights before torch is imported to open it; arguments and errors of `open_nemo`."""
    if path.is_file() and is_archive(path):
        archive_parts(path, scratch)


def is_checkpoint(folder: Path) -> bool:
    weights = folder / "weights"
    here = weights if weights.is_dir() else folder
    if (folder / INFO_FILE).is_file():  # of this command, which torch.distributed.checkpoint wrote as well
        return False
    return (here / METADATA_FILE).is_file() or (here / BACKEND_FILE).is_file() or any(here.glob("*.distcp"))


def checkpoints_below(folder: Path) -> list[Path]:
    """The checkpoints one level below, or in `checkpoints/`; archives too."""
    found: list[Path] = []
    for place in (folder, folder / "checkpoints"):
        if place.is_dir():
            entries = sorted(place.iterdir())
            found += [path for path in entries if (path.is_dir() and is_checkpoint(path)) or path.suffix == ".nemo"]
    return found
