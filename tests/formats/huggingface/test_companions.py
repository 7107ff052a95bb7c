"""What lies beside the weights: copied from the folder itself or the hub's cache, never from where a link leads."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from finetuning.config.settings import RunConfig
from finetuning.errors import InputError
from finetuning.formats.huggingface.companions import check_companions, copy_config, special_token_ids
from finetuning.formats.huggingface.write import export_hugging_face
from finetuning.formats.stored_model import open_model
from finetuning.launch.prepare import prepare

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "credentials.json"
    file.write_text('{"eos_token_id": 3, "key": "secret"}', encoding="utf-8")
    return file


def export(folder: Path, target: Path) -> None:
    export_hugging_face(open_model(folder), target, None, lambda done, total: None)


def test_a_license_that_links_elsewhere_is_not_followed(folder: Path, secret: Path, tmp_path: Path) -> None:
    (folder / "LICENSE").symlink_to(secret)
    (folder / "USE_POLICY.md").write_text("be kind", encoding="utf-8")
    export(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "LICENSE").exists()
    assert (tmp_path / "out" / "USE_POLICY.md").read_text(encoding="utf-8") == "be kind"


@pytest.mark.parametrize("name", ["generation_config.json", "special_tokens_map.json", "tokenizer.json", "config.json"])
def test_a_file_that_a_result_needs_is_refused_as_a_link_elsewhere(
    folder: Path, secret: Path, tmp_path: Path, name: str, settings: Callable[..., RunConfig]
) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    with pytest.raises(InputError) as caught:
        check_companions(folder)
    message = (
        f"{folder / name}: is a link to {secret}, outside of the model folder, and would be copied from there; give the folder "
        "that holds the files themselves"
    )
    assert caught.value.problems == [message]
    with pytest.raises(InputError) as caught:
        prepare(settings(hf_model_id=str(folder)), None, tmp_path / "experiment", tmp_path / "tokens", with_weights=False)
    assert message in caught.value.problems
    with pytest.raises(InputError):
        export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_links_into_the_cache_of_the_hub_and_inside_of_the_folder_are_followed(tiny_model: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--meta--tiny"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(tiny_model.iterdir())):
        shutil.copyfile(file, blobs / f"{number:040x}")
        (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / f"{number:040x}")
    (snapshot / "terms").write_text("terms", encoding="utf-8")
    (snapshot / "LICENSE").symlink_to("terms")
    export(snapshot, tmp_path / "out")
    for file in tiny_model.iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
        assert not (tmp_path / "out" / file.name).is_symlink()
    assert (tmp_path / "out" / "LICENSE").read_text(encoding="utf-8") == "terms"


def test_the_tokens_that_begin_and_end_are_those_of_the_folder(tiny_model: Path, folder: Path) -> None:
    config = json.loads((tiny_model / "config.json").read_text(encoding="utf-8"))
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id")}
    assert special_token_ids(folder) == ids
    (folder / "generation_config.json").unlink()
    assert special_token_ids(folder) == ids | {"eos_token_id": ids["eos_token_id"][-1]}  # the tokenizer has one: <|eot_id|>
    (folder / "tokenizer_config.json").write_text('{"bos_token": {"content": "<|begin_of_text|>"}}', encoding="utf-8")
    assert special_token_ids(folder) == {"bos_token_id": ids["bos_token_id"], "eos_token_id": None}


def test_a_wrong_type_beside_the_weights_is_named(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"bos_token_id": "1"}', encoding="utf-8")
    with pytest.raises(InputError, match=r"generation_config\.json: bos_token_id is text, but must be a whole number or null"):
        special_token_ids(folder)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[]", "holds a list, but must hold a mapping"),
        ('{"base_path": null}', "base_path is null, but must be text"),
        ('{"base_fingerprint": 7}', "base_fingerprint is a whole number, but must be text or null"),
        ('{"prompt": {"prompt_template": null, "system_prompt": null, "template_hash": ""}}', "prompt.example is missing"),
    ],
)
def test_a_damaged_origin_is_one_sentence(folder: Path, content: str, sentence: str) -> None:
    (folder / "finetuning.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        open_model(folder)
    assert caught.value.problems == [f"{folder / 'finetuning.json'}: {sentence}"]


@pytest.mark.parametrize("names", [("dtype",), ("torch_dtype",), ("dtype", "torch_dtype"), ()], ids=str)
def test_another_dtype_stands_in_the_copy_wherever_the_base_named_one(
    folder: Path, tmp_path: Path, names: tuple[str, ...]
) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    plain = {name: value for name, value in config.items() if name not in ("dtype", "torch_dtype")}
    (folder / "config.json").write_text(json.dumps(plain | dict.fromkeys(names, "float32")), encoding="utf-8")
    copy_config(folder, tmp_path, "bfloat16")
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) == plain | dict.fromkeys(
        names or ("dtype",), "bfloat16"
    )
