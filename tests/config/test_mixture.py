"""What --dataset_path names: one data set, or the sources of a mixture; and how their samples are divided."""

from fractions import Fraction
from pathlib import Path

import pytest

from finetuning.config.mixture import Entry, divide, read_mixture
from finetuning.config.read_settings import config_from_dict
from finetuning.errors import InputError

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data sets, two of them with names that look like a mixture."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "x,y", "w:0.5", "p:0.5,q:0.5", "sub/c"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:0.7,b:0.3", [("a", "a", "7/10"), ("b", "b", "3/10")]),
        ("a:3,sub/c:1", [("a", "a", "3"), ("c", "sub/c", "1")]),
        ("x,y:0.5,a:.5", [("x_y", "x,y", "1/2"), ("a", "a", "1/2")]),
        (
            "a/training.jsonl:1,b/training.jsonl:1",
            [("a_training", "a/training.jsonl", "1"), ("b_training", "b/training.jsonl", "1")],
        ),
        ("org/name:config@main:0.5,a:0.5", [("name_config_main", "org/name:config@main", "1/2"), ("a", "a", "1/2")]),
        ("a", []),
        ("x,y", []),
        ("w:0.5", []),
        ("p:0.5,q:0.5", []),
        ("org/name:2023", []),
        ("nothing", []),
    ],
)
def test_weights_are_read_unless_the_whole_is_a_path(text: str, expected: list[tuple[str, str, str]]) -> None:
    assert [(entry.name, entry.path, str(entry.weight)) for entry in read_mixture(text)] == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a:0.7,b", "there is no such file or folder, and as a mixture 'b' lacks its weight: PATH:WEIGHT,PATH:WEIGHT"),
        ("u,v", "as a mixture 'u,v' lacks its weight"),
        ("a:0.7,w:0.5", "'w:0.5' is itself a path here, and so has no weight; name the sources in a YAML file"),
        ("a:0.7", "a weight has no effect on one data set; give a"),
        ("a:0,b:1", "source a: weight must be greater than 0"),
        ("a:1,a:2", "a stands twice; each source needs its own path"),
        ("[]", "a mixture is a list of sources, each with its path and weight"),
        ("[{path: a, weight: 1}, {path: b}]", "source b needs one of weight, samples and epochs, and no other"),
        ("[{path: a, weight: 1, epochs: 1}]", "source a needs one of weight, samples and epochs, and no other"),
        ("[{path: a, weight: 1}, {path: b, samples: 5}]", "a with a weight and others without"),
        ("[{path: a, weight: .nan}]", "source a: weight must be greater than 0"),
        ("[{path: a, samples: many}]", "source 1: samples is text, but must be a whole number"),
        ("[{path: a, weight: 1, share: 2}]", "source 1: the whole: Object contains unknown field `share`"),
        ("[{path: a, weight: 1, name: 'a,b'}]", "the name 'a,b' of a source may have letters, digits, '.', '-' and '_' only"),
        ("[{path: a, weight: 1, name: n}, {path: b, weight: 1, name: n}]", "n stands twice; each source needs its own name"),
    ],
)
def test_what_is_wrong_is_said_by_name(text: str, problem: str) -> None:
    with pytest.raises(InputError) as refused:
        read_mixture(text)
    assert problem in "\n".join(refused.value.problems)


def test_a_yaml_file_names_paths_seen_from_its_folder(here: Path) -> None:
    (here / "sub" / "mixture.yaml").write_text(
        "- {path: c, epochs: 2, system_prompt: Be brief.}\n- {path: org/general, samples: 50, columns: input=q}\n"
    )
    assert read_mixture("sub/mixture.yaml") == [
        Entry("c", "sub/c", epochs=Fraction(2), system_prompt="Be brief."),
        Entry("general", "org/general", samples=50, columns="input=q"),
    ]
    (here / "c").mkdir()
    with pytest.raises(InputError, match=r"c is there twice, as sub/c and as .*/c; give the whole path"):
        read_mixture("sub/mixture.yaml")


def test_a_file_of_settings_may_hold_the_list_itself() -> None:
    entries = [{"path": "a", "weight": 0.7}, {"path": "b", "weight": 0.3}]
    config = config_from_dict({"hf_model_id": "m", "dataset_path": entries}, "--config c.yaml")
    assert [(entry.path, entry.weight) for entry in read_mixture(config.dataset_path)] == [
        ("a", Fraction(7, 10)),
        ("b", Fraction(3, 10)),
    ]


@pytest.mark.parametrize(
    ("entries", "sizes", "parts", "epoch"),
    [
        ("[{path: a, weight: 0.7}, {path: b, weight: 0.3}]", [100, 30], (7, 3), 100),
        ("[{path: a, weight: 0.8}, {path: b, weight: 0.2}]", [1000, 10**6], (4, 1), 1250),
        ("[{path: a, weight: 1}, {path: b, weight: 1000}]", [5, 5], (1, 1000), 5),
        ("[{path: a, epochs: 2}, {path: b, samples: 50}]", [100, 1000], (4, 1), 250),
        ("[{path: a, epochs: 0.001}, {path: b, epochs: 1}]", [10, 30], (1, 30), 31),
    ],
)
def test_an_epoch_repeats_nothing_by_weights_and_has_what_was_asked_by_numbers(
    entries: str, sizes: list[int], parts: tuple[int, ...], epoch: int
) -> None:
    division = divide(read_mixture(entries), sizes)
    assert (division.parts, division.epoch) == (parts, epoch)
