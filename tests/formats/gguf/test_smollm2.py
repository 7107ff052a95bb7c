"""SmolLM2-135M-Instruct, a real quantized file, out of its package: as transformers reads it, and after training there."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from examples.get_smollm2 import NotToBeHadError, get_smollm2
from examples.make_records import make_records
from finetuning.cli import export, merge
from finetuning.data.reading.records import Sample
from finetuning.errors import EXIT_FINISHED
from finetuning.formats.stored_model import open_model
from finetuning.inference.generate import generate_answers
from finetuning.inference.loading import load_model
from finetuning.model.sampling import Sampling
from tests.references import write_random_adapter

pytestmark = [pytest.mark.unit, pytest.mark.slow]

FILE = Path(__file__).parents[3] / "examples" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
RECORDS = Path(__file__).parents[3] / "examples" / "data" / "records" / "test.jsonl"
QUESTIONS = ["On Tuesday six bottles were delivered by Ivy.", "星期三：做好 8 張椅子（許文山）"]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        get_smollm2(FILE)
    except NotToBeHadError as error:
        pytest.skip(str(error))
    target = tmp_path_factory.mktemp("smollm2") / "model"
    assert export.main([str(FILE), str(target), "--dtype", "float32"]) == EXIT_FINISHED
    return target


@torch.no_grad()
def test_ids_and_logits_are_those_of_transformers_own_reader(imported: Path) -> None:
    ours = transformers.AutoModelForCausalLM.from_pretrained(imported, dtype=torch.float32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(FILE.parent, gguf_file=FILE.name, dtype=torch.float32)
    expected = theirs.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in ours.state_dict().items())
    read, reference = (
        transformers.AutoTokenizer.from_pretrained(imported),
        transformers.AutoTokenizer.from_pretrained(FILE.parent, gguf_file=FILE.name),
    )
    question = [{"role": "user", "content": QUESTIONS[1]}]
    ids = read.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
    assert ids.tolist()[0] == reference(read.decode(ids[0]), add_special_tokens=False).input_ids
    assert (ours(ids).logits - theirs(ids).logits).abs().max() == 0.0
    # Of texts as people write them: transformers takes GPT-2's rule for every file; nasty ones are in test_llama_cpp.py.
    texts = [sample["input"] + sample["output"] for split in make_records().values() for sample in split]
    assert read(texts).input_ids == reference(texts).input_ids


def test_an_adapter_that_is_merged_answers_the_same_in_transformers(imported: Path, tmp_path: Path) -> None:
    write_random_adapter(imported, tmp_path / "adapter", 4, 8.0, ("q_proj", "v_proj", "down_proj"))
    given = [
        str(tmp_path / "adapter"),
        str(tmp_path / "merged"),
        "--base",
        str(imported),
        "--data",
        str(RECORDS),
        "--limit",
        "2",
    ]
    assert merge.main(given) == EXIT_FINISHED
    model = load_model(open_model(tmp_path / "adapter", imported), torch.device("cpu"), torch.float32)
    prompts = [model.prompt_format.encode_prompt(Sample(1, text, "")) for text in QUESTIONS]
    expected = generate_answers(model.net, prompts, Sampling(max_new_tokens=24), model.prompt_format.end_token_ids)
    net = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    for prompt, answer in zip(prompts, expected, strict=True):
        found = net.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0, len(prompt) :].tolist()
        assert [token for token in found if token not in model.prompt_format.end_token_ids] == answer
    origin = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert origin["vocab_size"] == 49152
