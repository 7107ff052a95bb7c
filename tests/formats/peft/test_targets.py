"""Layers that an adapter's settings name: those that PEFT would give one, whoever wrote the pattern."""

import time
from pathlib import Path
from typing import Any

import peft
import pytest
from peft.tuners.tuners_utils import check_target_module_exists

from finetuning.errors import InputError
from finetuning.formats.peft import targets
from finetuning.formats.peft.targets import untargeted

pytestmark = pytest.mark.unit

FILE = Path("adapter_config.json")
LINEARS = "self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"
MODULES = [f"model.layers.{layer}.{linear}" for layer in (0, 1, 11) for linear in LINEARS] + ["lm_head"]


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["proj"]},
        {"target_modules": ["layers.1.mlp.up_proj", "model.layers.0.self_attn.v_proj"]},
        {"target_modules": r"model\.layers\.(0|11)\.(?:self_attn|mlp)\..*_proj"},
        {"target_modules": "q_proj"},
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["layers.1.self_attn.q_proj"]},
        {"target_modules": ["q_proj"], "exclude_modules": r".*\.1\..*"},
        {"target_modules": ["q_proj", "lm_head"], "layers_to_transform": [1, 11]},
        {"target_modules": ["q_proj"], "layers_to_transform": 0},
        {"target_modules": ["q_proj"], "layers_to_transform": []},
    ],
    ids=str,
)
def test_the_layers_are_those_of_peft(settings: dict[str, Any]) -> None:
    theirs = peft.LoraConfig(**settings)
    # PEFT's own answer for a layer that is excluded counts as false, and so does None.
    assert untargeted(settings, MODULES, FILE) == sorted(m for m in MODULES if not check_target_module_exists(theirs, m))


def test_without_names_they_are_those_that_peft_takes_for_a_llama() -> None:
    assert untargeted({}, MODULES, FILE) == sorted(m for m in MODULES if not m.endswith(("q_proj", "v_proj")))
    assert untargeted({"target_modules": "all-linear"}, [*MODULES, "model.embed_tokens"], FILE) == [
        "lm_head",
        "model.embed_tokens",
    ]


@pytest.mark.parametrize("pattern", ["(", "(.*.*.*.*)*x", "([a-z0-9_.]+)+!"])
def test_a_pattern_that_is_none_or_never_ends_is_refused(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "PATTERN_S", 0.3)
    start = time.process_time()
    with pytest.raises(InputError) as caught:
        untargeted({"target_modules": pattern}, MODULES, FILE)
    assert str(caught.value) == f"{FILE}: target_modules {pattern!r} is not understood; name the layers"
    assert time.process_time() - start < 1.0
