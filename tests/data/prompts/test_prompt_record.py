"""The record of how a model was prompted, and what it notices."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from finetuning.data.prompts.prompt_format import load_prompt_format
from finetuning.data.prompts.prompt_record import open_prompt_format, prompt_record
from finetuning.data.reading.records import Sample
from finetuning.errors import InputError
from finetuning.formats.huggingface.companions import ORIGIN_FILE
from finetuning.formats.provenance import read_origin

pytestmark = pytest.mark.unit

TEMPLATE = r"問題：{input}\n回答：{output}"


def record_of(folder: Path, template: str | None = None, system: str | None = None) -> dict[str, Any]:
    record = prompt_record(load_prompt_format(folder, template, system), template, system)
    return json.loads(json.dumps(record))


@pytest.mark.parametrize(("template", "system"), [(None, None), (None, "用繁體中文回答。"), (TEMPLATE, None)])
def test_the_same_folder_gives_the_same_format(tiny_model: Path, template: str | None, system: str | None) -> None:
    found = open_prompt_format(tiny_model, record_of(tiny_model, template, system))
    assert found.fingerprint == load_prompt_format(tiny_model, template, system).fingerprint


def test_a_tokenizer_saved_anew_is_the_same(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    Tokenizer.from_file(str(folder / "tokenizer.json")).save(str(folder / "tokenizer.json"), pretty=False)
    open_prompt_format(folder, record_of(tiny_model))


def test_a_changed_chat_template_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text(encoding="utf-8").replace("Cutting Knowledge Date", "Knowledge Date"), encoding="utf-8")
    with pytest.raises(InputError, match="the chat template is not the one that the model was trained with"):
        open_prompt_format(folder, record_of(tiny_model))


def test_a_changed_tokenizer_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    settings = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    settings["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(InputError, match="the tokenizer is not the one that the model was trained with"):
        open_prompt_format(folder, record_of(tiny_model))


def test_answers_that_nobody_knows_are_told_with_their_file(tiny_model: Path, tmp_path: Path) -> None:
    origin = {"base_model": "m", "prompt": record_of(tiny_model) | {"train_on": "questions"}}
    (tmp_path / ORIGIN_FILE).write_text(json.dumps(origin), encoding="utf-8")
    with pytest.raises(InputError, match=rf"{ORIGIN_FILE}: .*train_on"):
        read_origin(tmp_path)


@pytest.mark.parametrize("day", ["yesterday", "2024-13-40", 5])
def test_a_date_that_is_none_is_told_with_its_file(tiny_model: Path, tmp_path: Path, day: Any) -> None:
    origin = {"base_model": "m", "prompt": record_of(tiny_model) | {"date": day}}
    (tmp_path / ORIGIN_FILE).write_text(json.dumps(origin), encoding="utf-8")
    with pytest.raises(InputError, match=rf"{ORIGIN_FILE}: .*date"):
        read_origin(tmp_path)


def test_a_record_without_a_date_has_the_only_one_there_was(tiny_model: Path) -> None:
    open_prompt_format(tiny_model, record_of(tiny_model) | {"date": None})


def test_which_answers_are_trained_is_recorded_and_all_of_them_where_nothing_is_said(tiny_model: Path) -> None:
    sample = Sample(1, "二", "2", history=(("一", "1"),))
    last = load_prompt_format(tiny_model, None, None, train_on="last_answer")
    record = json.loads(json.dumps(prompt_record(last, None, None)))
    reopened = open_prompt_format(tiny_model, record)
    assert reopened.encode(sample)[1].tolist() == last.encode(sample)[1].tolist()
    del record["train_on"]
    assert open_prompt_format(tiny_model, record).trained_answers(sample) == [True, True]
