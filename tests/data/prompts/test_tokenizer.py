"""Tokenizers as they lie in model folders: saved with cuts and padding, damaged, with code of their own, beyond the table."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from finetuning.cli import data
from finetuning.data.prompts.prompt_format import load_prompt_format
from finetuning.data.prompts.tokenizer import open_tokenizer, read_end_token_ids
from finetuning.data.reading.finding_words import describe
from finetuning.data.reading.findings import Problem
from finetuning.data.reading.records import Sample
from finetuning.errors import InputError
from finetuning.formats.huggingface.companions import copy_companions, copy_config
from tests.data.prompts.folders import DROPS_THOUGHTS, change, chatml, variant

pytestmark = pytest.mark.unit

LONG = Sample(1, "台灣最高的山是哪一座？" * 20, "玉山。" * 40)


def test_cuts_and_padding_of_a_tokenizer_are_switched_off(model_path: Path, tmp_path: Path) -> None:
    def cuts(value: dict[str, Any]) -> None:
        value["truncation"] = {"direction": "Right", "max_length": 40, "strategy": "LongestFirst", "stride": 0}
        value["padding"] = {
            "strategy": {"Fixed": 4000},
            "direction": "Left",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<|end_of_text|>",
        }

    cut = load_prompt_format(variant(model_path, tmp_path / "m", tokenizer=cuts), None, None)
    whole = load_prompt_format(model_path, None, None)
    assert [x.tolist() for x in cut.encode(LONG)] == [x.tolist() for x in whole.encode(LONG)]
    assert cut.encode_prompt(LONG) == whole.encode_prompt(LONG)
    assert cut.cut_input(LONG, 100) == whole.cut_input(LONG, 100)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer_config.json", {"bos_token": 7}, r"tokenizer_config\.json: bos_token is a whole number, but must be"),
        ("tokenizer_config.json", {"eos_token": {"lstrip": True}}, r"tokenizer_config\.json: eos_token\.content is missing"),
        (
            "tokenizer_config.json",
            {"chat_template": [{"name": "a"}]},
            r"chat_template\S*template is missing",
        ),
        ("tokenizer_config.json", [], r"tokenizer_config\.json: holds a list, but must hold"),
        ("generation_config.json", {"eos_token_id": "2"}, r"generation_config\.json: eos_token_id is text, but must be"),
        ("special_tokens_map.json", {"bos_token": []}, r"special_tokens_map\.json: bos_token is a list, but must be"),
        ("config.json", {"vocab_size": None, "x": 1}, None),
        ("tokenizer_config.json", {"additional_special_tokens": [7]}, r"additional_special_tokens\[0\] is a whole number"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": "<a>"}}, r"added_tokens_decoder\S* is text, but must be"),
        ("generation_config.json", {"eos_token_id": None, "do_sample": True}, None),
        ("tokenizer.json", {"model": []}, r"tokenizer\.json: cannot read the tokenizer"),
    ],
)
def test_wrong_types_are_told_with_file_and_key(
    model_path: Path, tmp_path: Path, file: str, content: object, message: str | None
) -> None:
    folder = variant(model_path, tmp_path / "m")
    (folder / file).write_text(json.dumps(content), encoding="utf-8")
    if message is None:
        assert load_prompt_format(folder, None, None).end_token_ids
        return
    with pytest.raises(InputError, match=message):
        load_prompt_format(folder, None, None)


def test_without_generation_settings_answers_end_where_config_json_says(model_path: Path, tmp_path: Path) -> None:
    folder = variant(model_path, tmp_path / "m", eos_token="<|end_of_text|>")
    ends = read_end_token_ids(folder)
    assert len(ends) == 3
    change(folder / "config.json", lambda value: value.update(eos_token_id=sorted(ends)))
    change(folder / "generation_config.json", lambda value: value.pop("eos_token_id"))
    with pytest.raises(InputError, match=r"<\|eot_id\|>', which holds no end token"):  # generation_config.json has the say
        load_prompt_format(folder, None, None)
    (folder / "generation_config.json").unlink()
    assert set(load_prompt_format(folder, None, None).end_token_ids) == ends
    theirs = transformers.GenerationConfig.from_model_config(transformers.AutoConfig.from_pretrained(folder))
    assert set(theirs.eos_token_id) == ends


def test_a_chat_template_of_megabytes_is_refused(model_path: Path, tmp_path: Path) -> None:
    folder = variant(model_path, tmp_path / "m", chat_template="x" * (2 << 20))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match=r"tokenizer_config\.json: larger than 1 MiB"):
        load_prompt_format(folder, None, None)


def test_a_folders_own_code_is_neither_run_nor_offered(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = variant(model_path, tmp_path / "m", auto_map={"AutoTokenizer": ["evil.Evil", None]}, tokenizer_class="Evil")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n", encoding="utf-8")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asks whether to run it"))
    load_prompt_format(folder, None, None).differences([LONG])
    assert not (tmp_path / "ran").exists()


def test_a_result_names_no_code_of_the_folder(model_path: Path, tmp_path: Path) -> None:
    code = {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    folder = variant(model_path, tmp_path / "m", **code, note="繁體")
    config = folder / "config.json"
    change(config, lambda value: value.update(auto_map={"AutoModelForCausalLM": "evil.Evil"}, custom_pipelines={"x": {}}))
    result = tmp_path / "result"
    result.mkdir()
    copy_companions(folder, result, None)
    copy_config(folder, result)
    for name, dropped in (("tokenizer_config.json", ("auto_map",)), ("config.json", ("auto_map", "custom_pipelines"))):
        before, after = (json.loads((each / name).read_text("utf-8")) for each in (folder, result))
        assert all(before.pop(key) for key in dropped) and after == before


def test_transformers_reads_a_result_with_the_trained_tokens_whatever_class_the_base_named(
    model_path: Path, tmp_path: Path
) -> None:
    folder = variant(model_path, tmp_path / "m", tokenizer_class="GPT2Tokenizer")
    text = "12345 apples, don't 請列出三種水果。\n\n  x=  1"
    (tmp_path / "result").mkdir()
    copy_companions(folder, tmp_path / "result", None)
    trained = open_tokenizer(folder / "tokenizer.json").encode(text, add_special_tokens=False).ids
    theirs = [
        transformers.AutoTokenizer.from_pretrained(each)(text, add_special_tokens=False)["input_ids"]
        for each in (tmp_path / "result", folder)
    ]
    assert theirs[0] == trained and theirs[1] != trained, "transformers 5 builds GPT2Tokenizer anew from the vocabulary"


PLACES: dict[str, Callable[[dict[str, Any]], object]] = {
    "normalizer writes a mark": lambda value: value.update(normalizer={"type": "Prepend", "prepend": "_"}),
    "bytes after a space": lambda value: value["pre_tokenizer"]["pretokenizers"][-1].update(add_prefix_space=True),
    "end takes in white space": lambda value: [
        token.update(rstrip=True) for token in value["added_tokens"] if token["content"] == "<|im_end|>"
    ],
    "as it is": lambda value: None,
}


@pytest.mark.parametrize("name", PLACES)
def test_tokens_are_those_of_transformers_where_they_depend_on_the_place(model_path: Path, tmp_path: Path, name: str) -> None:
    folder = chatml(model_path, tmp_path / "m")
    change(folder / "tokenizer.json", PLACES[name])
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), load_prompt_format(folder, None, None)
    turns = (("第一題？", " 四。 "), ("again", "yes\n"), ("第二題？", "九。"))
    for count in (1, 3):
        *history, (question, answer) = turns[:count]
        sample = Sample(1, question, answer, history=tuple(history))
        roles = zip(("user", "assistant") * count, (text for turn in turns[:count] for text in turn), strict=True)
        messages = [{"role": role, "content": text} for role, text in roles]
        prompt = theirs.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
        whole = theirs.apply_chat_template(messages, return_dict=False)
        assert ours.encode_prompt(sample) == prompt
        tokens, trained = ours.encode(sample)
        assert tokens.tolist() == whole[: len(tokens)] and not trained[: len(prompt)][-1] and trained[len(prompt) :].all()


def test_an_earlier_answer_that_grows_together_with_the_template_is_an_error_of_its_line(
    model_path: Path, tmp_path: Path
) -> None:
    prompt_format = load_prompt_format(chatml(model_path, tmp_path / "m"), None, None)
    last, earlier = Sample(1, "q", "\n\nb"), Sample(1, "q", "b", history=(("p", "\n\na"),))
    first, second = prompt_format.encode_each([last, earlier])
    assert isinstance(first, tuple), "the model is given the prompt by itself"
    assert isinstance(second, Problem) and describe(second.code, second.values) == (
        "the tokenizer fails on this sample: it makes one token of the end of '<|im_end|>\\n<|im_start|>assistant\\n' and the "
        "beginning of the text behind it; begin that text without white space"
    )


def test_a_tokenizer_that_cannot_decode_says_so(model_path: Path, tmp_path: Path) -> None:
    replace = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"}
    decoder = {"type": "Sequence", "decoders": [{"type": "Fuse"}, replace]}
    prompt_format = load_prompt_format(
        variant(model_path, tmp_path / "m", tokenizer=lambda value: value.update(decoder=decoder)), None, None
    )
    tokens = open_tokenizer(model_path / "tokenizer.json").encode("a" * 40 + "!", add_special_tokens=False).ids
    with pytest.raises(InputError, match=r"tokenizer\.json: the tokenizer (fails|takes too much (time|memory))"):
        prompt_format.decode(tokens)


def write(folder: Path, *records: dict[str, str]) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "training.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(folder)


def test_a_token_beyond_the_embedding_table_is_an_error_of_its_line(
    model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def thinks(value: dict[str, Any]) -> None:
        token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
        value["added_tokens"] += [token | {"id": 1024, "content": "<think>"}]

    folder = variant(model_path, tmp_path / "m", tokenizer=thinks)
    path = write(tmp_path / "d", {"input": "2+2?", "output": "4"}, {"input": "3+3?", "output": "<think>\nsix</think>6"})
    assert data.main(["check", path, "--hf_model_id", str(folder)]) == 2
    assert (
        "training.jsonl:2: token '<think>' has the id 1024, and the model's embedding table only 1024 rows"
        in capsys.readouterr().out
    )
    change(folder / "config.json", lambda config: config.update(vocab_size=1088))
    assert data.main(["check", path, "--hf_model_id", str(folder)]) == 0, "a padded table has a row"


def test_every_sample_is_compared_with_the_template(
    model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = variant(model_path, tmp_path / "m", template=DROPS_THOUGHTS)
    records = [{"input": f"{n}?", "output": f"answer {n}"} for n in range(40)]
    path = write(tmp_path / "d", *records, {"input": "3+3?", "output": "<think>x</think>6"})
    assert data.main(["check", path, "--hf_model_id", str(folder)]) == 2
    assert "training.jsonl:41: the chat template depends on the text itself" in capsys.readouterr().out
    assert data.main(["preview", path, "--hf_model_id", str(folder), "--line", "41"]) == 2
    assert "✗ the chat template itself writes the same text" in capsys.readouterr().out


def test_an_answer_whose_end_token_is_not_seen_is_an_error(
    model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def whole_words_only(value: dict[str, Any]) -> None:
        next(token for token in value["added_tokens"] if token["content"] == "<|eot_id|>")["single_word"] = True

    folder = variant(model_path, tmp_path / "m", tokenizer=whole_words_only)
    path = write(tmp_path / "d", {"input": "a", "output": "4."}, {"input": "b", "output": "four"})
    assert data.main(["check", path, "--hf_model_id", str(folder)]) == 2
    shown = capsys.readouterr().out
    assert "training.jsonl:2: an answer would not end with a trained end token" in shown and "training.jsonl:1:" not in shown


def test_the_begin_line_of_a_preview_is_about_the_tokenizers_own_begin_token(
    model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "d", {"input": "a", "output": "b"})
    chatml(model_path, tmp_path / "m")
    shown = []
    for begin in ("<|im_start|>", None):
        change(tmp_path / "m" / "tokenizer_config.json", lambda config, begin=begin: config.update(bos_token=begin))
        assert data.main(["preview", path, "--hf_model_id", str(tmp_path / "m")]) == 0
        shown.append(capsys.readouterr().out)
    assert "✓ begins with the begin token, which is not doubled" in shown[0]
    assert "begin" not in shown[1].replace("beginning of the sample", "")


def test_ids_are_shown_where_asked_for(model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "d", {"input": "a", "output": "b"})
    begin = load_prompt_format(model_path, None, None).begin_token_id
    data.main(["preview", path, "--hf_model_id", str(model_path)])
    assert f" {begin}  '<|begin_of_text|>'" not in capsys.readouterr().out
    data.main(["preview", path, "--hf_model_id", str(model_path), "--ids"])
    assert f" {begin}  '<|begin_of_text|>'" in capsys.readouterr().out


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"])
def test_a_device_or_a_pipe_is_not_read_without_end(tiny_model: Path, tmp_path: Path, name: str) -> None:
    """What nothing needs is as if it were not there."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    for put_there in (lambda file: file.symlink_to("/dev/zero"), os.mkfifo):
        (folder / name).unlink()
        put_there(folder / name)
        if name == "tokenizer.json":
            with pytest.raises(InputError, match=f"{folder / name}: not a regular file"):
                load_prompt_format(folder, None, None)
        else:
            assert load_prompt_format(folder, None, None).fingerprint
