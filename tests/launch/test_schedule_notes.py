"""What the start screen says of schedules that can hardly learn."""

from collections.abc import Callable
from pathlib import Path

import pytest

from finetuning.config.settings import RunConfig
from finetuning.errors import InputError
from finetuning.launch.prepare import Prepared, prepare
from finetuning.launch.schedule_notes import schedule_notes

pytestmark = pytest.mark.unit

SAMPLES = 40


@pytest.fixture
def prepared(settings: Callable[..., RunConfig], tmp_path: Path) -> Callable[..., Prepared]:
    def make(**changed: object) -> Prepared:
        return prepare(settings(**changed), None, tmp_path / "experiment", tmp_path / "tokens", with_weights=True)

    return make


def notes_of(found: Prepared, samples: int = SAMPLES) -> list[str]:
    return schedule_notes(found.run, found.learning_rate, samples)


def test_a_schedule_that_can_learn_has_no_note(prepared: Callable[..., Prepared]) -> None:
    assert notes_of(prepared(max_steps=40)) == []


def test_few_steps_are_told_with_what_would_give_more(prepared: Callable[..., Prepared]) -> None:
    (note,) = notes_of(prepared(), samples=4000)
    assert note.startswith("5 steps can teach little") and note.endswith("--global_batch_size near 40")


def test_a_batch_larger_than_the_data_is_told(prepared: Callable[..., Prepared]) -> None:
    (note,) = notes_of(prepared(max_steps=40, global_batch_size=80))
    assert note.startswith("--global_batch_size 80 is more than the 40 training samples")


def test_a_small_part_of_the_data_is_told(prepared: Callable[..., Prepared]) -> None:
    (note,) = notes_of(prepared(max_steps=40), samples=3200)
    assert note == "--max_steps 40 sees 10% of the 3200 training samples; an epoch is 400 steps"


@pytest.mark.parametrize(("times", "words"), [(20, "20 times above"), (0.05, "20 times below")])
def test_a_learning_rate_far_from_the_rule_is_told(times: float, words: str, prepared: Callable[..., Prepared]) -> None:
    rule = prepared(max_steps=40).learning_rate.rule
    (note,) = notes_of(prepared(max_steps=40, lr=rule * times))
    assert words in note
    assert notes_of(prepared(max_steps=40, lr=rule * 9)) == []


def test_a_share_of_the_steps_may_be_the_warm_up(prepared: Callable[..., Prepared]) -> None:
    assert prepared(max_steps=30, warmup_ratio=0.05).run.warmup_steps == 2
    assert prepared(max_steps=2, warmup_ratio=0.9).run.warmup_steps == 1


def test_an_end_above_the_rule_s_peak_is_refused(prepared: Callable[..., Prepared]) -> None:
    with pytest.raises(InputError, match=r"--min_lr 0.5 is above the peak learning rate 0\.0"):
        prepared(min_lr=0.5)


def test_early_stopping_needs_a_validation_whose_weights_are_saved(prepared: Callable[..., Prepared]) -> None:
    with pytest.raises(InputError, match="--save_every_n_steps 2 must divide --val_check_interval 3, or be left out"):
        prepared(max_steps=40, early_stopping=2, val_check_interval=3, save_every_n_steps=2)
    with pytest.raises(InputError, match="--export best keeps the weights of the best validation: --save_every_n_steps 2"):
        prepared(max_steps=40, export="best", val_check_interval=3, save_every_n_steps=2)
    prepared(max_steps=40, early_stopping=2, export="last", val_check_interval=3, save_every_n_steps=2)
    assert prepared(max_steps=40, early_stopping=2, val_check_interval=4, save_every_n_steps=2).run.config.early_stopping == 2


def test_early_stopping_needs_validation_data(prepared: Callable[..., Prepared], tiny_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "training.jsonl").write_bytes((tiny_dataset / "training.jsonl").read_bytes())
    with pytest.raises(InputError, match=r"--early_stopping looks at the validation loss, and there is no validation\.jsonl"):
        prepared(dataset_path=str(tmp_path / "data"), early_stopping=2)
    with pytest.raises(InputError, match="--export best looks at the validation loss, and there is no validation"):
        prepared(dataset_path=str(tmp_path / "data"), export="best")
