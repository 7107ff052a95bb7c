"""No document of a packed row sees another one: shown on the model's own outputs, not on a mask."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetuning.config.llama import read_llama_config
from finetuning.data.batches.global_batch import make_row
from finetuning.data.tokens.megatron import open_megatron_split, write_megatron
from finetuning.data.tokens.tokenized import open_split, write_split
from finetuning.model.cross_entropy import IGNORED_LABEL
from finetuning.model.llama import Llama

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def model(model_path: Path) -> Llama:
    torch.manual_seed(0)
    net = Llama(read_llama_config(model_path))
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return net


def loss_of(model: Llama, row: object) -> torch.Tensor:
    return model(row.tokens, row.positions, row.documents, labels_BT=row.labels)  # type: ignore[attr-defined]


@settings(max_examples=10)
@given(lengths=st.lists(st.integers(3, 20), min_size=2, max_size=4), changed=st.integers(0, 3), seed=st.integers(0, 99))
def test_changing_one_document_leaves_the_gradients_of_the_others_as_they_are(
    model: Llama, tmp_path_factory: pytest.TempPathFactory, lengths: list[int], changed: int, seed: int
) -> None:
    """The embedding's gradient of tokens that only one document holds must not depend on what its neighbors are."""
    changed %= len(lengths)
    generator = np.random.default_rng(seed)
    ids = generator.permutation(np.arange(10, 1000))[: sum(lengths) + 40]
    gradients = []
    for variant in range(2):
        samples, start = [], 0
        for index, length in enumerate(lengths):
            tokens = ids[start : start + length].tolist()
            if index == changed and variant:
                tokens = ids[-length:].tolist()
            samples.append((tokens, [place >= length // 2 for place in range(length)], index + 1))
            start += length
        folder = tmp_path_factory.mktemp("split") / "training"
        write_split(folder, samples)
        row = make_row(open_split(folder), list(range(len(lengths))), length=128)
        model.zero_grad()
        loss_of(model, row).backward()
        gradient = model.model.embed_tokens.weight.grad
        assert gradient is not None
        others = [token for index, (tokens, _, _) in enumerate(samples) if index != changed for token in tokens[:-1]]
        gradients.append(gradient[others].clone())
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_documents_of_megatron_data_do_not_see_each_other(model: Llama, tmp_path: Path) -> None:
    documents = [np.arange(10, 20), np.arange(20, 26), np.arange(30, 45)]
    write_megatron(tmp_path / "x", documents, 1000)
    split = open_megatron_split(tmp_path / "x", 12, np.arange(3))
    together = sum(loss_of(model, make_row(split, [index], length=64)).item() for index in range(len(split)))
    alone = 0.0
    for index in range(len(split)):
        for tokens, trained in split.pieces(index):
            folder = tmp_path / f"{index}-{int(tokens[0])}"
            write_split(folder, [(tokens.tolist(), trained.tolist(), 1)])
            row = make_row(open_split(folder), [0], length=len(tokens) - 1)
            assert IGNORED_LABEL not in row.labels
            alone += loss_of(model, row).item()
    assert together == pytest.approx(alone, rel=1e-5)  # float32 sums in another order
