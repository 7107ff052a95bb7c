"""Exported files in llama.cpp itself, which `make llamacpp` fetches: its own server, tokenizer and quantization."""

from pathlib import Path

import pytest

from finetuning.cli import export, prove
from finetuning.errors import EXIT_FAILED, EXIT_FINISHED
from finetuning.formats.stored_model import open_model
from finetuning.inference.samples import read_samples
from finetuning.inference.served_files import llama_cpp as serving
from finetuning.inference.served_files import started
from tests.cli.served_faults import FAULTS, changed, proved, words_by_merges
from tests.formats.gguf.vocabularies import LLAMA_CPP, SPECIAL, nasty_texts
from tests.learned import write_learned_model
from tests.references import write_random_adapter

pytestmark = [pytest.mark.unit, pytest.mark.slow]


@pytest.fixture(scope="module")
def learned(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model that knows some answers by heart, and these."""
    if not (LLAMA_CPP / "bin" / "llama-server").is_file():
        pytest.skip("this test compares with llama.cpp; `make llamacpp` fetches it")
    data = tiny_dataset / "test.jsonl"
    return write_learned_model(tmp_path_factory.mktemp("learned") / "model", read_samples(data, None)), data


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"])
def test_a_file_of_each_type_is_proved_in_llama_cpp(
    learned: tuple[Path, Path],
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its own server: chat template, tokenizer, answers and log-probabilities."""
    monkeypatch.setenv("LLAMA_CPP", str(LLAMA_CPP))
    folder, data = learned
    assert export.main([str(folder), str(tmp_path / "out"), "--to", "gguf", "--quantize", kind]) == EXIT_FINISHED
    served = str(tmp_path / "out" / f"model-{kind}.gguf")
    assert prove.main([served, str(folder), "--data", str(data), "--max_new_tokens", "24"]) == EXIT_FINISHED
    printed = capsys.readouterr().out
    assert "same tokens of prompts   4 of 4" in printed and "same tokens of texts     10 of 10" in printed
    if kind in ("f32", "f16"):
        assert "same greedy answers      4 of 4" in printed and "same: what is served is what was trained" in printed


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_broken_in_a_file_is_named_in_llama_cpp(
    learned: tuple[Path, Path],
    fault: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LLAMA_CPP", str(LLAMA_CPP))
    folder, data = learned
    name, change, sentence = FAULTS[fault]
    broken = changed(folder, tmp_path / "broken", name, words_by_merges if fault == "split" else change)
    assert export.main([str(broken), str(tmp_path / "out"), "--to", "gguf"]) == EXIT_FINISHED
    assert proved(tmp_path / "out" / "model-f32.gguf", folder, data) == EXIT_FAILED
    printed = capsys.readouterr().out
    assert "DIFFERENT: what is served is not what was trained" in printed and sentence in printed


def test_a_file_of_another_model_is_caught_in_llama_cpp(
    learned: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LLAMA_CPP", str(LLAMA_CPP))
    folder, data = learned
    write_random_adapter(folder, tmp_path / "adapter", 2, 60.0, ("q_proj", "v_proj", "down_proj"))
    assert export.main([str(folder), str(tmp_path / "out"), "--to", "gguf"]) == EXIT_FINISHED
    arguments = [
        str(tmp_path / "out" / "model-f32.gguf"),
        str(tmp_path / "adapter"),
        "--base",
        str(folder),
        "--data",
        str(data),
    ]
    assert prove.main([*arguments, "--max_new_tokens", "24"]) == EXIT_FAILED
    assert "weights: those of the base model, without the adapter" in capsys.readouterr().out


def test_an_adapter_on_a_file_of_its_base_is_proved_in_llama_cpp(
    learned: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data = learned
    write_random_adapter(folder, tmp_path / "adapter", 2, 20.0, ("q_proj", "k_proj", "down_proj"))
    assert export.main([str(folder), str(tmp_path / "base"), "--to", "gguf"]) == EXIT_FINISHED
    assert export.main([str(tmp_path / "adapter"), str(tmp_path / "out"), "--to", "gguf", "--adapter"]) == EXIT_FINISHED
    program = str(LLAMA_CPP / "bin" / "llama-server")
    files = ["--model", str(tmp_path / "base" / "model-f32.gguf"), "--lora", str(tmp_path / "out" / "adapter-f32.gguf")]
    with started([program, *files, "--ctx-size", "1024", "--parallel", "1", "--jinja"], program) as url:
        assert proved(url, tmp_path / "adapter", data) == EXIT_FINISHED
        assert "same: what is served is what was trained" in capsys.readouterr().out
        assert proved(url, folder, data) == EXIT_FAILED  # as the base alone does not answer


def test_llama_cpp_s_tokenizer_gives_our_tokens_of_300_nasty_texts(
    learned: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CPP", str(LLAMA_CPP))
    assert export.main([str(learned[0]), str(tmp_path / "out"), "--to", "gguf"]) == EXIT_FINISHED
    texts = [text for text in nasty_texts(330, seed=9) if not any(token in text for token in SPECIAL)][:300]
    expected = open_model(learned[0]).prompt_format().encode_texts(texts)
    with serving(tmp_path / "out" / "model-f32.gguf", 64) as server:
        found = server.tokenize(texts)
    assert found == expected
