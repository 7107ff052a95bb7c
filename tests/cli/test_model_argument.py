"""Which folder a model's name means: a checkpoint of an experiment by its step, or by its link."""

from pathlib import Path

import pytest

from finetuning.cli.model_argument import find_folder
from finetuning.errors import InputError

pytestmark = pytest.mark.unit


def test_a_checkpoint_is_named_by_its_experiment_and_step_or_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoints = tmp_path / "experiments" / "mine" / "checkpoints"
    for step in (5, 120):
        (checkpoints / f"step={step:06d}").mkdir(parents=True)
    (checkpoints / "best").symlink_to("step=000005")
    assert find_folder("mine@120") == checkpoints / "step=000120"
    assert find_folder("mine@best") == find_folder(str(tmp_path / "experiments" / "mine@best")) == checkpoints / "step=000005"
    for chosen in ("7", "latest", "..", "../..", ""):
        with pytest.raises(InputError, match=f"experiments/mine: has no checkpoint @{chosen}; there are: @best"):
            find_folder(f"mine@{chosen}")
    with pytest.raises(InputError, match="neither a folder, nor an experiment"):
        find_folder("yours@best")
