"""Models from the hub: the real huggingface_hub downloads from a small server, with and without a token."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session, constants, file_download

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
NOBODY = "http://127.0.0.1:9"
DESCRIPTION = {"chat_template.jinja", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
WAYS = "give it by `hf auth login`, as the environment variable HF_TOKEN, or by --hf_token"
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
def find(hub: Hub, tmp_path: Path) -> Iterator[Find]:
    """find_model with this hub and an empty cache, and what it returned or raised."""
    hub.requests.clear()
    with connected(hub.address, tmp_path / "cache"):
        yield found_or_problems


@pytest.fixture(scope="module")
def refusals(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str | None], Found]:
    """What is said about models and tokens that do not go together."""
    cases = [(GATED, None), (GATED, OTHER_TOKEN), (GATED, "hf_wrong"), (UNWELL, GOOD_TOKEN)]
    cases += [(model, token) for model in (PRIVATE, UNKNOWN) for token in (None, OTHER_TOKEN)]
    with connected(hub.address, tmp_path_factory.mktemp("refused")):
        return {(model, token): found_or_problems(model, token) for model, token in cases}


def found_or_problems(model: str, token: str | None = None, *, with_weights: bool = True) -> Found:
    try:
        return str(find_model(model, token, with_weights=with_weights))
    except InputError as error:
        return error.problems


@contextmanager
def connected(address: str, cache: Path, *, offline: bool = False, proxy: str | None = None) -> Iterator[None]:
    """This process as if it had been started with HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE and http_proxy."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if "proxy" in name.lower() or name == "HF_TOKEN"]:
            patch.delenv(name)
        if proxy is not None:
            patch.setenv("http_proxy", proxy)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "ENDPOINT", address)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
        patch.setattr(constants, "HF_HUB_OFFLINE", offline)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        close_session()  # the next one asks the environment again
        yield
    close_session()


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


def test_the_environment_names_hub_and_cache_and_a_second_call_downloads_no_file_again(hub: Hub, tmp_path: Path) -> None:
    """huggingface_hub reads it when it is imported, so this takes a process."""
    hub.requests.clear()
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    settings = {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(ROOT),
    }
    program = (
        f"from finetuning.launch.hub import find_model as find\nfor _ in 0, 1: print(find({PUBLIC!r}, None, with_weights=True))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=kept | settings, cwd=tmp_path, capture_output=True, text=True, check=True)
    folder, again = done.stdout.splitlines()
    assert folder == again and Path(folder).is_relative_to(tmp_path / "cache")
    assert hub.sent_files() == sorted(DESCRIPTION | {"model.safetensors"})


def test_a_downloaded_model_is_found_without_a_network(find: Find, tmp_path: Path) -> None:
    first = find(PUBLIC)
    with connected(NOBODY, tmp_path / "cache"):
        assert find(PUBLIC) == first


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


def test_a_hub_that_cannot_be_reached_is_said(tmp_path: Path) -> None:
    with connected(NOBODY, tmp_path):
        (problem,) = found_or_problems(PUBLIC)
    assert problem.startswith(f"--hf_model_id {PUBLIC}: no local folder of this name, and the hub cannot be reached (")
    assert problem.endswith("); check the network, or give a local folder")
    assert "refused" in problem


def test_a_proxy_that_does_not_work_is_said(hub: Hub, tmp_path: Path) -> None:
    with connected(hub.address, tmp_path, proxy=NOBODY):
        (problem,) = found_or_problems(PUBLIC)
    assert "the hub cannot be reached (" in problem


def test_a_model_that_is_not_in_the_cache_is_said_in_offline_mode(hub: Hub, tmp_path: Path) -> None:
    with connected(hub.address, tmp_path, offline=True):
        (problem,) = found_or_problems(PUBLIC)
    assert "the hub cannot be reached (" in problem


def test_a_download_that_breaks_off_leaves_no_file_that_looks_whole(
    find: Find, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)  # huggingface_hub waits before each of five tries
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
