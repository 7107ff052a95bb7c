"""The command with LoRA and a Chinese prompt template: Ctrl-C, resume, PEFT reads the result; and a run that must fail."""

import json
import re
from pathlib import Path

import peft
import pytest
import torch
import transformers

from finetuning.checkpoint.files import find_checkpoints
from finetuning.config.run import read_run
from finetuning.data.prompts.prompt_format import load_prompt_format
from finetuning.data.reading.records import Sample
from finetuning.data.tokens.tokenized import open_split
from finetuning.runtime.status import read_status
from finetuning.training.metrics import read_metrics
from tests.closeness import ROUNDING
from tests.commands import Command, arguments, descendants, finetune, is_training, steps_done
from tests.references import summed_loss

pytestmark = [pytest.mark.dist, pytest.mark.timeout(1200)]

TEMPLATE = r"以下是一個問題。\n問題：{input}\n回答：{output}"
MAX_STEPS = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def flags(tiny_model: Path, tiny_dataset: Path) -> list[str]:
    return [
        "--hf_model_id",
        str(tiny_model),
        "--dataset_path",
        str(tiny_dataset),
        "--global_batch_size",
        "8",
        "--seq_length",
        "256",
        "--num_sample_answers",
        "0",
    ]


@pytest.fixture(scope="module")
def lora_flags(flags: list[str]) -> list[str]:
    return [*flags, "--num_gpus", "1", "--peft", "lora", "--lora_rank", "4", "--lr", "1e-2", "--prompt_template", TEMPLATE]


@pytest.fixture(scope="module")
def experiment(folder: Path, lora_flags: list[str]) -> Path:
    """A LoRA run that was stopped by Ctrl-C once and has finished."""
    experiment = folder / "experiments" / "lora"
    arguments = ["--experiment", "lora", "--max_steps", str(MAX_STEPS), "--val_check_interval", "5", *lora_flags]
    command = finetune(folder, *arguments)
    command.wait_until(lambda: is_training(experiment, after_step=0))
    command.ctrl_c()
    code, output = command.finish()
    stopped_at = steps_done(experiment)
    assert code == 75, output
    assert f"saved at step {stopped_at} of {MAX_STEPS}; run the same command to go on" in output
    assert output.count("run the same command to go on") == 1
    assert read_status(experiment)["state"] == "stopped"
    code, output = finetune(folder, *arguments).finish()
    assert code == 0, output
    assert f"resuming lora at step {stopped_at} of {MAX_STEPS}" in output
    assert f'AutoPeftModelForCausalLM.from_pretrained("{experiment / "export"}")' in output
    return experiment


def test_after_ctrl_c_every_step_is_there_once_and_validated_where_it_is_due(experiment: Path) -> None:
    rows = read_metrics(experiment / "metrics.csv")
    assert [int(row["step"]) for row in rows] == list(range(1, MAX_STEPS + 1))
    assert [int(row["step"]) for row in rows if row["val_loss"]] == list(range(5, MAX_STEPS + 1, 5))
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])


def test_peft_loads_the_adapter_and_finds_the_same_test_loss(experiment: Path) -> None:
    model = peft.AutoPeftModelForCausalLM.from_pretrained(experiment / "export", dtype=torch.float64).eval()
    split = open_split(Path(read_run(experiment / "run.yaml").tokens_dir) / "test")
    with torch.no_grad():
        total = sum(summed_loss(model, split, sample).item() for sample in range(len(split)))
    found = json.loads((experiment / "results" / "test.json").read_text(encoding="utf-8"))
    assert found["loss"] == pytest.approx(total / int(split.answer_tokens.sum()), rel=ROUNDING)


def test_the_tokenizer_of_the_result_writes_the_prompt_that_was_trained(experiment: Path, tiny_model: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(experiment / "export")
    split = open_split(Path(read_run(experiment / "run.yaml").tokens_dir) / "training")
    source = Path(read_run(experiment / "run.yaml").sources["training"]).read_text(encoding="utf-8").split("\n")[:-1]
    prompt_format = load_prompt_format(tiny_model, TEMPLATE, None)
    for index in range(len(split)):
        sample = json.loads(source[split.lines[index] - 1])
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": sample["input"]}], return_dict=False)
        tokens, trained = split.sample(index)
        assert prompt == prompt_format.encode_prompt(Sample(1, sample["input"], sample["output"]))
        assert prompt == tokens[~trained].tolist()
    assert tokenizer.decode(prompt).startswith("<|begin_of_text|>以下是一個問題。\n問題：")


def test_another_run_starts_from_the_adapter(experiment: Path, folder: Path, lora_flags: list[str]) -> None:
    code, output = finetune(
        folder, "--experiment", "second", "--max_steps", "1", "--restore_config", str(experiment / "export"), *lora_flags
    ).finish()
    assert code == 0, output
    assert f"starts from the adapter {experiment / 'export'}" in output
    second = folder / "experiments" / "second"
    assert [row["step"] for row in read_metrics(second / "metrics.csv")] == ["1"]
    before = json.loads((second / "results" / "before.json").read_text(encoding="utf-8"))["val_loss"]
    # The same weights (the adapters are float32 in the file too) and the same layout.
    assert before == float(read_metrics(experiment / "metrics.csv")[-1]["val_loss"])


def test_with_the_least_memory_the_same_is_computed(experiment: Path, folder: Path, lora_flags: list[str]) -> None:
    code, output = finetune(
        folder, "--experiment", "least", "--least_memory", "--max_steps", "2", "--warmup_steps", "0", *lora_flags
    ).finish()
    assert code == 0, output
    least = folder / "experiments" / "least"
    first, last = read_metrics(least / "metrics.csv")
    expected = read_metrics(experiment / "metrics.csv")[0]  # before the first update, so whatever the learning rate is
    for name in ("train_loss", "grad_norm"):
        assert float(first[name]) == pytest.approx(float(expected[name]), rel=2 * ROUNDING)
    assert float(last["train_loss"]) < float(first["train_loss"])
    adapter = peft.AutoPeftModelForCausalLM.from_pretrained(least / "export")
    assert all(weight.isfinite().all() for weight in adapter.parameters())


def torchrun_is_up(command: Command) -> bool:
    return any("torch.distributed.run" in arguments(pid) for pid in descendants(command.process.pid))


@pytest.mark.parametrize("workers", [0, 2], ids=["before the workers", "while the workers import"])
def test_ctrl_c_while_it_starts_is_a_stop(folder: Path, flags: list[str], workers: int) -> None:
    command = finetune(folder, "--experiment", f"early-{workers}", "--num_gpus", "2", "--max_steps", "4", *flags)
    command.wait_until(lambda: torchrun_is_up(command) and len(command.workers()) == workers)
    command.ctrl_c()
    code, output = command.finish()
    assert code == 75, output
    assert "stopped; run the same command to go on" in output
    status = read_status(folder / "experiments" / f"early-{workers}")
    assert (status["state"], status["exit_code"], status["step"]) == ("stopped", 75, 0)


def test_a_gradient_that_is_not_finite_fails_the_run_and_leaves_the_last_checkpoint(folder: Path, flags: list[str]) -> None:
    code, output = finetune(
        folder,
        "--experiment",
        "exploding",
        "--num_gpus",
        "2",
        "--lr",
        "1e30",
        "--max_steps",
        "4",
        "--warmup_steps",
        "0",
        "--save_every_n_steps",
        "1",
        *flags,
    ).finish()
    experiment = folder / "experiments" / "exploding"
    assert code == 1, output
    assert re.search(r"Rank \d failed: step 2: the loss is \S+ and the gradient norm nan\.", output)
    assert "The step was not applied; the last checkpoint is untouched. Lower --lr" in output
    status = read_status(experiment)
    assert (status["state"], status["exit_code"]) == ("failed", 1)
    assert status["reason"].startswith("step 2: the loss is ")
    for rank in (0, 1):  # together: none of them is left waiting for the other
        failure = json.loads((experiment / "logs" / f"rank_{rank}.error.json").read_text(encoding="utf-8"))
        assert failure["message"] == status["reason"]
    assert [row["step"] for row in read_metrics(experiment / "metrics.csv")] == ["1"]
    complete, broken = find_checkpoints(experiment / "checkpoints")
    assert ([checkpoint.step for checkpoint in complete], broken) == ([1], [])
    assert not (experiment / "export").exists()
