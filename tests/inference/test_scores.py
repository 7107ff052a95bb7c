"""Scores of answers, against values counted by hand."""

import pytest

from finetuning.inference.scores import score_answers, words

pytestmark = pytest.mark.unit


def test_every_chinese_character_is_a_word_and_other_scripts_keep_theirs() -> None:
    assert words("台灣有 7-ELEVEN，很方便！Café_x") == ["台", "灣", "有", "7", "eleven", "很", "方", "便", "café", "x"]


def test_chinese_answers_are_counted_by_characters() -> None:
    _, (found,) = score_answers(["台灣的首都是台北。"], ["首都是台北市"])
    # 8 and 6 characters; 首都是台北 in common: 5/8 and 5/6. Pairs: 4 of 7 and of 5.
    assert found.rouge1 == pytest.approx(2 * 5 / 14) and found.rouge_l == pytest.approx(2 * 5 / 14)
    assert found.rouge2 == pytest.approx(2 * 4 / 12)
    assert found.exact_match == 0.0


def test_equal_answers_score_one_and_foreign_ones_zero() -> None:
    mean, each = score_answers([" 好的\n", "abc"], ["好的", "xyz"])
    assert each[0].exact_match == each[0].rouge1 == 1.0 and each[0].chrf == pytest.approx(1.0)
    assert each[1].exact_match == each[1].rouge_l == each[1].chrf == 0.0
    assert mean.exact_match == mean.rouge1 == 0.5


def test_an_empty_answer_scores_zero() -> None:
    mean, _ = score_answers([""], ["好的"])
    assert mean.exact_match == mean.rouge1 == mean.rouge_l == mean.chrf == 0.0
