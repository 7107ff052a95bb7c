"""The data set of a run: files, splits, every mistake with file and line, and tokens that are never stale."""

import gzip
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetuning.data.tokens.configure import Dataset, configure_dataset
from finetuning.data.tokens.megatron import write_megatron
from finetuning.errors import InputError
from tests.data.conftest import WriteJsonl
from tests.data.samples import pairs

pytestmark = pytest.mark.unit

EXAMPLE = Path(__file__).parent.parent.parent.parent / "examples" / "data" / "alpaca"


def configure(dataset_path: Path, model_path: Path, tmp_path: Path, seq_length: int = 512, **settings: Any) -> Dataset:
    return configure_dataset(dataset_path, model_path, tmp_path / "tokens", seq_length=seq_length, **settings)


def test_the_shipped_example_is_read_whole(model_path: Path, tmp_path: Path) -> None:
    dataset = configure(EXAMPLE, model_path, tmp_path, 2048)
    assert {name: len(split) for name, split in dataset.splits.items()} == {"training": 300, "validation": 20, "test": 20}
    assert not dataset.was_split


def test_lines_tokens_and_counts_belong_together(model_path: Path, tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    records = pairs(5)
    write_jsonl("data/training.jsonl", records[0], b"", *records[1:])
    dataset = configure(tmp_path / "data", model_path, tmp_path)
    split = dataset.splits["training"]
    assert split.lines.tolist() == [1, 3, 4, 5, 6], "blank lines are skipped and counted"
    for index, record in enumerate(records):
        tokens, trained = split.sample(index)
        decode = dataset.prompt_format.decode
        assert decode(tokens[trained].tolist(), skip_special_tokens=False) == record["output"] + "<|eot_id|>"
        assert record["input"] in decode(tokens[~trained].tolist())
        assert split.lengths[index] == len(tokens) - 1
        assert split.answer_tokens[index] == trained.sum()


@pytest.mark.parametrize("given", ["file", "folder"])
def test_one_raw_file_is_split_98_1_1_the_same_way_each_time(
    model_path: Path, tmp_path: Path, write_jsonl: WriteJsonl, given: str
) -> None:
    file = write_jsonl("data/raw.jsonl", *pairs(200))
    path = file if given == "file" else file.parent
    dataset = configure(path, model_path, tmp_path)
    assert dataset.was_split
    lines = {name: split.lines.tolist() for name, split in dataset.splits.items()}
    assert {name: len(found) for name, found in lines.items()} == {"training": 196, "validation": 2, "test": 2}
    assert sorted(line for found in lines.values() for line in found) == list(range(1, 201)), "no line is lost or in two parts"
    again = configure(path, model_path, tmp_path / "again")
    assert {name: split.lines.tolist() for name, split in again.splits.items()} == lines
    assert again.fingerprint == dataset.fingerprint


def test_three_raw_samples_are_enough_and_two_are_not(model_path: Path, tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    dataset = configure(write_jsonl("three.jsonl", *pairs(3)), model_path, tmp_path)
    assert [len(split) for split in dataset.splits.values()] == [1, 1, 1]
    with pytest.raises(InputError, match=r"two\.jsonl: 2 samples cannot be split .* 3 are needed"):
        configure(write_jsonl("two.jsonl", *pairs(2)), model_path, tmp_path)


def test_tokens_are_reused_when_nothing_changed(model_path: Path, tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    file = write_jsonl("data/training.jsonl", *pairs(4))
    first = configure(file.parent, model_path, tmp_path)
    written_at = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*.[nb]*")}
    second = configure(file.parent, model_path, tmp_path)
    assert second.folder == first.folder
    assert {path: path.stat().st_mtime_ns for path in second.folder.rglob("*.[nb]*")} == written_at


def test_one_changed_byte_makes_new_tokens(model_path: Path, tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    file = write_jsonl("data/training.jsonl", *pairs(4))
    first = configure(file.parent, model_path, tmp_path)
    file.write_bytes(file.read_bytes().replace("答案是 2".encode(), "答案是 3".encode()))
    second = configure(file.parent, model_path, tmp_path)
    assert second.folder != first.folder and second.fingerprint != first.fingerprint
    assert not np.array_equal(first.splits["training"].tokens, second.splits["training"].tokens)


@pytest.mark.parametrize("settings", [{"seq_length": 511}, {"prompt_template": "{input}{output}"}, {"system_prompt": "s"}])
def test_length_template_and_system_prompt_make_new_tokens(
    model_path: Path, tmp_path: Path, write_jsonl: WriteJsonl, settings: dict
) -> None:
    folder = write_jsonl("data/training.jsonl", *pairs(4)).parent
    assert configure(folder, model_path, tmp_path, **settings).folder != configure(folder, model_path, tmp_path).folder


def test_nothing_is_written_beside_the_data(model_path: Path, tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    folder = write_jsonl("data/training.jsonl", *pairs(4)).parent
    folder.chmod(0o555)
    configure(folder, model_path, tmp_path)
    assert [path.name for path in folder.iterdir()] == ["training.jsonl"]


BAD_LINES = [
    (b'{"input": "a", "output": "b"', r"training\.jsonl:2: not valid JSON"),
    (b'{"input": "a", "output": "b"}}', r"training\.jsonl:2: not valid JSON"),
    (b"\xb4\xfa\xb8\xd5", r"training\.jsonl:2: not UTF-8 \(byte 1\)"),
    (b'["a", "b"]', r"training\.jsonl:2: must be a JSON object"),
    (b'{"input": "a"}', r"training\.jsonl:2: field 'output' is missing; found 'input'"),
    (b"{}", r"training\.jsonl:2: .*missing; found nothing"),
    (b'{"input": 3, "output": "b"}', r"training\.jsonl:2: field 'input' must be text, but is 3"),
    (b'{"input": "a", "output": null}', r"training\.jsonl:2: field 'output' must be text, but is null"),
    (b'{"input": "a", "output": " \\n\\u3000 "}', r"training\.jsonl:2: the answer \('output'\) is empty"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_a_bad_line_is_told_with_file_and_number(
    model_path: Path, tmp_path: Path, write_jsonl: WriteJsonl, line: bytes, message: str
) -> None:
    folder = write_jsonl("data/training.jsonl", pairs(1)[0], line).parent
    with pytest.raises(InputError, match=message):
        configure(folder, model_path, tmp_path)
    assert not [path for path in tmp_path.glob("tokens/*") if path.is_dir()], "no half-written tokens stay behind"


def test_all_bad_lines_of_all_files_are_told_at_once(model_path: Path, tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    write_jsonl("data/training.jsonl", b"{", pairs(1)[0], b"[]")
    write_jsonl("data/validation.jsonl", b"{}")
    with pytest.raises(InputError) as caught:
        configure(tmp_path / "data", model_path, tmp_path)
    places = [problem.partition(": ")[0] for problem in caught.value.problems]
    assert places[:-1] == ["training.jsonl:1", "training.jsonl:3", "validation.jsonl:1"]
    assert places[-1] == "--skip_bad_samples would drop 3 of 4 samples"


@pytest.mark.parametrize("skip_bad_samples", [False, True])
def test_a_file_that_cannot_be_read_to_its_end_is_no_bad_sample(
    model_path: Path, tmp_path: Path, skip_bad_samples: bool
) -> None:
    lines = b"".join(b'{"input": "a%d", "output": "b"}\n' % number for number in range(5_000))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "training.jsonl.gz").write_bytes(gzip.compress(lines)[:-1000])
    with pytest.raises(InputError) as caught:
        configure(tmp_path / "data", model_path, tmp_path, skip_bad_samples=skip_bad_samples)
    (problem,) = caught.value.problems
    assert problem.startswith("training.jsonl.gz: cannot be read (")


def test_many_bad_lines_are_listed_up_to_a_limit_and_counted(model_path: Path, tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    folder = write_jsonl("data/training.jsonl", *[b"{"] * 30).parent
    with pytest.raises(InputError) as caught:
        configure(folder, model_path, tmp_path)
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1] == "training.jsonl: and 10 more lines like these"


def test_an_answer_that_would_be_cut_is_refused_with_the_length_it_needs(
    model_path: Path, tmp_path: Path, write_jsonl: WriteJsonl
) -> None:
    folder = write_jsonl("data/training.jsonl", pairs(1)[0], {"input": "長", "output": "很長" * 300}).parent
    with pytest.raises(InputError) as caught:
        configure(folder, model_path, tmp_path, 256)
    problem, advice = caught.value.problems
    assert advice == "--skip_bad_samples would drop 1 of 2 samples"
    assert problem.startswith("training.jsonl:2: ") and "do not fit --seq_length 256" in problem
    needed = int(problem.split("--seq_length")[2].split()[0])
    assert needed == int(problem.split()[1])
    assert len(configure(folder, model_path, tmp_path, needed).splits["training"]) == 2
    with pytest.raises(InputError):
        configure(folder, model_path, tmp_path, needed - 1)


def test_a_missing_folder_is_told(model_path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--dataset_path .*nowhere: there is no such folder"):
        configure(tmp_path / "nowhere", model_path, tmp_path)


@pytest.mark.parametrize("names", [[], ["validation.jsonl"], ["a.jsonl", "b.jsonl"]])
def test_a_folder_without_training_file_is_told_what_was_found(
    model_path: Path, tmp_path: Path, write_jsonl: WriteJsonl, names: list[str]
) -> None:
    (tmp_path / "data").mkdir()
    for name in names:
        write_jsonl(f"data/{name}", *pairs(3))
    with pytest.raises(InputError, match=rf"needs training\.jsonl .*; found {', '.join(names) or 'nothing'}"):
        configure(tmp_path / "data", model_path, tmp_path)


def test_an_empty_file_is_told(model_path: Path, tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    folder = write_jsonl("data/training.jsonl").parent
    with pytest.raises(InputError, match=r"training\.jsonl: holds no samples"):
        configure(folder, model_path, tmp_path)


def base_model(model_path: Path, folder: Path) -> Path:
    """A folder without chat template, as base models have it."""
    shutil.copytree(model_path, folder, ignore=shutil.ignore_patterns("*.safetensors", "chat_template.jinja"))
    return folder


def test_a_base_model_will_do_for_texts_and_for_nothing_else(model_path: Path, tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    base = base_model(model_path, tmp_path / "base")
    texts = [{"text": f"{i} 段文字。" * 3} for i in range(3)]
    dataset = configure(write_jsonl("data/training.jsonl", *texts).parent, base, tmp_path)
    assert len(dataset.splits["training"]) == 3 and not dataset.prompt_format.has_template
    tokens, trained = dataset.splits["training"].pieces(0)[0]
    assert trained.tolist() == [False] + [True] * (len(tokens) - 1)
    mixed = write_jsonl("mixed/training.jsonl", *texts, *pairs(1)).parent
    with pytest.raises(
        InputError, match=r'training\.jsonl:4: the tokenizer has no chat template .* only \{"text": …\} can be read'
    ):
        configure(mixed, base, tmp_path)
    with pytest.raises(InputError, match="--system_prompt has no effect: the data are texts"):
        configure(mixed, base, tmp_path, system_prompt="Be brief.")
    assert len(configure(mixed, model_path, tmp_path).splits["training"]) == 4, "a chat model takes both"


def test_what_is_trained_is_part_of_the_tokens(model_path: Path, tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    history = [{**pair, "history": [["一", "二"]]} for pair in pairs(3)]
    folder = write_jsonl("data/training.jsonl", *history).parent
    everything, last = (configure(folder, model_path, tmp_path, train_on=name) for name in ("all_answers", "last_answer"))
    assert everything.folder != last.folder
    first, second = (dataset.splits["training"] for dataset in (everything, last))
    assert first.lengths.tolist() == second.lengths.tolist()
    assert (first.answer_tokens > second.answer_tokens).all()
    assert [int(second.pieces(index)[0][1].sum()) for index in range(3)] == second.answer_tokens.tolist()


def test_conversations_that_cannot_be_written_are_told_with_their_lines(
    model_path: Path, tmp_path: Path, write_jsonl: WriteJsonl
) -> None:
    asked, answered = {"role": "user", "name": "Anna", "content": "a"}, {"role": "assistant", "content": "b"}
    tool = {"type": "function", "function": {"name": "add"}}
    path = write_jsonl(
        "data/training.jsonl",
        *pairs(3),
        {"messages": [asked, answered], "tools": [tool]},
        {"messages": [asked, asked, answered]},
        {"messages": [asked, asked, {**answered, "content": "b" * 3000}]},
    )
    with pytest.raises(InputError) as caught:
        configure(path.parent, model_path, tmp_path, truncation="cut_input")
    told = "\n".join(caught.value.problems)
    assert "training.jsonl:4: the chat template does not write 'tools' of it" in told
    assert "training.jsonl:6: " in told and "do not fit --seq_length 512" in told and "training.jsonl:5" not in told
    dataset = configure(path.parent, model_path, tmp_path, truncation="cut_input", skip_bad_samples=True)
    assert "training.jsonl:4: field 'messages[].name' is not used (3 times in this file)" in [
        str(finding) for finding in dataset.report.findings.sorted()
    ]


def test_megatron_data_has_no_answers_to_choose_from(model_path: Path, tmp_path: Path) -> None:
    write_megatron(tmp_path / "data", [np.arange(9)] * 3, 1024)
    with pytest.raises(InputError, match="--train_on has no effect: Megatron data holds tokens"):
        configure(tmp_path / "data.bin", model_path, tmp_path, train_on="last_answer")
