"""`status.json`: whole at every moment, earlier facts kept."""

import json
from pathlib import Path

import pytest

from finetuning.errors import InputError
from finetuning.runtime.status import FAILED, RUNNING, STATUS_FILE, read_status, write_status

pytestmark = pytest.mark.unit


def test_an_experiment_that_has_not_run_has_no_status(tmp_path: Path) -> None:
    assert read_status(tmp_path) == {}


def test_facts_stay_until_they_are_replaced(tmp_path: Path) -> None:
    write_status(tmp_path, RUNNING, step=3, max_steps=10)
    write_status(tmp_path, FAILED, step=4, reason="記憶體不足")
    status = read_status(tmp_path)
    assert (status["state"], status["step"], status["max_steps"], status["reason"]) == (FAILED, 4, 10, "記憶體不足")


def test_the_file_holds_plain_text_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    write_status(tmp_path, RUNNING, reason="繁體")
    assert "繁體" in (tmp_path / STATUS_FILE).read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == [STATUS_FILE]


def test_the_time_of_the_last_change_has_its_time_zone(tmp_path: Path) -> None:
    write_status(tmp_path, RUNNING)
    assert json.loads((tmp_path / STATUS_FILE).read_text(encoding="utf-8"))["updated_at"][-5] in "+-"


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_file_that_somebody_has_damaged_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / STATUS_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_status(tmp_path)
    assert str(caught.value) == f"{tmp_path}/status.json: not a status; remove the file, it is written anew"
