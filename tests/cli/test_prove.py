"""finetune prove: a model served by a real HTTP server with our decoder behind it, by transformers, and as a file; and what
goes wrong between training and serving, named."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from finetuning.cli import export, prove
from finetuning.errors import EXIT_FAILED, EXIT_FINISHED, InputError, RunError
from finetuning.formats.gguf.weights import GgufModel, open_gguf
from finetuning.formats.stored_model import open_model
from finetuning.inference.likely_faults import header_faults, likely_models, stored_faults
from finetuning.inference.prove import aligned, prompt_difference
from finetuning.inference.served_files import llama_cpp
from tests.cli.served_faults import (
    changed,
    no_begin,
    one_end_less,
    other_split,
    other_words,
    proved,
    two_begins,
    with_noise,
    without_generation_prompt,
    without_scaling,
)
from tests.inference.openai_server import Engine, serving

pytestmark = pytest.mark.dist  # a server each


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def test_the_trained_model_is_proved_by_every_token(
    learned: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    engine = Engine(learned)
    with serving(engine) as url:
        assert proved(url, learned, data) == EXIT_FINISHED
    printed = capsys.readouterr().out
    assert "same tokens of prompts   3 of 3" in printed and "same tokens of texts     10 of 10" in printed
    assert "same greedy answers      3 of 3" in printed and "same: what is served is what was trained" in printed
    assert "log-probabilities        differ by" in printed and "as trained," in printed
    assert {key for _, key in engine.requests} == {"Bearer a-key"}


def test_a_server_that_tells_only_text_is_compared_by_its_text(
    learned: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Engine(learned, silent=True, names=("base", "trained"))) as url:
        with pytest.raises(InputError, match="serves base, trained; give the one that was trained as --served_model"):
            proved(url, learned, data)
        assert proved(url + "/", learned, data, "--served_model", "trained") == EXIT_FINISHED
    assert "same tokens of prompts   the server does not tell" in capsys.readouterr().out


FAULTS: dict[str, tuple[str, Callable[[str], str], str, str]] = {
    "template": (
        "chat_template.jinja",
        without_generation_prompt,
        r"template: the prompt ends before '<\|start_header",
        "template or",
    ),
    "words": (
        "chat_template.jinja",
        other_words,
        "template: in training the prompt went on with 'Cutting",
        "template or tokenizer",
    ),
    "begin": (
        "chat_template.jinja",
        two_begins,
        "template: the begin token is written twice",
        "template or tokenizer: a prompt has",
    ),
    "no begin": (
        "chat_template.jinja",
        no_begin,
        "template: the begin token is missing",
        "template or tokenizer: a prompt has",
    ),
    "split": (
        "tokenizer.json",
        other_split,
        "tokenizer: the same prompt becomes other tokens",
        "template or tokenizer: a prompt",
    ),
    "end": (
        "generation_config.json",
        one_end_less,
        r"stop token: an answer goes on where it ended",
        "stop token: an answer goes on",
    ),
    "rope": (
        "config.json",
        without_scaling,
        r"RoPE scaling: prompts of the data are answered alike, and a long one is not \(\d+ tokens\)",
        "",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_broken_in_serving_is_named(
    learned: Path, data: Path, tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, change, sentence, without_tokens = FAULTS[fault]
    engine = Engine(changed(learned, tmp_path / "served", name, change))
    with serving(engine) as url:
        assert proved(url, learned, data) == EXIT_FAILED
        printed = capsys.readouterr().out
        assert "DIFFERENT: what is served is not what was trained" in printed
        assert any(re.search(sentence, line) for line in printed.splitlines()), printed
        if without_tokens:
            engine.silent = True
            assert proved(url, learned, data) == EXIT_FAILED
            assert without_tokens in capsys.readouterr().out


def test_other_weights_are_named_as_far_as_answers_show(
    learned: Path, adapter: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An adapter that is served as its base, and one that was merged into another base."""
    with serving(Engine(learned)) as url:
        assert proved(url, adapter, data, "--base", str(learned)) == EXIT_FAILED
    printed = capsys.readouterr().out
    assert "weights: the log-probability of a token differs by" in printed
    assert "it answers as the base model without the adapter" in printed
    other = shutil.copytree(learned, tmp_path / "other")
    weights = with_noise(other)
    assert export.main([str(adapter), str(tmp_path / "merged"), "--base", str(weights), "--merge"]) == EXIT_FINISHED
    assert export.main([str(adapter), str(tmp_path / "right"), "--base", str(learned), "--merge"]) == EXIT_FINISHED
    capsys.readouterr()
    with serving(Engine(tmp_path / "merged")) as url:
        assert proved(url, adapter, data, "--base", str(learned)) == EXIT_FAILED
    printed = capsys.readouterr().out
    assert "weights: the log-probability" in printed and "it answers as" not in printed
    stored = open_model(adapter, learned)
    named = {
        learned: "weights: those of the base model, without the adapter",
        tmp_path / "merged": "differ, model.embed_tokens.weight first: it was made from another base model",
    }
    for folder, sentence in named.items():
        served = open_model(folder).weights()
        assert sentence in " ".join(
            stored_faults(served, stored, lambda name, s=served: str(s.dtype(name)).removeprefix("torch."))
        )
    right = open_model(tmp_path / "right").weights()
    assert stored_faults(right, stored, lambda name: "float32") == []
    assert [name for name, _ in likely_models(stored, torch.device("cpu"), torch.float32)] == [
        "it answers as the base model without the adapter",
        "it answers as the trained model without its RoPE scaling",
    ]


def test_a_folder_is_proved_in_transformers(
    learned: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert proved(learned, learned, data) == EXIT_FINISHED
    assert "same greedy answers      3 of 3" in capsys.readouterr().out
    assert proved(changed(learned, tmp_path / "served", "config.json", without_scaling), learned, data) == EXIT_FAILED
    assert "rope_scaling is None as served and RopeScaling(factor=8.0" in capsys.readouterr().out


def test_what_a_file_s_header_says_is_compared(learned: Path, tmp_path: Path) -> None:
    stored = open_model(learned)
    assert export.main([str(learned), str(tmp_path / "out"), "--to", "gguf"]) == EXIT_FINISHED
    file = open_gguf(tmp_path / "out" / "model-f32.gguf")
    assert header_faults(file.header, stored) == [] and stored_faults(file.source(), stored, file.source().type_name) == []
    file.header.settings["tokenizer.ggml.pre"] = "qwen2"
    for name in ("eos", "eot"):
        file.header.settings[f"tokenizer.ggml.{name}_token_id"] = 1
    assert header_faults(file.header, stored) == [
        "tokenizer: the file splits text by the rule 'qwen2', in training it was 'llama-bpe'",
        "stop token: the file does not end answers at <|eot_id|>",
    ]
    del file.header.tensors["rope_freqs.weight"]
    source = GgufModel(file.path, file.header).source()
    faults = stored_faults(source, stored, source.type_name)
    assert len(faults) == 1 and faults[0].startswith("rope_scaling is None as served and RopeScaling(")


def test_what_cannot_be_compared_is_said(
    learned: Path, adapter: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:9/v1/models: nothing answers there \(.*refused"):
        proved("http://127.0.0.1:9/v1", learned, data)
    with pytest.raises(InputError, match=r"neither an address .* nor a GGUF file, nor a model folder"):
        proved(adapter, learned, data)
    with pytest.raises(InputError, match="--served_model has no effect on a file or folder"):
        proved(learned, learned, data, "--served_model", "x")
    with pytest.raises(InputError, match="--columns has no effect without --data"):
        prove.main([str(learned), str(learned), "--columns", "input=q"])
    turns = [{"role": role, "content": "a"} for role in ("user", "user", "assistant")]
    (tmp_path / "texts.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    with pytest.raises(InputError, match=r"texts\.jsonl: has no plain questions, which alone are compared"):
        proved(learned, learned, tmp_path / "texts.jsonl")
    with pytest.raises(InputError, match="--limit 0: must be 1 or more"):
        proved(learned, learned, data, "--limit", "0")
    with pytest.raises(InputError, match=r"the data that it was trained on are not known; give a .jsonl"):
        prove.main([str(learned), str(learned)])
    file = tmp_path / "x.gguf"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    with pytest.raises(InputError, match=r"x\.gguf: llama-server of llama\.cpp is neither on the PATH nor"), llama_cpp(file, 9):
        pass
    program = tmp_path / "llama-server"
    program.write_text(f"#!{sys.executable}\nprint('no such model')\nraise SystemExit(1)\n")
    program.chmod(0o755)
    with pytest.raises(RunError, match="llama-server does not start: no such model"), llama_cpp(file, 9):
        pass


def test_a_server_that_answers_something_else_is_no_such_server(learned: Path, data: Path) -> None:
    engine = Engine(learned)
    with serving(engine) as url:
        with pytest.raises(InputError, match=r"/models: refused \(400\): .*no such thing here"):
            proved(url.removesuffix("/v1"), learned, data)
        engine.chat = lambda given: {"choices": 3}  # type: ignore[method-assign]
        with pytest.raises(RunError, match="answers something else than OpenAI's protocol has: Expected `array`"):
            proved(url, learned, data)


def test_log_probabilities_of_some_tokens_find_their_places() -> None:
    assert list(aligned([(7, -1.0), (9, -2.0)], [7, 8, 9])) == [(0, -1.0), (2, -2.0)]
    assert list(aligned([(7, -1.0), (5, -2.0), (9, -3.0)], [7, 8, 9])) == [(0, -1.0)]


def test_prompts_that_are_equal_up_to_their_end_differ_by_their_length(learned: Path) -> None:
    prompt_format = open_model(learned).prompt_format()
    tokens = prompt_format.encode_texts(["one two three"])[0]
    assert "the prompt ends before" in prompt_difference(prompt_format, tokens, tokens[:-1])
