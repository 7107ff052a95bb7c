"""What is asked: lines of data and of plain text, and what cannot be asked."""

import io
import json
from pathlib import Path

import pytest

from finetuning.cli import generate
from finetuning.config.llama import LlamaConfig, read_llama_config
from finetuning.data.prompts.prompt_format import load_prompt_format
from finetuning.data.reading.records import Sample
from finetuning.errors import EXIT_FINISHED, InputError
from finetuning.inference import samples
from finetuning.inference.samples import check_characters, check_prompts, read_prompts, read_samples

pytestmark = pytest.mark.unit

ODD = "a\u2028b\x85c\x0bd\x0ce\x1cf\x00g\rh"


@pytest.fixture(scope="module")
def config(tiny_model: Path) -> LlamaConfig:
    return read_llama_config(tiny_model)


def test_prompts_end_at_line_feeds_alone() -> None:
    content = f"\ufeff{ODD}\r\n\n{ODD}".encode()
    assert read_prompts(io.BytesIO(content), "prompts.txt") == [ODD, "", ODD]


def test_a_prompt_with_other_line_ends_in_it_is_one_prompt(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = f"{ODD}\nhi\n".encode()
    file, out = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    file.write_bytes(content)
    given = [str(tiny_model), "--out", str(out), "--max_new_tokens", "1"]
    for source in (["--file", str(file)], []):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert generate.main([*given, *source]) == EXIT_FINISHED
        assert [json.loads(line)["input"] for line in out.read_text(encoding="utf-8").split("\n")[:-1]] == [ODD, "hi"]
        # What was written can be asked again.
        assert [sample.input for sample in read_samples(out, None, needs_answer=False)] == [ODD, "hi"]


def test_prompts_that_are_no_text_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"prompts\.txt: not UTF-8 \(byte 2\)"):
        read_prompts(io.BytesIO(b"ab\xff"), "prompts.txt")
    with pytest.raises(InputError, match="prompt 2 is not UTF-8: a\ufffd"):
        check_characters(["a", "a\udcff"])
    monkeypatch.setattr(samples, "MAX_PROMPTS_MIB", 1)
    with pytest.raises(InputError, match=r"prompts\.txt: larger than 1 MiB"):
        read_prompts(io.BytesIO(bytes(2 << 20)), "prompts.txt")


def test_what_the_prompt_format_cannot_write_is_told_before_a_token_is_made(tiny_model: Path, config: LlamaConfig) -> None:
    prompt_format = load_prompt_format(tiny_model, "Q {input} A {output}", None)
    with pytest.raises(InputError, match="line 3: has a system message, for which --prompt_template has no place"):
        check_prompts([Sample(1, "a", ""), Sample(3, "a", "", "Be brief.")], prompt_format, config, with_answer=False)


def test_what_is_far_longer_than_the_model_is_told_before_a_token_is_made(tiny_model: Path, config: LlamaConfig) -> None:
    prompt_format = load_prompt_format(tiny_model, None, None)
    limit = config.max_position_embeddings
    with pytest.raises(InputError, match=f"line 2: more than {limit} tokens, and the model was made for at most {limit}"):
        check_prompts([Sample(2, "長" * 8 * limit, "")], prompt_format, config, with_answer=False)


def test_a_warning_of_the_file_does_not_stop_an_evaluation(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    text = pa.array(["a", "b"])
    parquet.write_table(pa.Table.from_arrays([text, text, text], names=["input", "output", "output"]), tmp_path / "x.parquet")
    assert [sample.input for sample in read_samples(tmp_path / "x.parquet", None)] == ["a", "b"]


def test_a_conversation_is_asked_up_to_its_last_answer(tiny_model: Path, config: LlamaConfig, tmp_path: Path) -> None:
    first, second = {"role": "user", "content": "a"}, {"role": "user", "content": "b"}
    answer = {"role": "assistant", "content": "c", "weight": 0}
    path = tmp_path / "x.jsonl"
    lines = [
        {"messages": [first, second]},
        {"messages": [first, second, answer]},
        {"messages": [first, second], "tools": [{"name": "f"}]},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    prompt_format = load_prompt_format(tiny_model, None, None)
    *good, bad = read_samples(path, None, needs_answer=False)
    check_prompts(good, prompt_format, config, with_answer=False)
    asked = [prompt_format.encode_prompt(sample) for sample in good]
    assert asked[0] == asked[1], "an answer that is not trained can be asked for"
    with pytest.raises(InputError, match="line 3: the chat template does not write 'tools' of it"):
        check_prompts([bad], prompt_format, config, with_answer=False)
    with pytest.raises(InputError, match="the chat template does not write 'tools' of it"):
        prompt_format.encode_prompt(bad)
