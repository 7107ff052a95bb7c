"""Losses of samples, against transformers one sample at a time."""

from pathlib import Path

import pytest
import torch

from finetuning.formats.stored_model import open_model
from finetuning.inference import evaluate
from finetuning.inference.evaluate import mean_loss, sample_losses
from finetuning.inference.loading import load_model
from finetuning.inference.samples import read_samples
from tests.closeness import ROUNDING
from tests.references import load_reference, summed_loss_of_text

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_loss_of_each_sample_is_that_of_transformers(
    tiny_model: Path, tiny_tied_model: Path, tiny_dataset: Path, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "TOKENS_PER_ROW", 200)  # several rows of several samples
    monkeypatch.setattr(evaluate, "LOGITS_AT_ONCE", 7)
    folder = tiny_tied_model if tied else tiny_model
    samples = read_samples(tiny_dataset / "validation.jsonl", None)
    model = load_model(open_model(folder), torch.device("cpu"), torch.float32)
    found = sample_losses(model.net, model.prompt_format, samples, torch.device("cpu"))
    reference = load_reference(folder).eval()
    with torch.no_grad():
        expected = [summed_loss_of_text(reference, folder, sample.input, sample.output)[0] for sample in samples]
    assert [item.line for item in found] == [sample.line for sample in samples]
    assert [item.loss_sum for item in found] == pytest.approx(expected, rel=ROUNDING)
    assert mean_loss(found) == pytest.approx(sum(expected) / sum(item.answer_tokens for item in found), rel=ROUNDING)
