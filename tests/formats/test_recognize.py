"""What lies at a path: told by one function, in one order, without torch."""

import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from finetuning.config.run import write_run
from finetuning.config.settings import RunConfig
from finetuning.errors import InputError
from finetuning.formats.found_model import Format
from finetuning.formats.gguf import door as gguf
from finetuning.formats.huggingface import door as huggingface
from finetuning.formats.nemo import door as nemo
from finetuning.formats.own import door as own
from finetuning.formats.peft import door as peft
from finetuning.formats.recognize import FORMATS, format_at, inspect, recognize
from finetuning.launch.prepare import prepare

pytestmark = pytest.mark.unit


def write(file: Path, value: object = "") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return file


def model_folder(at: Path) -> Path:
    return write(at / "config.json", {"model_type": "llama"}).parent


def adapter(at: Path) -> Path:
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": str(model_folder(at / "base"))}
    return write(at / "adapter" / "adapter_config.json", settings).parent


def checkpoint(at: Path, step: int = 3) -> Path:
    folder = at / "checkpoints" / f"step={step:06d}"
    write(folder / ".metadata")
    origin = {"base_path": str(model_folder(at / "base")), "base_fingerprint": "0123"}
    return write(folder / "checkpoint.json", {"step": step, "files": {".metadata": 0}, "origin": origin}).parent


def gguf_file(at: Path) -> Path:
    return write(at / "x.gguf", "GGUF")


def nemo_folder(at: Path) -> Path:
    write(at / "iter_0000001" / ".metadata")
    return at


def nemo_archive(at: Path) -> Path:
    file = at / "x.nemo"
    with tarfile.open(file, "w") as archive:
        archive.add(write(at / "model_config.yaml"), "model_config.yaml")
    return file


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (model_folder, huggingface),
        (adapter, peft),
        (checkpoint, own),
        (gguf_file, gguf),
        (nemo_folder, nemo),
        (nemo_archive, nemo),
    ],
)
def test_each_format_is_told_and_no_other_takes_it_first(make: Callable[[Path], Path], kind: Format, tmp_path: Path) -> None:
    path = make(tmp_path)
    found = recognize(path)
    assert (found.kind, found.path) == (kind, path)
    assert next(one for one in FORMATS if one.is_here(path)) is kind


def test_base_and_origin_are_found_with_the_model(tmp_path: Path) -> None:
    found = recognize(adapter(tmp_path))
    assert found.base is not None and found.base.kind is huggingface and found.base.path == tmp_path / "base"
    assert found.origin is None
    stored = recognize(checkpoint(tmp_path))
    assert stored.base == found.base
    assert stored.origin == {"base_path": str(tmp_path / "base"), "base_fingerprint": "0123"}


def test_a_base_that_is_not_here_is_asked_for_when_it_is_needed(tmp_path: Path) -> None:
    path = adapter(tmp_path)
    (tmp_path / "base" / "config.json").unlink()
    (tmp_path / "base").rmdir()
    found = recognize(path)
    assert found.base is None
    with pytest.raises(
        InputError, match=r"adapter: the model that it was trained from is not here \(.*base\); give it as --base"
    ):
        found.required_base()
    given = recognize(path, model_folder(tmp_path / "moved"))
    assert given.required_base().path == tmp_path / "moved"


def test_a_whole_model_takes_no_base(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--base .*: .* is a whole model and has none"):
        recognize(with_tokenizer(model_folder(tmp_path / "a")), tmp_path)


def with_tokenizer(folder: Path) -> Path:
    write(folder / "tokenizer.json")
    return folder


def test_of_an_experiment_the_newest_checkpoint_is_taken_else_its_export(tmp_path: Path) -> None:
    write(tmp_path / "checkpoints" / ".incomplete-step=000009" / "__0_0.distcp")  # as NeMo's files look
    write(tmp_path / "run.yaml")
    assert format_at(tmp_path) is None
    with pytest.raises(InputError, match=r"neither a model in Hugging Face format .* found checkpoints, run\.yaml"):
        inspect(tmp_path)
    exported = model_folder(tmp_path / "export")
    assert recognize(tmp_path).path == exported and recognize(tmp_path).kind is huggingface
    (tmp_path / "run.yaml").unlink()
    old, new = checkpoint(tmp_path, 3), checkpoint(tmp_path, 12)
    assert recognize(tmp_path).path == recognize(tmp_path / "checkpoints").path == new
    assert recognize(old).path == old


def test_of_an_experiment_whose_result_is_the_best_checkpoint_that_one_is_taken(
    settings: Callable[..., RunConfig], tmp_path: Path
) -> None:
    found = prepare(settings(export="best"), None, tmp_path, tmp_path / "tokens", with_weights=True).run
    write_run(found, tmp_path / "run.yaml")
    best, newest = checkpoint(tmp_path, 3), checkpoint(tmp_path, 12)
    assert recognize(tmp_path).path == newest  # none is known to be the best
    (tmp_path / "checkpoints" / "best").symlink_to(best.name)
    assert recognize(tmp_path).path == recognize(tmp_path / "checkpoints").path == best.resolve()
    assert recognize(newest).path == newest


def test_what_is_nothing_is_told_with_what_it_would_have_to_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none: there is no such file or folder"):
        recognize(tmp_path / "none")
    with pytest.raises(InputError, match=r"x\.txt: not an archive of NeMo \(tar, or tar compressed by gzip\)"):
        recognize(write(tmp_path / "x.txt", "nothing"))


def test_recognition_loads_no_torch(tmp_path: Path) -> None:
    paths = [str(make(tmp_path / make.__name__)) for make in (model_folder, adapter, checkpoint, nemo_folder)]
    code = f"""
import sys
from pathlib import Path
from finetuning.formats.recognize import recognize
for path in {paths!r}:
    recognize(Path(path))
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
