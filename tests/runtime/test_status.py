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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("[]", "holds a list, but must hold a mapping"),
        ("", "not valid JSON: Expecting value: line 1 column 1 (char 0)"),
        ("{}", "state is missing"),
        ('{"state": 3}', "state is a whole number, but must be text"),
        ('{"state": "running", "step": "3"}', "step is text, but must be a whole number"),
        ('{"state": "running", "job_id": "--user=me"}', "job_id: Expected `str` matching regex '^[0-9]+([_+][0-9]+)?$'"),
        ('{"state": "running", "launcher_pid": -1}', "launcher_pid: Expected `int` >= 1"),
    ],
)
def test_a_file_that_somebody_has_damaged_is_named_and_written_anew(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / STATUS_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_status(tmp_path)
    assert str(caught.value) == f"{tmp_path}/status.json: {said}; remove the file, it is written anew"
    write_status(tmp_path, RUNNING, step=3)
    assert (read_status(tmp_path)["state"], read_status(tmp_path)["step"]) == (RUNNING, 3)


def test_what_else_stands_in_the_file_is_kept(tmp_path: Path) -> None:
    write_status(tmp_path, RUNNING, train_loss=float("nan"), of_tomorrow=[1])
    write_status(tmp_path, FAILED)
    assert read_status(tmp_path)["of_tomorrow"] == [1]
