"""What checkpoint.json may hold: anything else is named, and a run goes on from the checkpoint before. Never a traceback."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetuning.checkpoint.files import INFO_FILE, Checkpoint, checkpoint_name, find_checkpoints, open_checkpoint
from finetuning.config.run import read_run
from finetuning.errors import InputError
from finetuning.launch.outcome import decide_outcome
from finetuning.runtime.failures import first_failure
from finetuning.runtime.status import STATUS_FILE, read_status
from tests.files.document_mutator import mutated

pytestmark = pytest.mark.unit

INFO: dict[str, Any] = {
    "step": 4,
    "max_steps": 10,
    "val_loss": 2.5,
    "files": {"a": 3},
    "saved_at": "2026-01-02T03:04:05+0800",
    "layout": {"pp": 1, "dp_replicate": 1, "dp_shard": 2, "cp": 1, "tp": 1},
    "identity": {"peft": "lora", "lora_rank": 8, "lora_alpha": 16.0, "data": "x"},
    "origin": {"base_model": "m", "prompt": None},
    "lightning": {"epoch": 0, "global_step": 4, "loops": {"fit_loop": {}}},
}


def write(folder: Path, info: Any, step: int = 4) -> Path:
    path = folder / checkpoint_name(step)
    path.mkdir(exist_ok=True)
    (path / "a").write_text("abc")
    text = info if isinstance(info, str) else json.dumps(info)
    (path / INFO_FILE).write_text(text, encoding="utf-8")
    return path


def test_a_whole_one_is_read_and_so_is_what_earlier_versions_wrote(tmp_path: Path) -> None:
    found = open_checkpoint(write(tmp_path, INFO))
    assert isinstance(found, Checkpoint) and (found.step, found.val_loss) == (4, 2.5)
    assert found.info["identity"] == INFO["identity"]
    found = open_checkpoint(write(tmp_path, {"step": 4, "files": {"a": 3}}))
    assert isinstance(found, Checkpoint)
    assert found.info["identity"]["peft"] == "none" and found.info["layout"]["dp_shard"] == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"step": "4"}, "step is text, but must be a whole number"),
        ({"step": -1}, "step"),
        ({"files": ["a"]}, "files is a list, but must be a mapping"),
        ({"files": {"a": None}}, "files[...] is null, but must be a whole number"),
        ({"identity": []}, "identity is a list"),
        ({"identity": {"lora_rank": "8"}}, "identity.lora_rank is text"),
        ({"layout": {"pp": "x"}}, "layout.pp is text"),
        ({"saved_at": 5}, "saved_at is a whole number"),
        ({"saved_at": "yesterday"}, "yesterday"),
        ({"saved_at": "2026-01-02T03:04:05"}, "saved_at has no time zone"),
        ({"val_loss": {}}, "val_loss is a mapping"),
        ({"lightning": {"epoch": 0, "global_step": 6, "loops": {}}}, "names two steps, 4 and 6"),
        ({"origin": 3}, "origin is a whole number"),
        ({"files": {"../a": 3}}, "../a is missing or has the wrong size"),
        ({"step": 6, "lightning": None}, "says that it is of step 6"),
    ],
)
def test_a_wrong_one_is_named_with_file_and_key_and_passed_over(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    write(tmp_path, {**INFO, "step": 2, "lightning": None}, 2)
    path = write(tmp_path, INFO | changed)
    complete, broken = find_checkpoints(tmp_path)
    assert [checkpoint.step for checkpoint in complete] == [2]
    assert len(broken) == 1 and str(path) in broken[0] and said in broken[0]


def test_no_mutated_file_of_a_run_gives_anything_but_a_sentence(tmp_path: Path) -> None:
    """Fixed seed; FINETUNE_FUZZ=100000 in the environment tries as many."""
    generator = random.Random(8)
    status = {"state": "running", "step": 3, "max_steps": 9, "train_loss": 1.5, "launcher_pid": 5, "host": "h", "reason": None}
    failure = {"rank": 1, "time": 5.0, "message": "m", "kind": "own", "traceback": "t"}
    run = {"config": {"hf_model_id": "m", "dataset_path": "d"}, "experiment_dir": "e", "sources": {"training": "t"}}
    (tmp_path / "logs").mkdir()
    for _ in range(int(os.environ.get("FINETUNE_FUZZ", "100"))):
        found = open_checkpoint(write(tmp_path, mutated(INFO, generator)))
        assert isinstance(found, Checkpoint) or str(tmp_path) in found
        (tmp_path / STATUS_FILE).write_text(mutated(status, generator), encoding="utf-8")
        (tmp_path / "logs" / "rank_1.error.json").write_text(mutated(failure, generator), encoding="utf-8")
        (tmp_path / "run.yaml").write_text(mutated(run, generator), encoding="utf-8")
        assert isinstance(first_failure(tmp_path / "logs"), dict)
        assert sentence_or_none(lambda: read_status(tmp_path), tmp_path)
        assert sentence_or_none(lambda: read_run(tmp_path / "run.yaml"), tmp_path)
        assert sentence_or_none(lambda: decide_outcome(tmp_path, log=tmp_path / "log"), tmp_path)


def sentence_or_none(read: Callable[[], object], folder: Path) -> bool:
    """It is read, or the error names the file."""
    try:
        read()
    except InputError as error:
        return str(folder) in str(error)
    return True
