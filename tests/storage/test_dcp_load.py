"""Foreign and damaged checkpoints: nothing in them is run, nothing that is not whole is loaded, and the sentence names it."""

import io
import os
import pickle
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from finetuning.errors import InputError, RunError
from finetuning.storage.dcp_load import load_sharded_files
from finetuning.storage.dcp_reader import METADATA_FILE, ShardedFiles, damaged_part
from tests.processes import run_processes

WEIGHT = torch.arange(12.0).reshape(3, 4)


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, sign: Path):
        self.sign = sign

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.sign),)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of torch.distributed.checkpoint with one weight."""
    folder = tmp_path_factory.mktemp("saved") / "step=000001"
    dcp.save({"weight": WEIGHT, "step": torch.tensor(3.0)}, checkpoint_id=folder, no_dist=True)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / saved.name)


def change(folder: Path, edit: Callable[[Metadata], None]) -> None:
    file = folder / METADATA_FILE
    metadata = pickle.loads(file.read_bytes())
    edit(metadata)
    file.write_bytes(pickle.dumps(metadata))


def load(folder: Path) -> dict[str, torch.Tensor]:
    state = {"weight": torch.zeros(3, 4), "step": torch.tensor(0.0)}
    load_sharded_files(ShardedFiles(folder), state)
    return state


def load_and_say(folder: Path) -> str:
    """What went wrong, on this rank."""
    try:
        state = load(folder)
    except (InputError, RunError) as error:
        return str(error)
    return "loaded" if torch.equal(state["weight"], WEIGHT) else "something else"


@pytest.mark.unit
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_what_torch_wrote_is_read_to_the_bit(saved: Path) -> None:
    state = load(saved)
    assert torch.equal(state["weight"], WEIGHT) and state["step"] == 3.0


@pytest.mark.unit
def test_a_table_of_contents_that_would_run_something_is_not_opened(copy: Path, tmp_path: Path) -> None:
    for evil in (Evil(tmp_path / "ran"), {"state_dict_metadata": [Evil(tmp_path / "ran")]}):
        (copy / METADATA_FILE).write_bytes(pickle.dumps(evil))
        assert f"{copy / METADATA_FILE}: wants to use posix.mkdir, which no checkpoint needs" in load_and_say(copy)
    assert not (tmp_path / "ran").exists()


@pytest.mark.unit
def test_what_is_stored_as_bytes_is_not_opened(copy: Path, tmp_path: Path) -> None:
    """torch's own planner unpickles it, whatever the table of contents is read with."""
    buffer = io.BytesIO()
    torch.save(Evil(tmp_path / "ran"), buffer)
    (copy / "evil.distcp").write_bytes(buffer.getvalue())

    def edit(metadata: Metadata) -> None:
        metadata.state_dict_metadata["weight"] = BytesStorageMetadata()
        metadata.storage_data[MetadataIndex("weight")] = _StorageInfo("evil.distcp", 0, len(buffer.getvalue()))

    change(copy, edit)
    assert load_and_say(copy) == f"{copy}: holds no weight"
    assert not (tmp_path / "ran").exists()


@pytest.mark.unit
def test_a_tensor_that_would_run_something_is_not_opened(copy: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(Evil(tmp_path / "ran"), buffer)
    (copy / "evil.distcp").write_bytes(buffer.getvalue())

    def edit(metadata: Metadata) -> None:
        for index in list(metadata.storage_data):
            metadata.storage_data[index] = _StorageInfo("evil.distcp", 0, len(buffer.getvalue()))

    change(copy, edit)
    assert "wants to use posix.mkdir" in load_and_say(copy)
    assert not (tmp_path / "ran").exists()


@pytest.mark.unit
def test_a_tensor_larger_than_its_file_is_refused_before_there_is_memory_for_it(copy: Path) -> None:
    huge = torch.Size([3, 10**12])

    def edit(metadata: Metadata) -> None:
        chunk = ChunkStorageMetadata(torch.Size([0, 0]), huge)
        metadata.state_dict_metadata["weight"] = TensorStorageMetadata(TensorProperties(dtype=torch.float32), huge, [chunk])

    change(copy, edit)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert load_and_say(copy) == f"{copy}: weight is declared larger than the file that holds it"
    change(copy, lambda metadata: metadata.state_dict_metadata["weight"].chunks.clear())
    with pytest.raises(InputError, match="weight is not complete; 0 of 3000000000000 numbers are there"):
        ShardedFiles(copy).read("weight")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.unit
def test_a_piece_that_is_not_there_is_never_left_as_it_was(copy: Path) -> None:
    def edit(metadata: Metadata) -> None:
        entry = metadata.state_dict_metadata["weight"]
        assert isinstance(entry, TensorStorageMetadata)
        entry.chunks.clear()

    change(copy, edit)
    assert load_and_say(copy) == f"{copy}: weight is not complete; 0 of 12 numbers are there"


@pytest.mark.unit
def test_another_shape_is_told(copy: Path) -> None:
    with pytest.raises(InputError, match=r"weight is \[3, 4\], and this run needs \[4, 4\]"):
        load_sharded_files(ShardedFiles(copy), {"weight": torch.zeros(4, 4)})


@pytest.mark.unit
def test_a_flipped_bit_is_found(copy: Path) -> None:
    assert damaged_part(ShardedFiles(copy), 0, 1) is None
    file = copy / "__0_0.distcp"
    content = bytearray(file.read_bytes())
    place = content.index(WEIGHT.numpy().tobytes()) + 17
    content[place] ^= 1
    file.write_bytes(content)
    shares = [damaged_part(ShardedFiles(copy), share, 2) for share in range(2)]
    assert None in shares and "__0_0.distcp is damaged at byte" in str(shares)


def load_with_one_rank_blind(folder: Path, other: Path) -> str:
    return load_and_say(folder if dist.get_rank() == 0 else other)


@pytest.mark.dist
def test_what_one_rank_cannot_read_is_told_by_all(copy: Path, tmp_path: Path) -> None:
    other = shutil.copytree(copy, tmp_path / "other")
    (other / "__0_0.distcp").write_bytes(b"\0" * (other / "__0_0.distcp").stat().st_size)
    first, second = run_processes(2, load_with_one_rank_blind, copy, other)
    assert first == second and f"{other / '__0_0.distcp'}: cannot be read" in first


@pytest.mark.unit
def test_no_mutated_table_of_contents_gives_anything_but_a_sentence(copy: Path) -> None:
    """Fixed seed; FINETUNE_FUZZ=100000 in the environment tries as many."""
    generator, file = random.Random(19), copy / METADATA_FILE
    whole = file.read_bytes()
    seen = set()
    for _ in range(int(os.environ.get("FINETUNE_FUZZ", "150"))):
        file.write_bytes(mutated(whole, generator))
        said = load_and_say(copy)
        assert said in ("loaded", "something else") or str(copy) in said, said
        seen.add(said)
    assert len(seen) > 3


def mutated(content: bytes, generator: random.Random) -> bytes:
    """A few bytes changed, removed or doubled."""
    found = bytearray(content)
    for _ in range(generator.randint(1, 4)):
        place = generator.randrange(len(found))
        kind = generator.randrange(4)
        if kind == 0:
            found[place] = generator.randrange(256)
        elif kind == 1:
            del found[place : place + generator.randint(1, 8)]
        elif kind == 2:
            found[place:place] = found[place : place + generator.randint(1, 8)]
        else:
            found[place : place + 4] = generator.randbytes(4)
    return bytes(found)
