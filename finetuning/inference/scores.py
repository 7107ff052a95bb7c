"""How close answers are to their references: exact match, ROUGE by torchmetrics and chrF by sacrebleu.

ROUGE counts words, and Chinese has no blanks between them: here every Chinese character (and Japanese or Korean one) is a
word of its own, beside whole words of other scripts. torchmetrics' own tokenizer would drop Chinese altogether.
"""

import importlib.util
import re
from dataclasses import dataclass

from finetuning.i18n import t
from finetuning.on_demand import needed_for

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


def check_packages() -> None:
    """Before minutes are spent on answers, without the seconds that importing them takes.

    Raises:
        InputError: torchmetrics or sacrebleu is not installed.
    """
    with needed_for(t("scores of answers")):
        for package in ("sacrebleu", "torchmetrics"):
            if importlib.util.find_spec(package) is None:
                raise ModuleNotFoundError(name=package)


def score_answers(predictions: list[str], references: list[str]) -> tuple[Scores, list[Scores]]:
    """Scores of all answers together, and of each.

    Raises:
        InputError: see `check_packages`.
    """
    check_packages()
    from sacrebleu.metrics import CHRF
    from torchmetrics.functional.text import rouge_score

    each = []
    for prediction, reference in zip(predictions, references, strict=True):
        rouge = rouge_score(
            prediction, reference, rouge_keys=("rouge1", "rouge2", "rougeL"), tokenizer=words, normalizer=lambda text: text
        )
        one, two, longest = (float(rouge[f"{key}_fmeasure"]) for key in ("rouge1", "rouge2", "rougeL"))
        is_exact = prediction.strip() == reference.strip()
        each.append(Scores(float(is_exact), one, two, longest, CHRF().sentence_score(prediction, [reference]).score / 100))
    exact, one, two, longest = (
        sum(getattr(score, name) for score in each) / len(each) for name in ("exact_match", "rouge1", "rouge2", "rouge_l")
    )
    return Scores(exact, one, two, longest, CHRF().corpus_score(predictions, [references]).score / 100), each
