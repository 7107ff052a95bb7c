"""Tokens are drawn as their probabilities say, and a draw depends on nothing but its own numbers."""

import pytest
import torch

from finetuning.model.sampling import Sampling, choose_tokens

pytestmark = pytest.mark.unit

LOGITS = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
DRAWS = 4000


def drawn(sampling: Sampling, logits_V: torch.Tensor = LOGITS, first: int = 0) -> torch.Tensor:
    number_S = torch.arange(first, first + DRAWS)
    return choose_tokens(logits_V.expand(DRAWS, -1), sampling, number_S // 10, number_S % 10)


def test_tokens_come_as_often_as_their_probabilities_say() -> None:
    shares = drawn(Sampling(temperature=1.0)).bincount(minlength=4) / DRAWS
    assert torch.allclose(shares, LOGITS.exp(), atol=0.025)  # three standard deviations
    colder = drawn(Sampling(temperature=0.5)).bincount(minlength=4) / DRAWS
    assert torch.allclose(colder, (2 * LOGITS).softmax(0), atol=0.025)


def test_top_k_and_top_p_leave_out_what_is_unlikely() -> None:
    assert set(drawn(Sampling(temperature=1.0)).tolist()) == {0, 1, 2, 3}
    assert set(drawn(Sampling(temperature=1.0, top_k=3)).tolist()) == {0, 1, 2}
    assert set(drawn(Sampling(temperature=1.0, top_p=0.7)).tolist()) == {0, 1}
    assert set(drawn(Sampling(temperature=1.0, top_p=1e-9)).tolist()) == {0}
    # Of the three likeliest, the first has more than half.
    assert set(drawn(Sampling(temperature=1.0, top_k=3, top_p=0.51)).tolist()) == {0}


def test_a_draw_depends_on_seed_number_and_place_and_not_on_its_neighbors() -> None:
    logits_V = torch.linspace(-1, 1, 200)
    sampling = Sampling(temperature=1.0, seed=2**62 + 3)
    found = drawn(sampling, logits_V)
    alone = choose_tokens(logits_V[None], sampling, torch.tensor([17]), torch.tensor([4]))
    assert alone.tolist() == [found[174]]
    for other in (Sampling(temperature=1.0, seed=3), Sampling(temperature=1.0, seed=2**62 + 4)):
        assert (drawn(other, logits_V) == found).float().mean() < 0.03
    assert (drawn(sampling, logits_V, first=1) == found).float().mean() < 0.03
