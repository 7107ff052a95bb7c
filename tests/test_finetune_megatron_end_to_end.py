"""Continued pre-training on Megatron's .bin and .idx through the command: stopped, resumed, documents apart."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from finetuning.config.run import read_run
from finetuning.data.batches.ledger import LEDGER_FILE, read_ledger
from finetuning.data.batches.order import samples_of_step
from finetuning.data.tokens.megatron import write_megatron
from finetuning.data.tokens.tokenized import open_split
from finetuning.training.metrics import read_metrics
from tests.closeness import ROUNDING
from tests.commands import finetune, is_training, steps_done
from tests.references import load_reference

pytestmark = [pytest.mark.dist, pytest.mark.timeout(600)]

MAX_STEPS, BATCH, SEQ_LENGTH, DOCUMENTS = 15, 4, 64, 100


def test_documents_are_trained_apart_and_once_also_over_a_stop_and_a_resume(tiny_model: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    documents = [generator.integers(0, 480, 40) for _ in range(DOCUMENTS)]  # 39 positions: no sample of 64 is one document
    write_megatron(tmp_path / "corpus_text_document", documents, 512)
    experiment = tmp_path / "experiments" / "pretrain"
    data = tmp_path / "corpus_text_document.bin"
    flags = [
        "--experiment",
        "pretrain",
        "--hf_model_id",
        str(tiny_model),
        "--dataset_path",
        str(data),
        "--num_gpus",
        "1",
        "--global_batch_size",
        str(BATCH),
        "--seq_length",
        str(SEQ_LENGTH),
        "--max_steps",
        str(MAX_STEPS),
        "--val_check_interval",
        "100",
        "--save_every_n_steps",
        "1",
        "--num_sample_answers",
        "0",
        "--lr",
        "1e-12",
        "--weight_decay",
        "0",  # weights stay what they are, so that every step can be computed again
    ]
    command = finetune(tmp_path, *flags)
    command.wait_until(lambda: is_training(experiment, after_step=0))
    command.ctrl_c()
    code, output = command.finish()
    assert code == 75, output
    stopped_at = steps_done(experiment)
    assert 0 < stopped_at < MAX_STEPS
    code, output = finetune(tmp_path, *flags).finish()
    assert code == 0, output
    assert f"resuming pretrain at step {stopped_at} of {MAX_STEPS}" in output

    run = read_run(experiment / "run.yaml")
    split = open_split(Path(run.tokens_dir) / "training")
    assert any(len(split.pieces(index)) > 1 for index in range(len(split))), "documents end in the middle of samples"
    reference = load_reference(tiny_model)
    rows = read_metrics(experiment / "metrics.csv")
    assert [int(row["step"]) for row in rows] == list(range(1, MAX_STEPS + 1))
    for step in sorted({0, stopped_at - 1, stopped_at, MAX_STEPS - 1}):
        samples = samples_of_step(step, BATCH, len(split), run.config.seed)
        pieces = [piece for sample in samples for piece in split.pieces(int(sample))]
        trained = sum(len(tokens) - 1 for tokens, _ in pieces)
        expected = sum(document_loss(reference, tokens) for tokens, _ in pieces)
        assert int(rows[step]["answer_tokens"]) == trained
        assert float(rows[step]["train_loss"]) == pytest.approx(expected / trained, rel=ROUNDING)
    consumed = np.concatenate([entry.lines for entry in read_ledger(experiment / LEDGER_FILE)])
    assert len(consumed) == MAX_STEPS * BATCH
    assert sorted(consumed[: len(split)].tolist()) == sorted(split.lines.tolist())


def document_loss(model: torch.nn.Module, tokens: np.ndarray) -> float:
    """Sum of the cross-entropies of a document, or a part of it, that goes through the model alone."""
    ids = torch.from_numpy(tokens.astype(np.int64))
    with torch.no_grad():
        return F.cross_entropy(model(input_ids=ids[None, :-1]).logits[0], ids[1:], reduction="sum").item()
