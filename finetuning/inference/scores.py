"""How close answers are to their references: exact match, ROUGE and chrF, by torchmetrics.

ROUGE counts words, and Chinese has no blanks between them: here every Chinese character (and Japanese or Korean one) is a
word of its own, beside whole words of other scripts. torchmetrics' own tokenizer would drop Chinese altogether.
"""

import re
from dataclasses import dataclass

import torch
from torchmetrics.functional.text import chrf_score, rouge_score

EAST_ASIAN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U000323af"
WORD = re.compile(rf"[{EAST_ASIAN}]|[^\W_{EAST_ASIAN}]+")


@dataclass(frozen=True)
class Scores:
    """Of one answer, or the mean of many; from 0 to 1."""

    exact_match: float  # equal, white space at the ends aside
    rouge1: float  # F1 of words
    rouge2: float  # F1 of pairs of words
    rouge_l: float  # F1 of the longest common sequence of words
    chrf: float  # F2 of 1 to 6 characters; of many: counted over all of them together


def words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def score_answers(predictions: list[str], references: list[str]) -> tuple[Scores, list[Scores]]:
    """Scores of all answers together, and of each."""
    each = []
    for prediction, reference in zip(predictions, references, strict=True):
        rouge = rouge_score(
            prediction, reference, rouge_keys=("rouge1", "rouge2", "rougeL"), tokenizer=words, normalizer=lambda text: text
        )
        one, two, longest = (float(rouge[f"{key}_fmeasure"]) for key in ("rouge1", "rouge2", "rougeL"))
        is_exact = prediction.strip() == reference.strip()
        each.append(Scores(float(is_exact), one, two, longest, float(_chrf([prediction], [reference]))))
    exact, one, two, longest = (
        sum(getattr(score, name) for score in each) / len(each) for name in ("exact_match", "rouge1", "rouge2", "rouge_l")
    )
    return Scores(exact, one, two, longest, float(_chrf(predictions, references))), each


def _chrf(predictions: list[str], references: list[str]) -> torch.Tensor:
    found = chrf_score(predictions, [[reference] for reference in references], n_word_order=0)
    assert isinstance(found, torch.Tensor)
    return found
