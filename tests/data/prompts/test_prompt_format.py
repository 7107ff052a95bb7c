"""From question and answer to tokens: one begin, a trained end, an exact prefix, and text that is never control."""

import json
import shutil
from pathlib import Path

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from finetuning.data.prompts.prompt_format import PromptFormat, load_prompt_format
from finetuning.data.prompts.tokenizer import open_tokenizer
from finetuning.data.reading.records import Sample
from finetuning.errors import InputError

pytestmark = pytest.mark.unit

QUESTION, ANSWER = "台灣最高的山是哪一座？", "玉山，海拔 3952 公尺。"
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def encode(prompt_format: PromptFormat, question: str, answer: str) -> tuple[list[int], int]:
    """Tokens of a sample, and how many of them are prompt."""
    tokens, trained = prompt_format.encode(Sample(1, question, answer))
    prompt_length = int(len(tokens) - trained.sum())
    assert not trained[:prompt_length].any() and trained[prompt_length:].all()
    return tokens.tolist(), prompt_length


def ids(prompt_format: PromptFormat, *tokens: str) -> list[int | None]:
    return [open_tokenizer(prompt_format.source.tokenizer_file).token_to_id(token) for token in tokens]


def test_tokens_are_those_of_transformers_chat_template(prompt_format: PromptFormat, model_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_path)
    messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    tokens, prompt_length = encode(prompt_format, QUESTION, ANSWER)
    assert prompt_format.decode(tokens, skip_special_tokens=False) == whole
    assert tokens[:prompt_length] == tokenizer(prompt, add_special_tokens=False)["input_ids"]


@given(question=text, answer=text)
def test_any_text_gives_one_begin_a_trained_end_and_an_exact_prompt_prefix(
    prompt_format: PromptFormat, question: str, answer: str
) -> None:
    tokens, prompt_length = encode(prompt_format, question, answer)
    begin, end = ids(prompt_format, "<|begin_of_text|>", "<|eot_id|>")
    assert tokens[0] == begin and tokens.count(begin) == 1
    assert tokens[-1] == end and prompt_length < len(tokens), "the end token is part of the trained answer"
    assert tokens[:prompt_length] == prompt_format.encode_prompt(Sample(1, question, ANSWER))


@pytest.mark.parametrize("literal", ["<|eot_id|>", "<|begin_of_text|>", "a<|start_header_id|>system<|end_header_id|>b"])
def test_special_tokens_inside_text_are_plain_text(prompt_format: PromptFormat, literal: str) -> None:
    tokens, _ = encode(prompt_format, f"什麼是 {literal}？", f"{literal} 是記號")
    plain, _ = encode(prompt_format, "什麼是？", "是記號")
    special = set(ids(prompt_format, *prompt_format.special_tokens))
    assert [t for t in tokens if t in special] == [t for t in plain if t in special]
    decoded = prompt_format.decode(tokens, skip_special_tokens=False)
    assert f"什麼是 {literal}？" in decoded and f"{literal} 是記號" in decoded
    assert encode(prompt_format, QUESTION, ANSWER) == encode(prompt_format, QUESTION, ANSWER)


def test_a_literal_special_token_in_one_sample_does_not_change_the_next(prompt_format: PromptFormat) -> None:
    before = encode(prompt_format, QUESTION, ANSWER)
    encode(prompt_format, "<|eot_id|>", "<|eot_id|>")
    assert encode(prompt_format, QUESTION, ANSWER) == before


def test_a_system_prompt_is_rendered_as_the_chat_template_does(model_path: Path) -> None:
    prompt_format = load_prompt_format(model_path, None, "你是一位老師。")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_path)
    messages = [{"role": "system", "content": "你是一位老師。"}, {"role": "user", "content": QUESTION}]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt_format.decode(prompt_format.encode_prompt(Sample(1, QUESTION, ANSWER)), skip_special_tokens=False) == expected


def test_a_chinese_template_with_escapes_stays_chinese(model_path: Path) -> None:
    prompt_format = load_prompt_format(model_path, r"問題：{input}\n回答：{output}", None)
    tokens, prompt_length = encode(prompt_format, QUESTION, ANSWER)
    decode = prompt_format.decode
    assert decode(tokens[:prompt_length], skip_special_tokens=False) == f"<|begin_of_text|>問題：{QUESTION}\n回答："
    assert decode(tokens[prompt_length:], skip_special_tokens=False) == f"{ANSWER}<|eot_id|>"


def test_a_template_that_writes_begin_and_end_itself_gets_no_second_ones(model_path: Path) -> None:
    plain = load_prompt_format(model_path, "{input}\n{output}", None)
    explicit = load_prompt_format(model_path, "<|begin_of_text|>{input}\n{output}<|eot_id|>", None)
    assert encode(plain, QUESTION, ANSWER) == encode(explicit, QUESTION, ANSWER)


def test_the_exported_chat_template_writes_the_same_prompts(model_path: Path) -> None:
    prompt_format = load_prompt_format(model_path, r"問「{input}」\n答：{output}", None)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_path)
    tokenizer.chat_template = prompt_format.chat_template()
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": QUESTION}], tokenize=False, add_generation_prompt=True)
    assert prompt == prompt_format.prompt_text(Sample(1, QUESTION, ANSWER))
    assert load_prompt_format(model_path, None, None).chat_template() is None, "the tokenizer's own is kept"


@pytest.mark.parametrize("template", ["{input}", "{output}{input}", "{input}{input}{output}", "{input} {output} {output}"])
def test_a_template_without_one_input_and_then_one_output_is_refused(model_path: Path, template: str) -> None:
    with pytest.raises(InputError, match=r"must contain \{input\} once and, after it, \{output\} once"):
        load_prompt_format(model_path, template, None)


def test_a_system_prompt_beside_a_template_is_refused(model_path: Path) -> None:
    with pytest.raises(InputError, match="--system_prompt has no effect with --prompt_template"):
        load_prompt_format(model_path, "{input}{output}", "system")


def test_a_folder_without_tokenizer_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json: cannot read the tokenizer"):
        load_prompt_format(tmp_path, None, None)


def test_a_tokenizer_without_chat_template_is_refused_with_a_way_out(model_path: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_path, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors", "*.jinja")))
    with pytest.raises(InputError, match=r"has no chat template \(a base model\?\).*--prompt_template"):
        load_prompt_format(folder, None, None)
    assert load_prompt_format(folder, "{input}{output}", None).is_custom


def test_a_template_whose_answer_has_no_end_token_is_refused(model_path: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_path, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors")))
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text(encoding="utf-8").replace("<|eot_id|>", "###"), encoding="utf-8")
    with pytest.raises(InputError, match="'###', which holds no end token, so the model would never learn to stop"):
        load_prompt_format(folder, None, None)


def test_a_template_with_a_second_begin_token_is_refused(model_path: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_path, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors")))
    file = folder / "chat_template.jinja"
    file.write_text("{{ bos_token }}" + file.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(InputError, match=r"must begin with exactly one <\|begin_of_text\|>"):
        load_prompt_format(folder, None, None)


def test_a_sample_that_the_chat_template_writes_otherwise_is_found(model_path: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_path, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors")))
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text(encoding="utf-8").replace("~ text ~", "~ (text | replace('abc', 'x')) ~"), encoding="utf-8")
    samples = [Sample(1, "a", "b"), Sample(2, "z abc", "d"), Sample(3, "a", "abc")]
    right, question, answer = load_prompt_format(folder, None, None).differences(samples)
    assert right is None and question is not None and answer is not None
    assert question.values["where"] == "prompt" and str(question.values["theirs"]).startswith("x<|eot_id|>")
    assert dict(answer.values) == {"where": "answer", "theirs": "x<|eot_id|>", "ours": "abc<|eot_id|>"}


@pytest.mark.parametrize("change", ["template", "system", "tokenizer"])
def test_the_fingerprint_changes_with_whatever_changes_tokens(model_path: Path, tmp_path: Path, change: str) -> None:
    base = load_prompt_format(model_path, None, None).fingerprint
    if change == "template":
        assert load_prompt_format(model_path, "{input}{output}", None).fingerprint != base
    elif change == "system":
        assert load_prompt_format(model_path, None, "s").fingerprint != base
    else:
        folder = Path(shutil.copytree(model_path, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors")))
        file = folder / "tokenizer.json"
        value = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(value), encoding="utf-8")
        assert load_prompt_format(folder, None, None).fingerprint != base
