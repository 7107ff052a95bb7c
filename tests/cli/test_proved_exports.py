"""Exports that are proved: in one command, and with what serving breaks; folders in transformers, GGUF files read back.

Where llama.cpp would serve a file, our own reader makes a folder of it, which our own server serves: tokenizer, template, ends
and weights are the file's. tests/formats/gguf/test_llama_cpp_serves.py has llama.cpp itself.
"""

import dataclasses
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from finetuning.cli import export
from finetuning.config.run import write_run
from finetuning.config.settings import RunConfig
from finetuning.errors import EXIT_FAILED, EXIT_FINISHED, InputError
from finetuning.inference.evaluate import SampleLoss
from finetuning.inference.prove import growth_of
from finetuning.inference.served import OpenAIServer
from finetuning.launch.prepare import prepare
from tests.cli.served_faults import FAULTS, changed, proved, with_noise, words_by_merges
from tests.inference.openai_server import Engine, serving

pytestmark = pytest.mark.dist  # a model is served, or read by transformers


@contextmanager
def served_file(file: Path, context: int) -> Iterator[OpenAIServer]:
    folder = file.parent / "as-read"
    assert export.main([str(file), str(folder)]) == EXIT_FINISHED
    with serving(Engine(folder)) as url:
        yield OpenAIServer(url)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("finetuning.cli.prove.llama_cpp", served_file)


@pytest.fixture(params=["hf", "gguf"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def exported(model: Path, out: Path, form: str, *flags: str) -> Path:
    assert export.main([str(model), str(out), "--to", form, *flags]) == EXIT_FINISHED
    return out if form == "hf" else out / "model-f32.gguf"


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_broken_is_named(
    learned: Path, data: Path, tmp_path: Path, fault: str, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, change, sentence = FAULTS[fault]
    if (fault, form) == ("split", "gguf"):  # a rule that llama.cpp has a name for
        change = words_by_merges
    served = exported(changed(learned, tmp_path / "broken", name, change), tmp_path / "out", form)
    assert proved(served, learned, data, "--limit", "1") == EXIT_FAILED
    printed = capsys.readouterr().out
    assert "DIFFERENT: what is served is not what was trained" in printed and sentence in printed


def test_an_adapter_on_another_base_is_named(
    learned: Path, adapter: Path, data: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = with_noise(shutil.copytree(learned, tmp_path / "other"))
    flags = () if form == "gguf" else ("--merge",)
    wrong = exported(adapter, tmp_path / "wrong", form, "--base", str(other), *flags)
    assert proved(wrong, adapter, data, "--base", str(learned), "--limit", "1") == EXIT_FAILED
    assert "model.embed_tokens.weight first: it was made from another base model" in capsys.readouterr().out


def test_an_export_is_proved_by_the_same_command(
    learned: Path,
    adapter: Path,
    data: Path,
    form: str,
    settings: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of an experiment, on its test split; the exit code is the verdict."""
    experiment = tmp_path / "experiments" / "mine"
    run = prepare(settings(), None, experiment, tmp_path / "tokens", with_weights=True).run
    experiment.mkdir(parents=True, exist_ok=True)
    write_run(dataclasses.replace(run, sources={"test": str(data)}), experiment / "run.yaml")
    shutil.copytree(adapter, experiment / "export")
    flags = ["--to", form, "--base", str(learned), "--prove", *(["--merge"] if form == "hf" else [])]
    assert export.main([str(experiment), str(tmp_path / "out"), *flags]) == EXIT_FINISHED
    printed = capsys.readouterr().out
    assert "same: what is served is what was trained" in printed and f"on 3 prompts of {data}" in printed
    if form == "gguf":  # rows of queries and keys as they were, which llama.cpp has in another order
        monkeypatch.setattr("finetuning.formats.gguf.write.permuted", lambda rows, head_dim: rows)
    else:
        monkeypatch.setattr(export, "say_how_to_serve", lambda model, target, *_: with_noise(target))
    assert export.main([str(experiment), str(tmp_path / "broken"), *flags]) == EXIT_FAILED
    assert "it was made from another base model" in capsys.readouterr().out


def test_a_folder_in_fp8_is_judged_by_its_perplexity(
    learned: Path,
    tiny_model: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    served = exported(learned, tmp_path / "out", "hf", "--quantize", "fp8")
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    with pytest.raises(InputError, match="a folder with weights in fp8: the package compressed_tensors is needed"):
        proved(served, learned, data)
    monkeypatch.undo()
    pytest.importorskip("compressed_tensors", reason="reads fp8 folders; pip install compressed-tensors")
    assert proved(served, learned, data) == EXIT_FINISHED
    assert "same tokens of prompts   3 of 3" in capsys.readouterr().out
    wrong = exported(tiny_model, tmp_path / "wrong", "hf", "--quantize", "fp8")
    assert proved(wrong, learned, data) == EXIT_FAILED
    sentence = r"weights: the perplexity is .* as served and .* as trained; at most \d\.\d% is rounding"
    assert re.search(sentence, capsys.readouterr().out)


def test_few_samples_make_a_perplexity_uncertain() -> None:
    ours = [SampleLoss(line, 4, 4.0, 4.0) for line in (1, 2)]
    assert growth_of(ours, [4.4, 4.0]) == pytest.approx((0.05, 0.05))
    assert growth_of(ours, [4.2, 4.2]) == pytest.approx((0.05, 0.0))
    assert growth_of(ours[:1], [4.2]) == pytest.approx((0.05, 0.0))
