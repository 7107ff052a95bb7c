"""finetune export, merge, evaluate, generate and chat, called as the command calls them."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers

from finetuning.cli import chat, evaluate, export, generate, merge
from finetuning.config.llama import read_llama_config
from finetuning.data.prompts.prompt_format import load_prompt_format
from finetuning.data.prompts.prompt_record import prompt_record
from finetuning.errors import EXIT_FINISHED, InputError
from finetuning.inference.compare import Behavior, compare
from finetuning.inference.plain import PlainConversation
from finetuning.launch.resume import with_adapter_settings
from finetuning.model.llama import Llama
from finetuning.model.sampling import Sampling
from tests.references import load_peft_reference, write_random_adapter

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    write_random_adapter(tiny_model, folder, 2, 6.0, ("q_proj", "v_proj", "up_proj"))
    return folder


def test_a_merged_adapter_is_compared_and_gives_the_adapter_s_text_in_transformers(
    tiny_model: Path, tiny_dataset: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tiny_dataset / "test.jsonl", tmp_path / "merged"
    arguments = [str(adapter), str(out), "--base", str(tiny_model), "--data", str(data), "--max_new_tokens", "8"]
    assert merge.main(arguments) == EXIT_FINISHED
    printed = capsys.readouterr().out
    assert "same greedy answers            4 of 4" in printed and "same: the merged model answers as the adapter" in printed
    question = json.loads(data.read_text(encoding="utf-8").split("\n")[0])["input"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    texts = set()
    for model in (
        transformers.AutoModelForCausalLM.from_pretrained(out),
        load_peft_reference(tiny_model, adapter).eval(),
    ):
        tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        texts.add(tokenizer.decode(tokens, skip_special_tokens=True))
    for model in ([str(out)], [str(adapter), "--base", str(tiny_model)]):
        assert generate.main([model[0], question, "--max_new_tokens", "8", *model[1:], "--out", str(tmp_path / "a.jsonl")]) == 0
        texts.add(json.loads((tmp_path / "a.jsonl").read_text(encoding="utf-8"))["prediction"])
    assert len(texts) == 1


def test_a_merge_that_computes_something_else_fails() -> None:
    one = Behavior([[1]], [torch.tensor([[1.0, 3.0]])])
    other = Behavior([[0]], [torch.tensor([[1.0, 0.9]])])
    assert compare(one, one, {torch.bfloat16}).is_same
    found = compare(one, other, {torch.bfloat16})
    assert not found.is_same and found.largest_difference == pytest.approx(2.1) and found.same_answers == found.same_tokens == 0


def test_merging_without_known_data_asks_for_them(tiny_model: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the data that it was trained on are not known"):
        merge.main([str(adapter), str(tmp_path / "out"), "--base", str(tiny_model)])
    with pytest.raises(InputError, match="is a whole model; there is no adapter to merge"):
        merge.main([str(tiny_model), str(tmp_path / "out")])
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_leaves_a_summary_a_table_and_predictions(
    tiny_model: Path, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([str(tiny_model), str(tiny_dataset), "--out", str(tmp_path), "--max_new_tokens", "3"]) == EXIT_FINISHED
    samples = [json.loads(line) for line in (tiny_dataset / "test.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    predictions = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert [(row["input"], row["label"]) for row in predictions] == [(row["input"], row["output"]) for row in samples]
    with (tmp_path / "samples.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    tokens = [int(row["answer_tokens"]) for row in rows]
    losses = [float(row["loss"]) for row in rows]
    mean = sum(a * b for a, b in zip(tokens, losses, strict=True)) / sum(tokens)
    assert summary["loss"] == pytest.approx(mean) and summary["samples"] == len(rows) == 4
    assert f"loss {summary['loss']:.4f}" in capsys.readouterr().out


def test_a_model_whose_chat_template_has_changed_since_training_is_not_used(
    tiny_model: Path, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    record = prompt_record(load_prompt_format(folder, None, None), None, None)
    (folder / "finetuning.json").write_text(json.dumps({"prompt": record}), encoding="utf-8")
    assert generate.main([str(folder), "a", "--max_new_tokens", "1"]) == EXIT_FINISHED
    assert export.main([str(folder), str(tmp_path / "out")]) == EXIT_FINISHED
    assert json.loads((tmp_path / "out" / "finetuning.json").read_text(encoding="utf-8")) == {"prompt": record}
    with pytest.raises(InputError, match="the model was trained with None; leave the flag out"):
        generate.main([str(folder), "a", "--prompt_template", "{input} {output}"])
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8").replace("Today Date", "Date"), encoding="utf-8")
    capsys.readouterr()
    evaluation = tmp_path / "evaluation"
    for verb, more in ((generate, ["a"]), (chat, []), (evaluate, [str(tiny_dataset), "--out", str(evaluation)])):
        with pytest.raises(InputError, match="the chat template is not the one that the model was trained with"):
            verb.main([str(folder), *more])
    assert capsys.readouterr().out == "" and not evaluation.exists()


def test_questions_without_answers_can_be_asked_but_not_evaluated(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"input": "你好"}\n{"prompt": "hi"}\n', encoding="utf-8")
    assert generate.main([str(tiny_model), "--file", str(file), "--max_new_tokens", "1"]) == EXIT_FINISHED
    assert [json.loads(line)["input"] for line in capsys.readouterr().out.split("\n")[:-1]] == ["你好", "hi"]
    with pytest.raises(InputError, match=r"questions\.jsonl:1"):
        evaluate.main([str(tiny_model), str(file)])


def test_a_conversation_remembers_its_turns_until_reset(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = []
    for lines in ("a\nb\n/exit\n", "b\n", "a\n/reset\nb\n"):
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        assert chat.main([str(tiny_model), "--max_new_tokens", "6"]) == EXIT_FINISHED
        printed.append(
            capsys.readouterr().out.rstrip().removesuffix(">").split("> ")[-1 if "exit" not in lines else -2].strip()
        )
    assert printed[1] == printed[2]


def test_a_conversation_ends_where_the_model_or_the_memory_has_no_more_positions(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = read_llama_config(tiny_model).max_position_embeddings
    monkeypatch.setattr("sys.stdin", io.StringIO("a\n"))
    grown = (
        r"the conversation has grown to \d+ tokens, and with --max_new_tokens {new} the {what} {limit} positions; begin anew"
    )
    with pytest.raises(InputError, match=grown.format(new=limit, what="model has only", limit=limit)):
        chat.main([str(tiny_model), "--max_new_tokens", str(limit)])

    def with_little_memory(net: Llama, sampling: Sampling, ends: tuple[int, ...]) -> PlainConversation:
        conversation = PlainConversation(net, sampling, ends)
        conversation.num_positions = 10
        return conversation

    monkeypatch.setattr(chat, "open_conversation", with_little_memory)
    monkeypatch.setattr("sys.stdin", io.StringIO("a\n"))
    with pytest.raises(InputError, match=grown.format(new=9, what="GPU's memory holds only", limit=10)):
        chat.main([str(tiny_model), "--max_new_tokens", "9"])


def test_flags_may_stand_between_a_model_and_what_is_asked_of_it(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "answers.jsonl"
    assert generate.main([str(tiny_model), "--max_new_tokens", "3", "hi", "--out", str(out)]) == EXIT_FINISHED
    assert json.loads(out.read_text(encoding="utf-8"))["input"] == "hi"
    assert capsys.readouterr().out == f"1 answer in {out}\n"
    assert export.main([str(tiny_model), "--to", "hf", str(tmp_path / "out")]) == EXIT_FINISHED
    assert (tmp_path / "out" / "config.json").is_file()


def test_flags_that_cannot_be_are_all_named(tiny_model: Path) -> None:
    with pytest.raises(InputError) as caught:
        generate.main([str(tiny_model), "a", "--temperature", "-1", "--top_p", "2", "--max_new_tokens", "0"])
    assert len(caught.value.problems) == 3
    with pytest.raises(InputError, match="have no effect at --temperature 0"):
        generate.main([str(tiny_model), "a", "--top_k", "5"])


def test_an_export_says_what_has_no_effect(tiny_model: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--merge has no effect"):
        export.main([str(tiny_model), str(tmp_path / "out"), "--merge"])
    with pytest.raises(InputError) as caught:
        export.main([str(adapter), str(tmp_path / "out"), "--base", str(tiny_model), "--dtype", "float32"])
    assert len(caught.value.problems) == 2 and not (tmp_path / "out").exists()


def test_an_adapter_s_own_settings_hold_where_none_are_given(adapter: Path) -> None:
    found = with_adapter_settings({"peft": "lora", "restore_config": str(adapter), "lora_rank": 8})
    assert found["lora_rank"] == 8 and found["lora_alpha"] == 6.0
    assert found["lora_targets"] == ("q_proj", "v_proj", "up_proj")
    assert with_adapter_settings({"peft": "none", "restore_config": str(adapter)}) == {
        "peft": "none",
        "restore_config": str(adapter),
    }
