"""A mixture of three sources over two epochs, killed and resumed in another layout: every line, every share, every loss."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetuning.config.run import read_run
from finetuning.data.batches.ledger import LEDGER_FILE, read_ledger
from finetuning.formats.stored_model import open_model
from finetuning.inference.evaluate import mean_loss, sample_losses
from finetuning.inference.loading import load_model
from finetuning.inference.samples import read_samples
from finetuning.runtime.status import read_status
from finetuning.training.metrics import read_metrics
from tests.commands import Command, finetune, steps_done, verb

pytestmark = [pytest.mark.dist, pytest.mark.timeout(600)]

SIZES = {"mine": 18, "general": 9, "weighted": 5}
BATCH, EPOCHS = 4, 2
STEPS = EPOCHS * sum(SIZES.values()) // BATCH


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Path:
    """Three sources, one with answers of half weight, and the finished run of the experiment `mixed` on them."""
    folder = tmp_path_factory.mktemp("work")
    records = [json.loads(line) for line in (tiny_dataset / "training.jsonl").read_text(encoding="utf-8").splitlines()]
    for place, (name, size) in enumerate(SIZES.items()):
        (folder / name).mkdir()
        for split, count in (("training", size), ("validation", 2)):
            rows = [records.pop() for _ in range(count)]
            if name == "weighted":
                rows = [as_messages(row, 0.5 if number % 2 else 1) for number, row in enumerate(rows)]
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / name / f"{split}.jsonl").write_text("\n" * place + text, encoding="utf-8")
    (folder / "mix.yaml").write_text(
        "- {path: mine, epochs: 1}\n- {path: general, epochs: 1, system_prompt: Be brief.}\n- {path: weighted, samples: 5}\n"
    )
    return folder


def as_messages(row: dict[str, str], weight: float) -> dict[str, object]:
    question = {"role": "user", "content": row["input"]}
    return {"messages": [question, {"role": "assistant", "content": row["output"], "weight": weight}]}


def start(folder: Path, model: Path, *layout: str) -> Command:
    flags = {
        "dataset_path": "mix.yaml",
        "hf_model_id": str(model),
        "global_batch_size": str(BATCH),
        "max_steps": str(STEPS),
        "seq_length": "256",
        "lr": "3e-3",
        "val_check_interval": "4",
        "save_every_n_steps": "2",
        "num_sample_answers": "0",
    }
    given = [part for name, value in flags.items() for part in (f"--{name}", value)]
    return finetune(folder, "--experiment", "mixed", *given, *layout)


@pytest.fixture(scope="module")
def experiment(folder: Path, tiny_model: Path) -> Path:
    found = folder / "experiments" / "mixed"
    command = start(folder, tiny_model, "--num_gpus", "1")
    command.wait_until(lambda: read_status(found).get("pid") in command.workers() and steps_done(found) >= 4)
    command.kill_everything()
    assert "mixture     56.25% mine: 36 samples drawn from 18, 2.00 epochs of it" in command.output()
    code, output = start(folder, tiny_model, "--num_gpus", "2", "--tensor_model_parallel_size", "2").finish()
    assert code == 0, output
    assert "resuming mixed at step" in output
    return found


def test_after_each_step_each_source_has_its_share_and_no_line_is_missing_or_twice(experiment: Path) -> None:
    entries = list(read_ledger(experiment / LEDGER_FILE))
    assert [entry.step for entry in entries] == list(range(1, STEPS + 1))
    sources = np.concatenate([entry.sources for entry in entries])
    shares = np.array(list(SIZES.values())) / sum(SIZES.values())
    for done in range(BATCH, len(sources) + 1, BATCH):
        counts = np.bincount(sources[:done], minlength=len(SIZES))
        assert (np.abs(counts - shares * done) < 1).all(), f"after {done} samples"
    lines = np.concatenate([entry.lines for entry in entries])
    for place, size in enumerate(SIZES.values()):
        expected = {line + place: EPOCHS for line in range(1, size + 1)}  # as many blank lines stand before
        assert Counter(lines[sources == place].tolist()) == expected


def test_the_losses_of_each_source_are_those_of_a_separate_evaluation(experiment: Path, folder: Path) -> None:
    row = read_metrics(experiment / "metrics.csv")[-1]
    stored = open_model(experiment / "export")
    model = load_model(stored, torch.device("cpu"), torch.float32)
    for name in SIZES:
        system = "Be brief." if name == "general" else None
        samples = [replace(sample, system=system) for sample in read_samples(folder / name / "validation.jsonl", None)]
        alone = mean_loss(sample_losses(model.net, model.prompt_format, samples, torch.device("cpu")))
        assert float(row[f"val_loss/{name}"]) == pytest.approx(alone, rel=1e-5)
    whole = [float(row[f"val_loss/{name}"]) for name in SIZES]
    assert min(whole) < float(row["val_loss"]) < max(whole)


def test_every_row_has_the_loss_of_each_source_that_the_step_has(experiment: Path) -> None:
    rows = read_metrics(experiment / "metrics.csv")
    for row, entry in zip(rows, read_ledger(experiment / LEDGER_FILE), strict=True):
        assert entry.sources is not None
        there = [bool(row[f"train_loss/{name}"]) for name in SIZES]
        assert there == [place in entry.sources.tolist() for place in range(len(SIZES))]
        known = [float(row[f"train_loss/{name}"]) for name in SIZES if row[f"train_loss/{name}"]]
        assert min(known) - 1e-6 <= float(row["train_loss"]) <= max(known) + 1e-6
    events = EventAccumulator(str(experiment / "tensorboard"))
    events.Reload()
    assert events.Scalars("val_loss/general")[-1].value == pytest.approx(float(rows[-1]["val_loss/general"]))


def test_the_run_and_the_ledger_name_the_sources(experiment: Path, folder: Path) -> None:
    run = read_run(experiment / "run.yaml")
    assert [(source.name, source.part) for source in run.mixture] == list(SIZES.items())
    assert run.identity["mixture"] == "mine 18, general 9, weighted 5"
    code, output = verb(folder, "data", "ledger", "-E", "mixed", "--source", "general", "--line", "2")
    assert code == 0
    assert output.count("general/training.jsonl:2 ") == EPOCHS


def test_another_share_is_another_experiment(experiment: Path, folder: Path, tiny_model: Path) -> None:
    text = (folder / "mix.yaml").read_text()
    (folder / "mix.yaml").write_text(text.replace("samples: 5", "samples: 4"))
    code, output = start(folder, tiny_model, "--num_gpus", "1").finish()
    (folder / "mix.yaml").write_text(text)
    assert code == 2
    assert "mixture: was mine 18, general 9, weighted 5, is now mine 18, general 9, weighted 4" in output
