"""Only tokens that no experiment needs are removed."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from finetuning.cli.data import main
from finetuning.data.tokens.configure import configure_dataset
from finetuning.data.tokens.prune import SAFE_AGE_S, TOKENS_FOLDER, find_unused
from finetuning.errors import InputError
from tests.data.conftest import WriteJsonl
from tests.data.samples import pairs

pytestmark = pytest.mark.unit


@pytest.fixture
def experiments(tmp_path: Path) -> Path:
    """Five folders of tokens, days old, `a` the oldest; `a` is that of an experiment."""
    folder = tmp_path / "experiments"
    for age, name in enumerate("edcba", start=2):
        tokens = folder / TOKENS_FOLDER / name
        tokens.mkdir(parents=True)
        (tokens / "tokens.bin").write_bytes(b"1234")
        os.utime(tokens, (time.time() - age * SAFE_AGE_S,) * 2)
    (folder / "trained").mkdir()
    (folder / "trained" / "run.yaml").write_text(f"tokens_dir: {folder / TOKENS_FOLDER / 'a'}\n", encoding="utf-8")
    return folder


def names(experiments: Path) -> list[str]:
    return sorted(path.name for path in (experiments / TOKENS_FOLDER).iterdir())


def test_the_oldest_that_no_experiment_names_are_removed(experiments: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", "--experiments_dir", str(experiments), "--keep", "2", "--dryrun"]) == 0
    assert names(experiments) == ["a", "b", "c", "d", "e"]
    assert main(["prune", "--experiments_dir", str(experiments), "--keep", "2"]) == 0
    assert names(experiments) == ["a", "d", "e"]
    assert "2 folders of tokens would be removed" in capsys.readouterr().out


def test_what_was_used_within_a_day_stays_and_so_does_a_build_that_may_still_run(experiments: Path) -> None:
    for name, age in (("b", 0.0), ("new.host-1.incomplete", 0.5), ("old.host-2.incomplete", 2.0)):
        folder = experiments / TOKENS_FOLDER / name
        folder.mkdir(exist_ok=True)
        os.utime(folder, (time.time() - age * SAFE_AGE_S,) * 2)
    assert main(["prune", "--experiments_dir", str(experiments), "--keep", "0"]) == 0
    assert names(experiments) == ["a", "b", "new.host-1.incomplete"]


def test_a_run_file_that_cannot_be_read_stops_everything(experiments: Path) -> None:
    (experiments / "broken").mkdir()
    (experiments / "broken" / "run.yaml").write_text("tokens_dir: [", encoding="utf-8")
    with pytest.raises(InputError, match=r"run\.yaml: cannot be read .* nothing is removed"):
        find_unused(experiments, 0)
    with pytest.raises(InputError, match="there are no tokens; is --experiments_dir right"):
        find_unused(experiments / "nowhere", 0)
    with pytest.raises(InputError, match="--keep -1: must be 0 or more"):
        main(["prune", "--experiments_dir", str(experiments), "--keep", "-1"])


def test_a_start_counts_as_use_and_mapped_tokens_survive_their_removal(
    model_path: Path, tmp_path: Path, write_jsonl: WriteJsonl
) -> None:
    data = write_jsonl("data/training.jsonl", *pairs(4)).parent
    tokens_dir = tmp_path / "experiments" / TOKENS_FOLDER
    first = configure_dataset(data, model_path, tokens_dir, seq_length=512)
    long_ago = (time.time() - 9 * SAFE_AGE_S,) * 2
    os.utime(first.folder, long_ago)
    again = configure_dataset(data, model_path, tokens_dir, seq_length=512)
    assert find_unused(tmp_path / "experiments", 0) == []
    expected = np.array(again.splits["training"].sample(3)[0])
    os.utime(first.folder, long_ago)
    assert main(["prune", "--experiments_dir", str(tmp_path / "experiments"), "--keep", "0"]) == 0
    assert names(tmp_path / "experiments") == []
    assert np.array_equal(again.splits["training"].sample(3)[0], expected)
