"""Data from the hub and from object stores: what is fetched, once, from which commit, and what is said where it fails."""

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow
import pytest
from pyarrow import parquet

from finetuning.errors import InputError
from finetuning.launch.fetch_data import Located, locate_data
from tests.launch.hub_server import COMMIT, GATED, GOOD_TOKEN, PRIVATE, PUBLIC, Hub, serve
from tests.launch.test_hub import NOBODY, connected

pytestmark = pytest.mark.unit

README = """---
configs:
- config_name: default
  data_files:
  - {split: train, path: "data/train-*.parquet"}
  - {split: validation, path: data/held_out.jsonl}
- config_name: small
  data_dir: small
---
"""


def record(number: int) -> dict[str, str]:
    return {"input": f"question {number}", "output": f"answer {number}"}


def lines(*numbers: int) -> str:
    return "".join(json.dumps(record(number)) + "\n" for number in numbers)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A data set of two shards and two configurations."""
    folder = tmp_path / "served"
    (folder / "data").mkdir(parents=True)
    (folder / "small").mkdir()
    for shard, numbers in enumerate(([1, 2], [3])):
        table = pyarrow.Table.from_pylist([record(number) for number in numbers])
        parquet.write_table(table, folder / "data" / f"train-0000{shard}-of-00002.parquet")
    (folder / "data" / "held_out.jsonl").write_text(lines(4))
    (folder / "small" / "train.json").write_text(json.dumps([record(5), record(6)]))
    (folder / "small" / "dev.json").write_text(lines(7))
    (folder / "README.md").write_text(README)
    with serve(folder) as served, connected(served.address, tmp_path / "cache"):
        yield served


def locate(path: str, folder: Path, token: str | None = None, **pins: str) -> Located:
    return locate_data(path, token, folder / "tokens", {path: pins["before"]} if pins else {})


def held(located: Located) -> dict[str, list[str]]:
    """File -> the outputs in it."""
    found = {}
    for file in sorted(Path(located.path).glob("[tvr]*")):
        if file.suffix == ".parquet":
            rows = parquet.read_table(file).to_pylist()
        else:
            text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            rows = [json.loads(line) for line in text.splitlines() if line]
        found[file.name] = [row["output"].removeprefix("answer ") for row in rows]
    return found


def refusal(path: str, folder: Path, token: str | None = None) -> str:
    with pytest.raises(InputError) as refused:
        locate(path, folder, token)
    return "\n".join(refused.value.problems)


def test_shards_of_a_split_become_one_file_and_the_commit_is_told(hub: Hub, tmp_path: Path) -> None:
    found = locate(PUBLIC, tmp_path)
    assert found.origin == f"{PUBLIC}@{COMMIT}"
    assert held(found) == {"training.parquet": ["1", "2", "3"], "validation.jsonl": ["4"]}
    assert "train.json" not in hub.sent_files()
    hub.requests.clear()
    assert locate(PUBLIC, tmp_path) == found
    assert hub.sent_files() == [], "nothing is fetched twice"


def test_a_configuration_is_named_after_a_colon_and_a_revision_after_an_at_sign(hub: Hub, tmp_path: Path) -> None:
    small = locate(f"{PUBLIC}:small@main", tmp_path)
    assert held(small) == {"training.jsonl": ["5", "6"], "validation.jsonl": ["7"]}
    assert "has no configuration large; there are: default, small" in refusal(f"{PUBLIC}:large", tmp_path)
    assert "the data set has no such branch, tag or commit" in refusal(f"{PUBLIC}@v9", tmp_path)


def test_an_experiment_that_goes_on_keeps_its_commit(hub: Hub, tmp_path: Path) -> None:
    first = locate(PUBLIC, tmp_path)
    hub.commit = "f" * 40
    assert "no such branch, tag or commit" in refusal_of_pin(hub, tmp_path, str(first.origin))
    assert locate(PUBLIC, tmp_path).origin == f"{PUBLIC}@{'f' * 40}"


def refusal_of_pin(hub: Hub, folder: Path, before: str) -> str:
    """This hub has only its newest commit, so that it is asked for the other one."""
    with pytest.raises(InputError) as refused:
        locate(PUBLIC, folder, before=before)
    return "\n".join(refused.value.problems)


def test_several_configurations_want_a_choice(hub: Hub, tmp_path: Path) -> None:
    (hub.folder / "README.md").write_text(README.replace("default", "large"))
    said = refusal(PUBLIC, tmp_path)
    assert f"{PUBLIC}: has the configurations large, small; give one, as {PUBLIC}:large" in said


def test_what_a_readme_does_not_say_the_names_of_files_do(hub: Hub, tmp_path: Path) -> None:
    (hub.folder / "README.md").write_text("no header")
    said = refusal(PUBLIC, tmp_path)
    assert "the training data are of several kinds (.json, .parquet); one is read" in said
    assert held(locate(f"{PUBLIC}:small", tmp_path)) == {"training.jsonl": ["5", "6"], "validation.jsonl": ["7"]}


def test_what_is_here_wins_and_a_folder_that_is_not_is_not_asked_for(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / PUBLIC).mkdir(parents=True)
    for path in (PUBLIC, "meta/other", "org/name.jsonl", "nothing"):
        assert locate(path, tmp_path) == Located(path, None)
    assert hub.requests == []


def test_without_a_network_what_was_fetched_is_used_and_else_it_is_said(hub: Hub, tmp_path: Path) -> None:
    first = locate(PUBLIC, tmp_path)
    with connected(NOBODY, tmp_path / "cache", offline=True):
        assert locate(PUBLIC, tmp_path) == first
        said = refusal("meta/never-fetched", tmp_path)
    assert "--dataset_path meta/never-fetched: nothing of this name is here, and the hub cannot be reached (" in said
    assert "check the network, or give a local folder" in said


def test_a_token_goes_to_the_hub_and_into_no_file(hub: Hub, tmp_path: Path) -> None:
    assert "or a private one: give it by `hf auth login`" in refusal(PRIVATE, tmp_path)
    locate(PRIVATE, tmp_path, GOOD_TOKEN)
    assert f"Bearer {GOOD_TOKEN}" in hub.authorizations(PRIVATE)
    assert "this data set asks for access; request it at https://huggingface.co/datasets/" in refusal(GATED, tmp_path)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 5
    assert not [file for file in files if GOOD_TOKEN.encode() in file.read_bytes()]


def test_a_store_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/bucket/data/train-1.jsonl.gz", gzip.compress(lines(1).encode().rstrip()))
    store.pipe("/bucket/data/train-2.jsonl.gz", gzip.compress(lines(2).encode()))
    store.pipe("/bucket/data/test.jsonl", lines(3).encode())
    store.pipe("/bucket/data/notes.txt", b"")
    found = locate("memory://bucket/data", tmp_path)
    assert found.origin == "memory://bucket/data"
    assert held(found) == {"test.jsonl": ["3"], "training.jsonl.gz": ["1", "2"]}
    with monkeypatch.context() as patch:
        patch.setattr(type(store), "get_file", lambda *_: pytest.fail("fetched again"))
        assert locate("memory://bucket/data", tmp_path) == found
    store.pipe("/bucket/data/test.jsonl", lines(3, 4).encode())
    assert held(locate("memory://bucket/data", tmp_path))["test.jsonl"] == ["3", "4"]


def test_a_file_of_a_store_is_split_as_one_here_is(tmp_path: Path) -> None:
    (tmp_path / "all.jsonl").write_text(lines(1, 2, 3))
    assert held(locate(f"file://{tmp_path}/all.jsonl", tmp_path)) == {"raw.jsonl": ["1", "2", "3"]}


def test_what_a_store_lacks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "has no data file (.jsonl, .jsonl.gz" in refusal("memory://bucket/none", tmp_path)
    assert "Protocol not known: nosuch" in refusal("nosuch://bucket/a", tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    assert "s3:// needs a package: pip install s3fs" in refusal("s3://bucket/a", tmp_path)

    def fails(*_: object) -> None:
        raise PermissionError("Access Denied\nrequest 1")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "isfile", fails)
    assert refusal("memory://bucket/a", tmp_path) == "--dataset_path memory://bucket/a: cannot be read: Access Denied"
    assert "HF_TOKEN" not in os.environ
