"""Models from the hub: the real huggingface_hub downloads from a small server, with and without a token."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetuning.errors import InputError
from finetuning.launch.hub import find_model
from tests.launch.hub_server import (
    CUT_SHORT,
    GATED,
    GOOD_TOKEN,
    OTHER_TOKEN,
    PRIVATE,
    PUBLIC,
    UNWELL,
    Hub,
    serve,
)

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
UNKNOWN = "meta/no-such-model"
DESCRIPTION = {"chat_template.jinja", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
WAYS = "give it by `hf auth login`, as the environment variable HF_TOKEN, or by --hf_token"
# In a process of its own: huggingface_hub reads its environment when it is imported.
PROGRAM = """
import json, sys
from finetuning.errors import InputError
from finetuning.launch.hub import find_model
found = []
for model, token, with_weights in json.loads(sys.argv[1]):
    try:
        found.append(str(find_model(model, token, with_weights=with_weights)))
    except InputError as error:
        found.append(error.problems)
print(json.dumps(found))
"""

Found = str | list[str]  # a folder, or the problems
Find = Callable[..., Found]


@pytest.fixture(scope="module")
def hub(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub") / "model"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "pytorch_model.bin").write_bytes(b"the same weights in another format")
    (folder / "README.md").write_text("read by people", encoding="utf-8")
    with serve(folder) as hub:
        yield hub


@pytest.fixture
def find(hub: Hub, tmp_path: Path) -> Find:
    """find_model in a process that knows this hub and an empty cache, and what it returned or raised."""
    hub.requests.clear()

    def call(model: str, token: str | None = None, *, with_weights: bool = True, **environment: str) -> Found:
        return run_program([(model, token, with_weights)], hub, tmp_path, environment)[0]

    return call


@pytest.fixture(scope="module")
def refusals(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str | None], Found]:
    """What is said about models and tokens that do not go together."""
    cases = [(GATED, None), (GATED, OTHER_TOKEN), (GATED, "hf_wrong"), (UNWELL, GOOD_TOKEN)]
    cases += [(model, token) for model in (PRIVATE, UNKNOWN) for token in (None, OTHER_TOKEN)]
    found = run_program([(model, token, True) for model, token in cases], hub, tmp_path_factory.mktemp("refused"), {})
    return dict(zip(cases, found, strict=True))


def run_program(calls: list[tuple[str, str | None, bool]], hub: Hub, folder: Path, environment: dict[str, str]) -> list[Found]:
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    settings = {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(folder / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(ROOT),
        "LC_ALL": "C",
    }
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(calls)],
        env=kept | settings | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found: list[Found] = json.loads(result.stdout.splitlines()[-1])
    return found


def names(folder: Found) -> set[str]:
    assert isinstance(folder, str)
    return {path.name for path in Path(folder).iterdir()}


def test_an_open_model_is_downloaded_without_a_token_and_without_what_is_not_needed(
    find: Find, hub: Hub, tiny_model: Path
) -> None:
    folder = find(PUBLIC)
    assert names(folder) == DESCRIPTION | {"model.safetensors"}
    assert (Path(str(folder)) / "model.safetensors").read_bytes() == (tiny_model / "model.safetensors").read_bytes()
    assert hub.authorizations(PUBLIC) == {None}


def test_the_description_alone_is_downloaded_without_weights(find: Find, hub: Hub) -> None:
    assert names(find(PUBLIC, with_weights=False)) == DESCRIPTION
    assert set(hub.sent_files()) == DESCRIPTION


def test_a_second_call_downloads_no_file_again(hub: Hub, tmp_path: Path) -> None:
    hub.requests.clear()
    folder, again = run_program([(PUBLIC, None, True)] * 2, hub, tmp_path, {})
    assert folder == again
    assert hub.sent_files() == sorted(DESCRIPTION | {"model.safetensors"})


def test_a_downloaded_model_is_found_without_a_network(find: Find) -> None:
    first = find(PUBLIC)
    assert find(PUBLIC, HF_ENDPOINT="http://127.0.0.1:9") == first


def test_a_gated_model_is_downloaded_with_the_token_in_the_header_and_in_no_file(find: Find, hub: Hub, tmp_path: Path) -> None:
    assert names(find(GATED, GOOD_TOKEN)) == DESCRIPTION | {"model.safetensors"}
    assert hub.authorizations(GATED) == {f"Bearer {GOOD_TOKEN}"}
    assert not any(GOOD_TOKEN in path for _, path, _ in hub.requests)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > len(DESCRIPTION)
    assert [path for path in files if GOOD_TOKEN.encode() in path.read_bytes()] == []


def test_the_token_of_the_login_is_used_when_none_is_given(find: Find, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "token").write_text(GOOD_TOKEN, encoding="utf-8")
    assert isinstance(find(GATED), str)
    assert hub.authorizations(GATED) == {f"Bearer {GOOD_TOKEN}"}


def test_a_gated_model_without_a_token_says_where_to_ask_and_the_ways_to_give_one(refusals: dict[Any, Found]) -> None:
    (problem,) = refusals[GATED, None]
    assert problem == (
        f"--hf_model_id {GATED}: this model needs a Hugging Face token; ask for access at https://huggingface.co/{GATED}, then "
        f"{WAYS}. A local folder needs no token."
    )


def test_a_token_without_access_says_where_to_ask(refusals: dict[Any, Found]) -> None:
    (problem,) = refusals[GATED, OTHER_TOKEN]
    assert problem == (
        f"--hf_model_id {GATED}: the token has no access to this model; ask for it at https://huggingface.co/{GATED} with the "
        "account the token belongs to. A local folder needs no token."
    )


def test_a_token_that_the_hub_does_not_know_is_told_from_one_without_access(refusals: dict[Any, Found]) -> None:
    (problem,) = refusals[GATED, "hf_wrong"]
    assert problem == (
        f"--hf_model_id {GATED}: the hub does not know this token (expired, or not copied whole?); see "
        "https://huggingface.co/settings/tokens"
    )


@pytest.mark.parametrize("token", [None, OTHER_TOKEN], ids=["no token", "a token"])
@pytest.mark.parametrize("model", [PRIVATE, UNKNOWN])
def test_an_unknown_and_a_private_model_are_not_found(model: str, token: str | None, refusals: dict[Any, Found]) -> None:
    (problem,) = refusals[model, token]
    assert problem == f"--hf_model_id {model}: neither a local folder nor a model on the hub (or a private one: {WAYS})"


def test_what_else_the_hub_answers_is_passed_on(refusals: dict[Any, Found]) -> None:
    (problem,) = refusals[UNWELL, GOOD_TOKEN]
    assert problem.startswith(
        f"--hf_model_id {UNWELL}: the hub refused it: 403 Forbidden: Please enable access to public gated"
    )


def test_a_hub_that_cannot_be_reached_is_said(find: Find) -> None:
    (problem,) = find(PUBLIC, HF_ENDPOINT="http://127.0.0.1:9")
    assert problem.startswith(f"--hf_model_id {PUBLIC}: no local folder of this name, and the hub cannot be reached (")
    assert problem.endswith("); check the network, or give a local folder")
    assert "refused" in problem


def test_a_proxy_that_does_not_work_is_said(find: Find) -> None:
    (problem,) = find(PUBLIC, http_proxy="http://127.0.0.1:9")
    assert "the hub cannot be reached (" in problem


def test_a_model_that_is_not_in_the_cache_is_said_in_offline_mode(find: Find) -> None:
    (problem,) = find(PUBLIC, HF_HUB_OFFLINE="1")
    assert "the hub cannot be reached (" in problem


def test_a_download_that_breaks_off_leaves_no_file_that_looks_whole(find: Find, tmp_path: Path) -> None:
    (problem,) = find(CUT_SHORT)
    assert problem.startswith(f"--hf_model_id {CUT_SHORT}: ")
    assert not list(tmp_path.rglob("model.safetensors"))


def test_a_token_with_blanks_or_foreign_letters_is_refused_before_anything_is_sent(find: Find, hub: Hub) -> None:
    for token in ("hf_a b", "<你的 token>"):
        (problem,) = find(PUBLIC, token)
        assert problem == (
            "the Hugging Face token has blanks or letters that no token has; copy it again from "
            "https://huggingface.co/settings/tokens"
        )
        assert token not in problem
    assert hub.requests == []


def test_a_local_folder_is_taken_as_it_is(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_model(str(tiny_model), None, with_weights=True) == tiny_model.resolve()
    monkeypatch.chdir(tiny_model.parent)
    assert find_model(tiny_model.name, "no token at all", with_weights=True) == tiny_model.resolve()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/no/such/folder", "--hf_model_id /no/such/folder: there is no such folder"),
        ("./models/x", "--hf_model_id ./models/x: there is no such folder"),
        ("sub/typo", "--hf_model_id sub/typo: there is no such folder"),  # sub is here, so no model on the hub is meant
        ("a/b/c", "--hf_model_id a/b/c: there is no such folder"),
        ("sub/file.safetensors", "--hf_model_id sub/file.safetensors: is a file; give the folder that holds config.json"),
        (
            "https://hf.co/m/L/tree/main",
            "--hf_model_id https://hf.co/m/L/tree/main: give the model's name instead of its address: m/L",
        ),
        ("a--b", "--hf_model_id a--b: not a model name of the hub: Cannot have -- or .. in repo_id: 'a--b'."),
    ],
)
def test_a_name_that_is_neither_folder_nor_model_is_refused_without_a_network(
    model: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        find_model(model, None, with_weights=True)
    assert caught.value.problems == [message]
