"""Fields of other names, and inside others, are read under the names that are known here."""

from pathlib import Path
from typing import Any

import pytest

from finetuning.cli import generate, merge
from finetuning.cli.data import main
from finetuning.data.reading.columns import parse_columns
from finetuning.data.reading.finding_words import describe
from finetuning.data.reading.records import Sample, parse_record
from finetuning.errors import InputError
from finetuning.inference.samples import read_samples
from tests.data.conftest import WriteJsonl

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("columns", "record", "sample"),
    [
        ("input=question,output=answer", {"question": "a", "answer": "b"}, Sample(1, "a", "b")),
        ("input=q.text, output=answers.1.text", {"q": {"text": "a"}, "answers": [{}, {"text": "b"}]}, Sample(1, "a", "b")),
        ("output=a.b", {"input": "a", "a.b": "b", "a": {"b": "c"}, "id": 3}, Sample(1, "a", "b")),
        ("input=output,output=input", {"input": "b", "output": "a"}, Sample(1, "a", "b")),
        (
            "system=meta.role,history=past",
            {"input": "a", "output": "b", "past": [["c", "d"]]},
            Sample(1, "a", "b", None, (("c", "d"),)),
        ),
        (
            "messages=chat",
            {"chat": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            Sample(1, "a", "b"),
        ),
        ("text=content", {"content": "a b"}, Sample(1, "", "a b", is_text=True)),
        (
            "conversations=dialog",
            {"dialog": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            Sample(1, "a", "b"),
        ),
    ],
)
def test_a_column_is_read_as_the_field_that_it_is_named_for(columns: str, record: dict[str, Any], sample: Sample) -> None:
    found, _, problems = parse_record(record, 1, columns=parse_columns(columns))
    assert found == sample
    assert [problem.values["name"] for problem in problems] == (["a"] if "a.b" in record else [])


def test_a_column_that_is_not_there_is_a_missing_field_and_one_of_a_taken_name_is_told() -> None:
    columns = parse_columns("input=question,output=answer")
    _, _, (problem,) = parse_record({"question": "a", "anser": "b"}, 1, columns=columns)
    assert describe(problem.code, problem.values) == "field 'output' is missing; found 'anser', 'input'"
    _, _, (problem,) = parse_record({"input": "a", "question": "b", "answer": "c"}, 1, columns=columns)
    assert describe(problem.code, problem.values) == (
        "has a field 'input' of its own, for which --columns gives 'question'; name it there, too, or remove it"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question=input", "--columns question=input: 'question=input' must be FIELD=NAME, with one of the fields messages,"),
        ("input", "'input' must be FIELD=NAME"),
        ("input=", "'input=' must be FIELD=NAME"),
        ("input=a,input=b", "--columns input=a,input=b: input is given twice"),
    ],
)
def test_what_is_no_list_of_columns_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_columns(text)
    assert message in str(caught.value)


def test_every_command_reads_the_same_columns(
    tmp_path: Path, write_jsonl: WriteJsonl, model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [{"q": {"text": f"第 {i} 題？"}, "a": f"答案 {i}。"} for i in range(3)]
    path = write_jsonl("training.jsonl", *records, records[0])
    flags = ["--columns", "input=q.text,output=a"]
    model = ["--hf_model_id", str(model_path)]
    assert main(["check", str(path), *flags, *model, "--html", str(tmp_path / "page.html")]) == 0
    screen = capsys.readouterr().out
    assert screen.startswith("columns: input = q.text, output = a\n")
    assert "training.jsonl:4: the same as training.jsonl:1: 第 0 題？" in screen
    assert main(["preview", str(path), *flags, *model, "--line", "2"]) == 0
    assert "[答案 1。<|eot_id|>]" in capsys.readouterr().out
    assert main(["prepare", str(path), str(tmp_path / "out"), *flags, "--to", "openai", "--test_share", "0"]) == 0
    assert capsys.readouterr().out.startswith("columns: input = q.text, output = a\n")
    assert '"content": "第 1 題？"' in "".join(file.read_text(encoding="utf-8") for file in (tmp_path / "out").iterdir())
    assert [sample.output for sample in read_samples(path, 1, columns=parse_columns(flags[1]))] == ["答案 0。"]


def test_columns_without_data_are_told() -> None:
    with pytest.raises(InputError, match="--columns has no effect without data as --file"):
        generate.main(["model", "hi", "--columns", "input=q"])
    with pytest.raises(InputError, match="--columns has no effect without --data"):
        merge.main(["adapter", "out", "--columns", "input=q"])
