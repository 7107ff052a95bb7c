"""Tokens that a folder names outside of tokenizer.json are there as they are described, or the folder is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from finetuning.data.prompts.prompt_format import load_prompt_format
from finetuning.errors import InputError
from tests.data.prompts.folders import change, variant

pytestmark = pytest.mark.unit

THINK = {"content": "<think>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": False}
END = THINK | {"content": "<|eot_id|>", "special": True}
MISSING: dict[str, tuple[str, dict[str, Any]]] = {
    "padding": ("tokenizer_config.json", {"pad_token": "<think>"}),
    "any other name": ("tokenizer_config.json", {"image_token": "<think>"}),
    "additional": ("tokenizer_config.json", {"additional_special_tokens": ["<think>"]}),
    "extra, by name": ("tokenizer_config.json", {"extra_special_tokens": {"image": "<think>"}}),
    "described": ("tokenizer_config.json", {"added_tokens_decoder": {"3072": THINK}}),
    "older": ("special_tokens_map.json", {"additional_special_tokens": ["<think>"]}),
    "added": ("added_tokens.json", {"<think>": 3072}),
}


def with_entries(model_path: Path, target: Path, name: str, entries: dict[str, Any]) -> Path:
    folder = variant(model_path, target)
    file = folder / name
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    file.write_text(json.dumps(known | entries), encoding="utf-8")
    return folder


def problems_of(folder: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        load_prompt_format(folder, None, None)
    return caught.value.problems


@pytest.mark.parametrize("case", MISSING)
def test_a_token_that_tokenizer_json_does_not_have_is_refused_until_it_does(
    model_path: Path, tmp_path: Path, case: str
) -> None:
    name, entries = MISSING[case]
    folder = with_entries(model_path, tmp_path / "m", name, entries)
    (problem,) = problems_of(folder)
    code = f"transformers.AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')"
    assert problem == (
        f"{folder / name}: names tokens that tokenizer.json does not have (<think>); transformers would add them, and texts "
        f"become other tokens. Save it again: {code}"
    )
    saved = transformers.AutoTokenizer.from_pretrained(folder)  # what the message says
    saved.save_pretrained(folder)
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    (folder / "added_tokens.json").unlink(missing_ok=True)
    ours = load_prompt_format(folder, None, None)
    text = "a <think> b"
    assert ours.count_tokens(text) == len(saved(text, add_special_tokens=False)["input_ids"])


def test_a_token_that_is_described_otherwise_is_refused(model_path: Path, tmp_path: Path) -> None:
    assert load_prompt_format(
        variant(model_path, tmp_path / "same", added_tokens_decoder={"3070": END}), None, None
    ).end_token_ids
    folder = variant(model_path, tmp_path / "m", added_tokens_decoder={"3070": END | {"rstrip": True}})
    (problem,) = problems_of(folder)
    assert problem.startswith(
        f"{folder / 'tokenizer_config.json'}: says otherwise than tokenizer.json how <|eot_id|> are found in a text"
    )


def test_what_makes_tokens_of_a_text_depend_on_more_than_the_text_is_refused(model_path: Path, tmp_path: Path) -> None:
    folder = variant(model_path, tmp_path / "m", split_special_tokens=True)
    change(folder / "tokenizer.json", lambda value: value["model"].update(dropout=0.5))
    split, dropout = problems_of(folder)
    assert split == (
        f"{folder / 'tokenizer_config.json'}: split_special_tokens is true, so that the template's own tokens would become "
        "plain text; set it to false"
    )
    assert dropout == (
        f"{folder / 'tokenizer.json'}: model.dropout is 0.5, so that the same text becomes other tokens each time; set it to "
        "null"
    )
