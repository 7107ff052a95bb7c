"""The screens before and after a run, in both languages, on a terminal and in a log."""

import dataclasses
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from finetuning.cli.train_screens import LABEL_WIDTH, show_end, show_start
from finetuning.config.memory import MemoryPlan
from finetuning.config.settings import RunConfig
from finetuning.i18n import set_language
from finetuning.launch.expected import Expected, Outlook
from finetuning.launch.gpus import GpuMemory
from finetuning.launch.prepare import Prepared, prepare
from finetuning.plan.layouts import Planned
from finetuning.plan.step_time import StepTime
from finetuning.plan.workload import Packs
from finetuning.runtime.status import FINISHED, write_status
from finetuning.training.metrics import COLUMNS, MetricsFile

pytestmark = pytest.mark.unit

Settings = Callable[..., RunConfig]
Prepare = Callable[..., Prepared]


@pytest.fixture
def prepared(settings: Settings, tmp_path: Path) -> Prepare:
    def make(**changed: object) -> Prepared:
        return prepare(settings(**changed), None, tmp_path / "experiments" / "tiny", tmp_path / "tokens", with_weights=True)

    return make


def screen_of(show: Callable[[Console], None], *, width: int = 80, terminal: bool = False) -> str:
    output = io.StringIO()
    show(Console(file=output, width=width, force_terminal=terminal, color_system="standard" if terminal else None))
    return output.getvalue()


def start_screen(prepared: Prepared, **console: object) -> list[str]:
    return screen_of(lambda shown: show_start(shown, prepared), **console).splitlines()  # type: ignore[arg-type]


def end_screen(prepared: Prepared) -> str:
    return screen_of(lambda shown: show_end(shown, prepared.run))


def value_of(label: str, lines: list[str]) -> str:
    (line,) = (line for line in lines if line.startswith(label))
    return line[LABEL_WIDTH:]


def test_the_start_screen_says_what_will_happen(prepared: Prepare, tmp_path: Path) -> None:
    found = prepared(lr=1e-3)
    lines = start_screen(found)
    assert value_of("model", lines) == (
        f"{found.run.config.hf_model_id} · Llama, 2 layers · 127.30 k parameters, 127.30 k trainable (all weights)"
    )
    training = found.dataset.splits["training"]
    assert value_of("data", lines) == (
        f"training: 40 samples, {len(training.tokens):,} tokens, {int(training.answer_tokens.sum()):,} of them answers, "
        f"longest {int(training.lengths.max()) + 1:,} · training.jsonl"
    )
    assert [line.split()[:3] for line in lines[2:4]] == [["validation:", "6", "samples,"], ["test:", "4", "samples,"]]
    assert value_of("layout", lines).startswith("2 CPU processes = data parallel 2 · 8 samples per step in ")
    assert value_of("schedule", lines) == (
        "5 steps = 1.00 epochs · learning rate 0.001 after 0 warm-up steps, cosine to 0 · validation every 1 · "
        "checkpoints for at most 3 % of the time, every 30 minutes at least, and at the end"
    )
    assert value_of("schedule", start_screen(prepared(save_every_n_steps=3))).endswith("checkpoint every 3")
    assert re.fullmatch(
        r"up to 0\.0 GiB of \d+\.\d GiB free: \d checkpoints of 0\.0 GiB, the result 0\.0 GiB.*", value_of("disk", lines)
    )
    assert value_of("folder", lines) == str(tmp_path / "experiments" / "tiny")
    assert value_of("start", lines) == f"starts from the weights of {found.run.config.hf_model_id}"
    assert [line[LABEL_WIDTH:] for line in lines if line.startswith("note")] == [
        "no CUDA GPU here: --num_gpus 2 means 2 CPU processes, in float32",
        "5 steps can teach little: below 20, weights hardly move; give --max_steps 20 or more, or --global_batch_size near 1",
    ]


def test_the_example_shows_the_question_and_brackets_around_what_is_trained(prepared: Prepare) -> None:
    found = prepared()
    sample = found.dataset.example
    example = value_of("example", start_screen(found))
    assert example.startswith(f"line {sample.line} · trained in brackets: <|begin_of_text|>")
    shown = re.fullmatch(r".*: (.*)\[(.*)\]", example)
    assert shown is not None
    assert sample.input.split()[-1] in shown[1]
    assert "assistant" in shown[1]
    assert shown[2].startswith(sample.output[:20]) and shown[2].endswith("<|eot_id|>")


def test_with_adapters_the_screen_counts_what_is_trained(prepared: Prepare) -> None:
    # Rank 4 on seven linears of two layers: 4 * 2 * (128 + 96 + 96 + 128 + 160 + 160 + 160) = 7 424.
    line = value_of("model", start_screen(prepared(peft="lora", lora_rank=4)))
    assert line.endswith("134.72 k parameters, 7.42 k trainable (LoRA r=4)")


def test_expected_memory_is_shown_where_there_is_a_gpu(prepared: Prepare) -> None:
    found = prepared()
    here = dataclasses.replace(found, gpu_memory=GpuMemory(79.6))
    assert re.fullmatch(r"about \d+ GiB of each GPU's 80 GiB", value_of("memory", start_screen(here)))
    nodes = dataclasses.replace(found, gpu_memory=GpuMemory(141, "--gpu_memory_gib"))
    assert value_of("memory", start_screen(nodes)).endswith(" GiB of each GPU's 141 GiB (--gpu_memory_gib)")


def test_expected_speed_and_a_faster_layout_are_shown_where_they_are_known(prepared: Prepare) -> None:
    found = prepared()
    assert not [line for line in start_screen(found) if line.startswith(("speed", "faster"))], "on a CPU nothing is said"
    chosen, faster = (
        Planned(
            dataclasses.replace(found.run.config, tensor_model_parallel_size=degree),
            found.run.strategy,
            MemoryPlan(2**30, 0, 0, 0, 0),
            StepTime(seconds, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, Packs(1, 128, 1.0), 1000.0),
            fits=True,
        )
        for degree, seconds in ((found.run.config.tensor_model_parallel_size, 4.0), (4, 2.0))
    )
    outlook = Outlook(Expected(1.0, 4.0, 250.0, measured_rates=True), chosen, faster)
    lines = start_screen(dataclasses.replace(found, outlook=outlook))
    assert value_of("speed", lines) == "about 125 tokens/s of each GPU, 4.00 s a step, all 5 steps in 20 s"
    assert value_of("faster", lines) == "-T 4: 250 tokens/s of each GPU expected, 2.00 × as fast; 3 GiB"
    published = dataclasses.replace(outlook, expected=Expected(1.0, 4.0, 250.0), faster=None)
    lines = start_screen(dataclasses.replace(found, outlook=published))
    assert value_of("speed", lines).endswith("in 20 s (rates from data sheets)")
    unknown = dataclasses.replace(outlook, expected=Expected(1.0))
    assert not [line for line in start_screen(dataclasses.replace(found, outlook=unknown)) if line.startswith("speed")]


def test_without_checkpoints_and_validation_the_schedule_does_not_promise_them(
    prepared: Prepare, tiny_dataset: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "training.jsonl").write_bytes((tiny_dataset / "training.jsonl").read_bytes())
    found = prepared(dataset_path=str(tmp_path / "data"), save_every_n_steps=0)
    assert value_of("schedule", start_screen(found)).endswith("cosine to 0")


@pytest.mark.parametrize("width", [20, 80, 200])
def test_a_narrow_window_breaks_no_line(width: int, prepared: Prepare) -> None:
    found = prepared()
    assert start_screen(found, width=width) == start_screen(found)


def test_color_is_for_terminals_only(prepared: Prepare) -> None:
    found = prepared()
    assert "\x1b[" not in "".join(start_screen(found))
    assert "\x1b[" in "".join(start_screen(found, terminal=True))


def test_values_start_in_the_same_column_in_chinese(prepared: Prepare) -> None:
    found = prepared()
    set_language("zh-TW")
    for line in start_screen(found):
        label = re.match(r"\S*\s+", line)
        assert label is not None
        assert cell_len(label[0]) == LABEL_WIDTH


@pytest.fixture
def finished(prepared: Prepare) -> Prepared:
    """A run whose workers have left behind what they leave at the end."""
    found = prepared()
    folder = Path(found.run.experiment_dir)
    (folder / "results").mkdir(parents=True)
    metrics = MetricsFile(folder / "metrics.csv", 0)
    for step, loss, imbalance in ((1, 6.25, 0.01), (2, 5.5, 0.02)):
        known = {"step": step, "train_loss": loss, "val_loss": loss + 0.1, "fill": 0.98, "imbalance": imbalance}
        metrics.append({**dict.fromkeys(COLUMNS, 1.0), **known})
    write_status(folder, FINISHED, spent={"start": 20.0, "steps": 170.0, "saves": 0.2, "validation": 0.0, "end": 10.0})
    for name, values in (
        ("before.json", {"val_loss": 6.5}),
        ("test.json", {"loss": 5.0, "perplexity": 148.41, "samples": 4}),
    ):
        (folder / "results" / name).write_text(json.dumps(values), encoding="utf-8")
    for name, prediction in (("answers_before.jsonl", ""), ("predictions.jsonl", "臺北 101 [/bold]")):
        row = {"input": "最高的\n建築？", "label": "臺北 101。", "prediction": prediction}
        (folder / "results" / name).write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    return found


def test_the_end_screen_shows_losses_answers_result_and_what_to_do_next(finished: Prepared) -> None:
    folder = Path(finished.run.experiment_dir)
    lines = end_screen(finished).splitlines()
    assert value_of("losses", lines) == "training 6.2500 → 5.5000"
    joined = "\n".join(line.strip() for line in lines)
    assert "\nvalidation 6.5000 → 5.6000 (perplexity 665.1 → 270.4; not trained on)\n" in joined
    assert "\ntest 5.0000 (perplexity 148.4, 4 samples)\n" in joined
    assert value_of("packing", lines) == (
        "98.0% of the computed positions were real tokens · the slowest rank had 1.5% more work than the mean, in the worst "
        "step 2.0%"
    )
    assert value_of("time", lines) == "start 20 s (10%) · steps 170 s (85%) · end 10 s (5%)"
    assert value_of("question", lines) == "最高的 建築？"
    assert value_of("before", lines) == "(nothing)"
    assert value_of("after", lines) == "臺北 101 [/bold]"  # text of the model is no markup of ours
    assert value_of("expected", lines) == "臺北 101。"
    assert value_of("result", lines) == f"{folder}/export · the weights of the last step, 5"
    assert value_of("load it", lines) == f'transformers.AutoModelForCausalLM.from_pretrained("{folder}/export")'
    assert value_of("next", lines) == "train on: the same command with --max_steps 10"
    assert f"curves: tensorboard --logdir {folder.parent}" in joined


def test_answers_with_other_line_ends_in_them_are_shown(finished: Prepared) -> None:
    row = {"input": "a\u2028b", "label": "c\x85d", "prediction": "e\x1cf\u2029g"}
    predictions = Path(finished.run.experiment_dir) / "results" / "predictions.jsonl"
    predictions.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = end_screen(finished).split("\n")
    assert (value_of("question", lines), value_of("after", lines), value_of("expected", lines)) == ("a b", "e f g", "c d")


def test_the_end_screen_of_adapters_says_how_to_load_them(finished: Prepared) -> None:
    config = dataclasses.replace(finished.run.config, peft="lora")
    found = dataclasses.replace(finished, run=dataclasses.replace(finished.run, config=config))
    assert 'peft.AutoPeftModelForCausalLM.from_pretrained("' in end_screen(found)


def test_the_end_screen_leaves_out_what_is_not_there(prepared: Prepare) -> None:
    found = prepared()
    text = end_screen(found)
    assert "losses" not in text and "question" not in text
    assert f"{found.run.experiment_dir}/export" in text


def test_a_loss_beyond_every_number_breaks_no_screen(finished: Prepared) -> None:
    results = Path(finished.run.experiment_dir) / "results"
    (results / "before.json").write_text(json.dumps({"val_loss": 1e6}), encoding="utf-8")
    assert "validation 1000000.0000 → 5.6000" in end_screen(finished)


def test_the_end_screen_is_complete_in_chinese(finished: Prepared) -> None:
    set_language("zh-TW")
    text = end_screen(finished)
    assert "臺北 101。" in text and f'from_pretrained("{finished.run.experiment_dir}/export")' in text
